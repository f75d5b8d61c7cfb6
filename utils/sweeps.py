"""The trial runner: trials become runs, with a summary.csv after each of them, and a ranking.

Each trial has its own run folder inside that of the sweep. Several processes may share one sweep: the process that
holds a trial's lock runs it, and the operating system releases the lock of a process that ends, however it ends.
"""

import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence

import pandas as pd
from tqdm import tqdm

from utils.config import UserError, nearest
from utils.distributed import exclusive_lock
from utils.files import read_json
from utils.logging_utils import Run
from utils.scripts import progress_bar

SECONDS_BETWEEN_LOOKS = 1.0  # at trials that other processes run


def check_trial_names(names: Sequence[str], only: Sequence[str] = ()) -> None:
    """Raise UserError for no trials, names that cannot be folders, or an `only` that is not among them."""
    if not names:
        raise UserError("there are no trials; give each list of the config at least one value.")
    unknown = [name for name in only if name not in names]
    if unknown:
        raise UserError(f"only names {unknown[0]!r}, which is not a trial; {nearest(unknown[0], [*names])}")
    strange = [name for name in names if not re.fullmatch(r"[\w.+-]+", name) or name.startswith(".")]
    if strange:
        raise UserError(f"trial name {strange[0]!r} cannot be a folder; use only letters, digits and . + - _.")


def run_trials(run: Run, trials: Mapping[str, Run], work: Callable[[Run], None]) -> pd.DataFrame:
    """Run the trials that are not finished; return one row for each: trial, the values of its summary, error or "".

    `run` has been started and holds the folders of the trials. `work(trial)` starts and finishes a trial, and resumes
    an interrupted one if it can; finished ones are read. A trial that fails is recorded with its error and the
    others continue; the next call tries it again. summary.csv holds all trials in the folder, whichever process or
    call made them, these first.
    """
    waiting = dict(trials)
    failed_before = {name: failed_at(one) for name, one in waiting.items()}
    done = sum(one.summary is not None for one in waiting.values())
    with progress_bar(len(waiting) - done, str(run), unit="trial") as bar:
        while waiting:
            for name, one in list(waiting.items()):
                looked_up = one.summary is not None
                if _settle(one, work, failed_before[name]):
                    del waiting[name]
                    if not looked_up:
                        _update_table(run, trials)
                        tqdm.write(_line(name, one), file=sys.stderr)
                        bar.update()
            if waiting:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    return _update_table(run, trials)


def check_all_finished(table: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise UserError with the list of those of the trials `names` that failed, if there are any."""
    if failed := errors_of(table, names):
        raise UserError(
            f"{len(failed)} of {len(names)} trials failed: {with_reasons(failed)}. Finished ones are kept; the same "
            "command tries the failed ones again."
        )


def errors_of(table: pd.DataFrame, names: Collection[str]) -> dict[str, str]:
    """Return why those of the trials `names` failed that did."""
    return {row["trial"]: row["error"] for row in table.to_dict("records") if row["error"] and row["trial"] in names}


def with_reasons(errors: Mapping[str, str]) -> str:
    """Return what failed and why, each reason once."""
    by_reason: dict[str, list[str]] = {}
    for name, error in errors.items():
        by_reason.setdefault(error, []).append(str(name))
    return "; ".join(f"{', '.join(names)} ({error})" for error, names in by_reason.items())


def inner_runs(run: Run, except_for: Collection[str] = ()) -> dict[str, Run]:
    """Return the trials of earlier calls in a sweep's folder, by name, `except_for` those named."""
    found = {}
    for path in sorted(run.folder.glob("*/environment.json")):
        name, facts = path.parent.name, read_json(path) or {}
        if name not in except_for and facts.get("kind") == "trial":
            config = read_json(path.with_name("config.json")) or {}
            config.pop("version", None)
            found[name] = Run(f"{run.name}/{name}", config, "trial", run.root)
    return found


def failed_at(one: Run) -> int | None:
    """Return the modification time of error.txt in nanoseconds, or None."""
    path = one.folder / "error.txt"
    return path.stat().st_mtime_ns if path.exists() else None


def _error(one: Run) -> str:
    """Return the reason that `fail` recorded; "" without one, or if the run was finished afterwards."""
    path = one.folder / "error.txt"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() and one.summary is None else ""


def _settle(one: Run, work: Callable[[Run], None], failed_before: int | None) -> bool:
    """Return whether the trial is finished or has failed; False while another process runs it.

    One that failed is tried again unless another process did so since `failed_before`.
    """
    if not one.try_lock():
        return False
    one.reread()
    if one.summary is None and failed_at(one) == failed_before:
        try:
            work(one)
        except UserError as error:
            one.fail(str(error))
        except Exception as error:
            traceback.print_exc()
            one.fail(f"{type(error).__name__}: {str(error).strip().rpartition(chr(10))[2]}")
    one.unlock()
    return True


def _update_table(run: Run, trials: Mapping[str, Run]) -> pd.DataFrame:
    """Write summary.csv with one row for each trial that is finished or has failed."""
    with exclusive_lock(run.folder / ".table.lock", "writing summary.csv"):
        everything = {**trials, **inner_runs(run, except_for=trials)}
        for one in everything.values():
            one.reread()
        table = pd.DataFrame(
            [
                {"trial": name, **(one.summary or {}), "error": _error(one)}
                for name, one in everything.items()
                if one.summary is not None or _error(one)
            ]
        )
        run.save_table("summary", table)
    return table


def _line(name: str, one: Run) -> str:
    if error := _error(one):
        return f"{name}: failed: {error}"
    numbers = {key: value for key, value in (one.summary or {}).items() if isinstance(value, float)}
    return f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
