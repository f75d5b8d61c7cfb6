"""The optuna study of a search: where it is kept, who may join it, and its trials as a table."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from utils.config import UserError
from utils.optimisation import mixed_seed

RANDOM_START = 10  # trials before TPE replaces random draws, and before a trial may be pruned
SECONDS_BETWEEN_HEARTBEATS = 10  # a trial without one for three times as long is taken for dead and tried again
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def open_study(storage: str, name: str, folder: Path, identity: dict[str, Any]) -> optuna.Study:
    """Return the study `name`, to be maximised, in the database `storage`, "" for `folder`/study.db.

    identity  plain JSON values that all processes of the study share; the sampler's seed is its "random_seed"

    Raises UserError if the study cannot be opened or has another identity.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are, since 2.8
    where, beat = storage or f"sqlite:///{folder / 'study.db'}", SECONDS_BETWEEN_HEARTBEATS
    try:
        study = optuna.create_study(
            storage=RDBStorage(
                where,
                heartbeat_interval=beat,
                grace_period=3 * beat,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            ),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=RANDOM_START, n_warmup_steps=1),
        )
        known = study.user_attrs.get("config", identity)
        study.set_user_attr("config", known)
        # a process that joins or resumes must not repeat the draws of those before
        seed = mixed_seed(identity["random_seed"], len(study.trials)) % 2**32
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_START, seed=seed)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the study in {where} cannot be opened ({str(error).splitlines()[0]}); restore it, wait if it is busy, or "
            "give another --storage."
        ) from error
    if known != identity:
        raise UserError(f"the study {name!r} in {where} has another config or other images; choose another run_name.")
    return study


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial that ended or failed: trial, its parameters, score (its best), state, error or ""."""
    return pd.DataFrame(
        {
            "trial": trial.number,
            **trial.params,
            "score": max(trial.intermediate_values.values(), default=np.nan if trial.value is None else trial.value),
            "state": "failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
            "error": trial.user_attrs.get("error", "its process died" if trial.state == TrialState.FAIL else ""),
        }
        for trial in study.get_trials(states=(*ENDED, TrialState.FAIL))
    )


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the share of the score's variance that each parameter explains (fANOVA, Hutter et al. 2014), or {}."""
    scores = [trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])]
    if len(scores) < RANDOM_START or len(set(scores)) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
