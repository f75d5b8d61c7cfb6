"""Optuna's search over how a classifier is trained: reproducible, resumable, shared between workers."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from dataset_loader.xrays import DataConfig, XRays, open_xrays
from downstream_task.finetuning import FinetuneConfig, check_finetune_config, finetune, labelled_subset
from downstream_task.targets import TargetConfig, check_learnable, read_targets
from self_sup_classes.initialisation import start_from
from self_sup_classes.provenance import check_unseen
from utils.config import UserError, check_at_least, check_config
from utils.hardware import choose_device
from utils.locks import exclusive_lock, try_lock
from utils.logging_utils import Run
from utils.progress import progress_bar
from utils.randomness import mixed_seed

RANDOM_START = 10  # trials before TPE takes over from random draws, and before one may be pruned
RECIPES = {(False, False): "none", (True, False): "supervised", (False, True): "crop", (True, True): "supervised+crop"}
METRICS = ("val/balanced_accuracy", "val/auroc")  # of classes, of findings
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


class SearchConfig(DataConfig, TargetConfig):
    """Every key of downstream_task/scan_best_supervised_hyperparameters.py."""

    run_name: str
    random_seed: int
    encoder: str
    trainable: str
    backbone: str
    in_channels: int
    allow_seen: bool
    label_fraction: float
    img_res: int
    head: str
    optimizer: str
    backbone_lr_factor: float
    precision: str
    device: str
    threads: int
    num_trials: int
    storage: str
    lr_range: list[float]
    weight_decay_range: list[float]
    epochs_range: list[int]
    batch_sizes: list[int]


def search(config: SearchConfig) -> Run:
    """Optuna's study (TPE with a random start, median pruner) up to `num_trials` trials.

    summary.csv gets a row a trial, best.json the winner's settings. A trial whose process died is run again with its
    parameters, so that the study goes on as if nothing had happened. Workers that share `storage` share the study.
    """
    _check(config)
    shared = {key: value for key, value in config.items() if key not in ("num_trials", "storage", "threads")}
    run, xrays = Run(config["run_name"], shared), open_xrays(config, choose_device(config["device"]))
    labels = _check_data(config, xrays)
    run.start(alone=False, data=xrays.facts())
    study = _open_study(config, run)
    with progress_bar(config["num_trials"], str(run), len(_counted(study)), unit="trial") as bar:
        while len(_counted(study)) < config["num_trials"]:
            _run_next(study, config, xrays, labels, run)
            bar.update()
            run.save_table("summary", trials_table(study))
    run.save_table("summary", trials_table(study))
    best = settings(study.best_trial.params, labels)
    run.save_json("best", best)
    metric, pruned = read_targets(xrays, config).metric, len(study.get_trials(states=[TrialState.PRUNED]))
    found = {"score": study.best_value, "best": best, "importances": importances(study)}
    run.finish({"synthetic": xrays.synthetic, "metric": metric, "labels": labels, "pruned": pruned, **found})
    return run


def settings(params: Mapping[str, Any], labels: int) -> dict[str, Any]:
    """The keys of a fine-tuning that a trial's parameters stand for; an evaluation each epoch."""
    batch_size, epochs = params["batch_size"], params["epochs"]
    return {
        "lr": params["lr"],
        "optimizer_weight_decay": params["weight_decay"],
        "batch_size": batch_size,
        "num_steps": epochs * max(1, labels // batch_size),
        "evaluations": epochs,
        "recipe": RECIPES[params["flip"], params["crop"]],
    }


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """A row for each finished or pruned trial in order: trial, its parameters, score (its best so far), state."""
    rows = [
        {
            "trial": trial.user_attrs["index"],
            **trial.params,
            "score": max(trial.intermediate_values.values()),
            "state": trial.state.name.lower(),
        }
        for trial in _counted(study)
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


def _check(config: SearchConfig) -> None:
    check_config(config, SearchConfig)
    check_at_least("num_trials", config["num_trials"], 1)
    for key in ("lr_range", "weight_decay_range", "epochs_range"):
        bounds = config[key]
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise UserError(f"{key} is {bounds}; expected the least and the largest value, both above 0.")
    if not config["batch_sizes"]:
        raise UserError("batch_sizes is empty; give at least one.")
    for batch_size in config["batch_sizes"]:
        params = {"lr": config["lr_range"][0], "weight_decay": 0.0, "epochs": 1, "flip": True, "crop": True}
        check_finetune_config(_finetuning(config, settings({**params, "batch_size": batch_size}, 1), "check"))


def _check_data(config: SearchConfig, xrays: XRays) -> int:
    """How many labels the trials learn from; UserError if they cannot, or if the encoder has seen held-out images."""
    targets = read_targets(xrays, config)
    train = labelled_subset(xrays, targets, _finetuning(config, {}, "check"))
    check_learnable(targets, {"the labelled subset": train, "the validation part": xrays.indices("val")})
    start = start_from(config["encoder"], config["backbone"], config["in_channels"], config["random_seed"])
    check_unseen(start.provenance, xrays, config["allow_seen"], config["encoder"])
    return len(train)


def _open_study(config: SearchConfig, run: Run) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = config["storage"] or f"sqlite:///{run.folder / 'study.db'}"
    try:
        return optuna.create_study(
            storage=storage,
            study_name=config["run_name"],
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=RANDOM_START, n_warmup_steps=1),
        )
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise UserError(
            f"the study in {storage} cannot be opened ({str(error).splitlines()[0]}); restore it, delete it to start "
            "again, or give another --storage."
        ) from error


def _run_next(study: optuna.Study, config: SearchConfig, xrays: XRays, labels: int, run: Run) -> None:
    """The next trial, or one whose process died."""
    with exclusive_lock(run.folder / ".ask.lock", "choosing a trial"):
        _put_back_dead(study, run)
        trial = study.ask()
        index = trial.user_attrs.get("index", _next_index(study, trial.number))
        trial.set_user_attr("index", index)
        trial.set_user_attr("host", platform.node())
        lock = try_lock(_lock_file(run, index))
    assert lock is not None
    with lock:
        # TPE's draws are a function of (seed, index) and of the trials that are done
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_START, seed=mixed_seed(config["random_seed"], index) % 2**32
        )
        whole = _finetuning(config, settings(_drawn(trial, config), labels), f"trial_{index:03d}")
        try:
            finished = finetune(
                whole, xrays, show_progress=False, after_evaluation=lambda one: _report(study, trial, one)
            )
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            assert finished.summary is not None
            _report_scores(study, trial, finished)
            study.tell(trial, finished.summary["score"])


def _put_back_dead(study: optuna.Study, run: Run) -> None:
    """Trials under way whose process on this machine is gone wait to be run again, with their index and parameters."""
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        index = trial.user_attrs.get("index", _next_index(study, trial.number))
        if trial.user_attrs.get("host", platform.node()) != platform.node():
            continue
        lock = try_lock(_lock_file(run, index))
        if lock is not None:
            lock.close()
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={"index": index})


def _next_index(study: optuna.Study, number: int) -> int:
    """The index of a fresh trial: its number, less the numbers that trials which were run again took up."""
    return number - sum(trial.state == TrialState.FAIL and trial.number < number for trial in study.trials)


def _lock_file(run: Run, index: int) -> Path:
    return run.folder / f".trial_{index:03d}.lock"


def _drawn(trial: Trial, config: SearchConfig) -> dict[str, Any]:
    """The trial's parameters."""
    (lr_low, lr_high), (decay_low, decay_high) = config["lr_range"], config["weight_decay_range"]
    return {
        "lr": trial.suggest_float("lr", lr_low, lr_high, log=True),
        "weight_decay": trial.suggest_float("weight_decay", decay_low, decay_high, log=True),
        "batch_size": trial.suggest_categorical("batch_size", config["batch_sizes"]),
        "epochs": trial.suggest_int("epochs", *config["epochs_range"]),
        "flip": trial.suggest_categorical("flip", [True, False]),
        "crop": trial.suggest_categorical("crop", [True, False]),
    }


def _report(study: optuna.Study, trial: Trial, run: Run) -> None:
    """Tell optuna the scores so far; TrialPruned if they are below the median of earlier trials."""
    _report_scores(study, trial, run)
    if trial.should_prune():
        raise optuna.TrialPruned


def _report_scores(study: optuna.Study, trial: Trial, run: Run) -> None:
    """Every evaluation's, since a trial that is run again has to tell those of its first life too."""
    reported = study.trials[trial.number].intermediate_values
    for row in run.rows:
        if row["epoch"] not in reported:
            trial.report(next(row[key] for key in METRICS if key in row), int(row["epoch"]))


def _finetuning(config: SearchConfig, chosen: Mapping[str, Any], name: str) -> FinetuneConfig:
    """The fine-tuning of a trial; `chosen` overrides what does not matter to the caller."""
    shared = {key: config[key] for key in SearchConfig.__annotations__ if key in FinetuneConfig.__annotations__}
    fillers = {"recipe": "none", "num_steps": 1, "evaluations": 1, "batch_size": 2, "lr": 1e-3}
    whole: Any = {
        **shared,
        **fillers,
        "optimizer_weight_decay": 0.0,
        "method": "finetune",
        "label_draw": 0,
        **chosen,
        "run_name": f"{config['run_name']}/{name}",
    }
    return whole


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=COUNTED)
