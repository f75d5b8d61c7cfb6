"""An optuna study that many processes share, whose trials do not depend on which of them lived or died.

A trial's index is its place in an undisturbed study; optuna's own number counts the deaths too.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from utils.config import UserError
from utils.files import write_text
from utils.locks import exclusive_lock, try_lock
from utils.randomness import mixed_seed

STUDY = "study.db"
RANDOM_START = 10  # trials before TPE takes over from random draws, and before one may be pruned
METRICS = ("val/balanced_accuracy", "val/auroc")  # of classes, of findings
# what a database that is no study, or busy, raises, and a study of which another worker took a trial away
BROKEN = (
    *(SQLAlchemyError, optuna.exceptions.StorageInternalError),
    optuna.exceptions.UpdateFinishedTrialError,
)
SECONDS_TO_SAY_WHERE = 60  # a trial of a shared storage that has not said by then where it runs is dead


@dataclass(frozen=True)
class Turn:
    """A trial that this process alone runs, until it closes the lock."""

    trial: Trial
    index: int
    lock: IO[bytes]


def open_study(storage: str, name: str, folder: Path, identity: dict[str, Any]) -> optuna.Study:
    """The study `name`, to be maximised, in `storage` or else in `folder`/study.db.

    Raises UserError if it is of another `identity` (plain JSON values) or cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    where = storage or f"sqlite:///{folder / STUDY}"
    try:
        with exclusive_lock(folder / ".ask.lock", "opening the study"):
            study = optuna.create_study(
                storage=where,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=RANDOM_START, n_warmup_steps=1),
            )
            if study.user_attrs.get("config", identity) != identity:
                raise UserError(
                    f"the study {name!r} in {where} is of another config or other images; choose another run_name."
                )
            study.set_user_attr("config", identity)
    except (*BROKEN, ImportError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the study in {where} cannot be used ({str(error).splitlines()[0]}); if it is not merely busy, restore it "
            "or give another --storage."
        ) from error
    return study


def next_turn(study: optuna.Study, folder: Path, num_trials: int, seed: int, num_parameters: int) -> Turn | None:
    """The next trial, or one whose process died; None if `num_trials` are done or under way.

    TPE's draws are a function of (seed, index) and of the trials that are done.
    """
    with exclusive_lock(folder / ".ask.lock", "choosing a trial"):
        _put_back_dead(study, folder, num_parameters)
        if len(ended(study)) + len(study.get_trials(states=[TrialState.RUNNING])) >= num_trials:
            return None
        trial = study.ask()
        index = trial.user_attrs.get("index", _next_index(study, trial.number))
        trial.set_user_attr("place", _place(folder))
        trial.set_user_attr("index", index)
        lock = try_lock(_lock_file(folder, index))
    assert lock is not None
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_START, seed=mixed_seed(seed, index) % 2**32, multivariate=False, constant_liar=False
    )
    return Turn(trial, index, lock)


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended: well, pruned, or by an error. A dead process's is run again under another number."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in study.trials if trial.state in states or "error" in trial.user_attrs]


def report_stored(study: optuna.Study, trial: Trial, metrics: Path) -> None:
    """Tell the study every score in a run's metrics.csv that it does not know, as of a trial's earlier life."""
    if not metrics.exists():
        return
    table, known = pd.read_csv(metrics), study.trials[trial.number].intermediate_values
    metric = next(name for name in METRICS if name in table)
    for epoch, score in table[["epoch", metric]].to_numpy():
        if int(epoch) not in known:
            trial.report(float(score), int(epoch))


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """A row for each trial that ended, in order: trial, its parameters, score (its best), state, error or ""."""
    rows = [
        {
            "trial": trial.user_attrs["index"],
            **trial.params,
            "score": max(trial.intermediate_values.values(), default=np.nan if trial.value is None else trial.value),
            "state": "failed" if "error" in trial.user_attrs else trial.state.name.lower(),
            "error": trial.user_attrs.get("error", ""),
        }
        for trial in ended(study)
    ]
    return pd.DataFrame(rows).sort_values("trial") if rows else pd.DataFrame()


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of the score's variance that each parameter explains (fANOVA, Hutter et al. 2014); {} if unknown."""
    scores = [trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])]
    if len(scores) < RANDOM_START or len(set(scores)) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _put_back_dead(study: optuna.Study, folder: Path, num_parameters: int) -> None:
    """Trials under way here whose process is gone wait to be run again, with their index and parameters."""
    here = _place(folder)
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        place = trial.user_attrs.get("place")
        if _may_be_elsewhere(trial, folder) if place is None else place != here:
            continue
        index = trial.user_attrs.get("index", _next_index(study, trial.number))
        lock = try_lock(_lock_file(folder, index))
        if lock is not None:
            lock.close()
            complete = trial.params if len(trial.params) == num_parameters else {}  # else all are drawn again
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(complete, user_attrs={"index": index})


def _place(folder: Path) -> str:
    """A name for the folder, whose locks say who is alive: a machine may change its name, and two may share a study."""
    path = folder / ".place"
    if not path.exists():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def _may_be_elsewhere(trial: FrozenTrial, folder: Path) -> bool:
    """Whether a trial that has not said where it runs may be about to: not if the study lies in the folder itself."""
    begun = trial.datetime_start or datetime.min
    young = (datetime.now() - begun).total_seconds() < SECONDS_TO_SAY_WHERE
    return young and not (folder / STUDY).exists()


def _next_index(study: optuna.Study, number: int) -> int:
    """The index of a fresh trial: its number, less the numbers that trials which were run again took up."""
    failed = study.get_trials(states=[TrialState.FAIL])
    return number - sum("error" not in trial.user_attrs and trial.number < number for trial in failed)


def _lock_file(folder: Path, index: int) -> Path:
    return folder / f".trial_{index:03d}.lock"
