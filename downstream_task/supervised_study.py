"""The optuna study of a search: where it is kept, who may join it, and its trials as a table."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from utils.config import PACE, PLACES, Config, UserError, differences, up_to_date
from utils.plots import BLACK, BLUE, ORANGE
from utils.seeds import mixed_seed

RANDOM_START = 10  # trials before TPE replaces random draws, and before a trial may be pruned
SECONDS_BETWEEN_HEARTBEATS = 10  # a trial without one for three times as long is taken for dead and tried again
LOG_PARAMETERS = ("lr", "weight_decay")
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def open_study(
    storage: str, name: str, folder: Path, identity: dict[str, Any], keys_of: type[Config] = Config
) -> optuna.Study:
    """Return the study `name`, to be maximised, in the database `storage`, "" for `folder`/study.db.

    identity  plain JSON values that all processes of the study share
    keys_of   the class of the config that is in it: an older study may lack some of its keys

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
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=RANDOM_START, n_warmup_steps=1, interval_steps=1, n_min_trials=1
            ),
        )
        known = study.user_attrs.get("config", identity)
        study.set_user_attr("config", known)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the study in {where} cannot be opened ({str(error).splitlines()[0]}); restore it, wait if it is busy, or "
            "give another --storage."
        ) from error
    there = {**known, **up_to_date(keys_of, known)}
    if differences({key: there.get(key) for key in identity}, identity, leave_out=(*PLACES, *PACE, "version")):
        raise UserError(f"the study {name!r} in {where} has another config or other images; choose another run_name.")
    return study


def sampler_of(seed: int, number: int) -> optuna.samplers.TPESampler:
    """Return what draws the values of a trial: each has its own stream, whichever process it falls to."""
    return optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_START,
        n_ei_candidates=24,
        seed=mixed_seed("search", seed, number) % 2**32,
        multivariate=False,  # as are the next, the default of optuna 4.9, which 5.0 has changed
        group=False,
        constant_liar=False,
    )


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial that ended or failed: trial, its parameters, score, state, error or "".

    The score is that of the last weights, of a pruned trial the last that was measured, and blank for a failed one.
    """
    return pd.DataFrame(
        {
            "trial": trial.number,
            **trial.params,
            "score": np.nan if trial.value is None else trial.value,
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
    seed = mixed_seed("importances") % 2**32
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=64, max_depth=64, seed=seed)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def search_figure(table: pd.DataFrame, importances: Mapping[str, float], metric: str, title: str) -> Figure:
    """Draw a search: its history, the importances, and the trials as lines through their parameters.

    table  columns trial, the parameters, score, state ("complete", "pruned" or "failed"), error
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    (history, bars), (parallel, none) = figure.subplots(2, 2, width_ratios=[1.5, 1])
    none.remove()
    parallel.set_subplotspec(history.get_gridspec()[1, :])
    for state, colour, marker in (("complete", BLUE, "o"), ("pruned", ORANGE, "x")):
        rows = table[table["state"] == state]
        history.scatter(rows["trial"], rows["score"], color=colour, marker=marker, s=18, label=state)
    complete = table.loc[table["state"] == "complete"]
    history.step(
        complete["trial"], complete["score"].cummax(), where="post", color=BLACK, linewidth=1, label="best so far"
    )
    history.set(xlabel="trial", ylabel=metric, title="history")
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    history.grid(alpha=0.3)
    history.legend(fontsize=8)
    names = sorted(importances, key=importances.__getitem__)
    bars.barh(names, [importances[name] for name in names], color=BLUE)
    bars.set(
        xlabel="share of the score's variance (fANOVA)", title="importance" if names else "importance: too few trials"
    )
    if not names:
        bars.set_axis_off()
    _parallel_coordinates(parallel, complete, metric)
    return figure


def _parallel_coordinates(ax: Axes, table: pd.DataFrame, metric: str) -> None:
    """Draw one line per trial through its parameters, each scaled from its least to its largest value."""
    names = [name for name in table if name not in ("trial", "score", "state", "error")]
    scaled, labels = {}, []
    for name in names:
        values = table[name].to_numpy(float)
        low, high = values.min(), values.max()
        labels.append(f"{name}\n{low:.3g} to {high:.3g}" + (" (log)" if name in LOG_PARAMETERS else ""))
        if name in LOG_PARAMETERS:
            values, low, high = np.log(values), np.log(low), np.log(high)
        scaled[name] = (values - low) / max(high - low, 1e-12)
    scores = table["score"].to_numpy(float)
    scale = ScalarMappable(Normalize(scores.min(), scores.max()), "cividis")
    for row in scores.argsort():
        heights = [scaled[name][row] for name in names]
        rise = (scores[row] - scores.min()) / max(np.ptp(scores), 1e-12)
        ax.plot(range(len(names)), heights, color=scale.to_rgba(scores[row]), linewidth=0.6 + 1.4 * rise)
    ax.set_xticks(range(len(names)), labels, fontsize=8)
    ax.set(ylabel="least to largest value tried", title="complete trials; bright and thick: higher score")
    ax.figure.colorbar(scale, ax=ax, label=metric)
