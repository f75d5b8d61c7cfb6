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

from utils import distributed
from utils.config import UserError, nearest
from utils.locks import exclusive_lock
from utils.logging_utils import Run, read_json
from utils.progress import progress_bar

Overrides = Mapping[str, Any]
# (the trial's config, with its own "run_name") -> numbers by name, JSON values
TrialFunction = Callable[[dict[str, Any]], Mapping[str, Any]]

SECONDS_BETWEEN_LOOKS = 1.0  # at trials that other processes are at work on


def open_sweep(
    name: str, shared: Mapping[str, Any], trials: Mapping[str, Overrides], only: Sequence[str] = ()
) -> tuple[Run, dict[str, Run]]:
    """The sweep's run, whose config is `shared`, and a run for each of the trials {name: overrides}.

    `shared` must tell this sweep from others, `only` names the trials to be run now. Nothing is written.
    Raises UserError for an empty table, a name that does not exist or makes no folder, and for a
    folder that holds a sweep or a trial with another config.
    """
    if distributed.launched_processes() > 1:
        raise UserError("torchrun would mix the trials of a sweep; start it in several terminals instead.")
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


def run_sweep(
    run: Run, trials: Mapping[str, Run], trial: TrialFunction, only: Sequence[str] = (), **facts: Any
) -> pd.DataFrame:
    """Run what is not finished of the trials, or of `only`; a row for each that is: its numbers, error ("" if none).

    A finished trial is looked up, a broken one resumed if `trial` can. One that fails is recorded with its error and
    the others go on; the next call tries it again. The rows, which summary.csv holds too, are those of all trials in
    the sweep's folder, whichever process or call made them, these first. `facts` are what all calls must agree in
    (Run.start): trials on other images, or timed on another machine, do not compare.
    """
    run.start(alone=False, **facts)
    waiting = {name: trials[name] for name in only or trials}
    failed_before = {name: one.failed_at for name, one in waiting.items()}
    done = sum(one.summary is not None for one in waiting.values())
    with progress_bar(len(waiting) - done, str(run), unit="trial") as bar:
        while waiting:
            for name, one in list(waiting.items()):
                looked_up = one.summary is not None
                if _settle(one, trial, failed_before[name]):
                    del waiting[name]
                    _update_table(run, trials)
                    tqdm.write(_line(name, one), file=sys.stderr)
                    bar.update(0 if looked_up else 1)
            if waiting:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    return _update_table(run, trials)


def ranked(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """The rows of finished trials, the best first; `by` is better the larger it is."""
    finished = table.loc[table["error"] == ""].drop(columns="error")
    return finished.sort_values(by=by, ascending=False, kind="stable") if len(finished) else finished


def check_all_finished(table: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise UserError with the list of those of the trials `names` that failed, if there are any."""
    rows = table.to_dict("records")
    failed = [f"{row['trial']} ({row['error']})" for row in rows if row["error"] and row["trial"] in names]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(names)} trials failed: {'; '.join(failed)}. What went well is kept; the same "
            "command tries the failed ones again."
        )


def _settle(one: Run, trial: TrialFunction, failed_before: int | None) -> bool:
    """Whether the trial is finished or has failed; False while another process is at work on it.

    One that failed is tried again unless another process did so since `failed_before`.
    """
    if not one.try_lock():
        return False
    one.reread()
    if one.summary is None and one.failed_at == failed_before:
        one.start()
        try:
            one.finish(trial(dict(one.config)))
        except UserError as error:
            one.fail(str(error))
        except Exception as error:
            traceback.print_exc()
            one.fail(f"{type(error).__name__}: {str(error).strip().rpartition(chr(10))[2]}")
    one.unlock()
    return True


def _update_table(run: Run, trials: Mapping[str, Run]) -> pd.DataFrame:
    """Write summary.csv, a row for each trial that is finished or has failed."""
    with exclusive_lock(run.folder / ".table.lock", "writing summary.csv"):
        everything = {**trials, **_stored_trials(run, trials)}
        for one in everything.values():
            one.reread()
        table = _table(everything)
        run.save_table("summary", table)
    return table


def _stored_trials(run: Run, known: Mapping[str, Run]) -> dict[str, Run]:
    """The trials of earlier calls with other lists, by name."""
    found = {}
    for path in sorted(run.folder.glob("*/config.json")):
        name = path.parent.name
        config = read_json(path) if name not in known else None
        if config is not None and config.get("run_name") == f"{run.name}/{name}":
            found[name] = Run(config["run_name"], config)
    return found


def _table(trials: Mapping[str, Run]) -> pd.DataFrame:
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
