"""A table of trials becomes runs, a summary.csv after each of them, and a ranking.

Each trial has its own run folder inside the sweep's. Several processes may work on one sweep at once: who holds the
lock of a trial runs it, and the operating system releases the lock of a process that ends, however it ends.
"""

import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from utils.config import UserError, nearest
from utils.logging_utils import Run
from utils.progress import progress_bar

Overrides = Mapping[str, Any]
# (the trial's config, with its own "run_name") -> numbers by name, JSON values
TrialFunction = Callable[[dict[str, Any]], Mapping[str, Any]]

SECONDS_BETWEEN_LOOKS = 1.0  # at trials that other processes are at work on


def open_sweep(
    name: str, shared: Mapping[str, Any], trials: Mapping[str, Overrides], only: Sequence[str] = ()
) -> tuple[Run, dict[str, Run]]:
    """The sweep's run, whose config is `shared`, and a run for each of the trials {name: overrides}.

    `only` names those that are to be run now. Nothing is written.
    Raises UserError for an empty table, a name that does not exist or makes no folder, and for a
    folder that holds a sweep or a trial with another config.
    """
    if not trials:
        raise UserError(f"the sweep {name!r} has no trials; give its lists at least one value each.")
    unknown = [trial for trial in only if trial not in trials]
    if unknown:
        raise UserError(f"only names {unknown[0]!r}, which is no trial of this sweep; {nearest(unknown[0], [*trials])}")
    strange = [trial for trial in trials if not re.fullmatch(r"[\w.+-]+", trial) or trial.startswith(".")]
    if strange:
        raise UserError(f"trial name {strange[0]!r} makes no folder; use letters, digits and . + - _ alone.")
    run = Run(name, shared)
    configs = {trial: {**shared, **overrides, "run_name": f"{name}/{trial}"} for trial, overrides in trials.items()}
    return run, {trial: Run(config["run_name"], config) for trial, config in configs.items()}


def run_sweep(run: Run, trials: Mapping[str, Run], trial: TrialFunction, only: Sequence[str] = ()) -> pd.DataFrame:
    """Run what is not finished of the trials, or of `only`; a row for each that is: its numbers, error ("" if none).

    A finished trial is looked up, a broken one resumed if `trial` can. One that fails is recorded with its error and
    the others go on; the next call tries it again. summary.csv holds the rows, whichever process and call made them.
    """
    run.start(alone=False)
    waiting = {name: trials[name] for name in only or trials}
    failed_before = {name for name, one in waiting.items() if one.error}
    with progress_bar(len(waiting), str(run), unit="trial") as bar:
        while waiting:
            for name, one in list(waiting.items()):
                if _settle(one, trial, retry=name in failed_before):
                    del waiting[name]
                    run.save_table("summary", _table(trials))
                    tqdm.write(_line(name, one), file=sys.stderr)
                    bar.update()
            if waiting:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    table = _table(trials)
    run.save_table("summary", table)
    return table


def ranked(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """The rows of finished trials, the best first; `by` is better the larger it is."""
    finished = table.loc[table["error"] == ""].drop(columns="error")
    return finished.sort_values(by=by, ascending=False, kind="stable") if len(finished) else finished


def check_all_finished(table: pd.DataFrame) -> None:
    """Raise UserError with the list of failed trials, if there are any."""
    failed = [f"{row['trial']} ({row['error']})" for row in table.to_dict("records") if row["error"]]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(table)} trials failed: {'; '.join(failed)}. What went well is kept; the same "
            "command tries the failed ones again."
        )


def _settle(one: Run, trial: TrialFunction, retry: bool) -> bool:
    """Whether the trial is finished or has failed, now or before; False while another process is at work on it."""
    if not one.try_lock():
        return False
    one.reread()
    if one.summary is None and (retry or not one.error):
        one.start()
        try:
            one.finish(trial(dict(one.config)))
        except UserError as error:
            one.fail(str(error))
        except Exception as error:
            traceback.print_exc()
            one.fail(f"{type(error).__name__}: {error}")
    one.unlock()
    return True


def _table(trials: Mapping[str, Run]) -> pd.DataFrame:
    """A row for each trial that is finished or has failed, in the order of the trials."""
    for one in trials.values():
        one.reread()
    return pd.DataFrame(
        [
            {"trial": name, **(one.summary or {}), "error": one.error}
            for name, one in trials.items()
            if one.summary is not None or one.error
        ]
    )


def _line(name: str, one: Run) -> str:
    if one.error:
        return f"{name}: failed: {one.error}"
    numbers = {key: value for key, value in (one.summary or {}).items() if isinstance(value, float)}
    return f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
