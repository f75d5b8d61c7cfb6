"""Optuna's search over how a classifier is trained: reproducible, resumable, shared between workers."""

import functools
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from dataset_loader.xrays import DataConfig, XRays, open_xrays
from downstream_task.finetuning import (
    FinetuneConfig,
    check_finetune_config,
    classify_step,
    engine_config,
    finetune,
    labelled_subset,
)
from downstream_task.targets import TargetConfig, check_learnable, loss_function, read_targets
from self_sup_classes.classifier import Classifier
from self_sup_classes.initialisation import random_backbone, start_from
from self_sup_classes.provenance import check_unseen
from utils.config import UserError, check_at_least, check_config
from utils.hardware import choose_device, choose_precision
from utils.locks import exclusive_lock, try_lock
from utils.logging_utils import Run
from utils.optimisation import build_optimizer, gradient_step
from utils.progress import progress_bar
from utils.randomness import mixed_seed

NUM_PARAMETERS = 6  # of a trial
RANDOM_START = 10  # trials before TPE takes over from random draws, and before one may be pruned
RECIPES = {(False, False): "none", (True, False): "supervised", (False, True): "crop", (True, True): "supervised+crop"}
METRICS = ("val/balanced_accuracy", "val/auroc")  # of classes, of findings


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
    parameters, so that the study goes on as if nothing had happened; one that fails counts, with its error. Workers
    that share `storage` share the study. Raises UserError for what cannot be searched or opened, and if all trials
    failed.
    """
    _check(config)
    shared = {key: value for key, value in config.items() if key not in ("num_trials", "storage", "threads")}
    run, xrays = Run(config["run_name"], shared), open_xrays(config, choose_device(config["device"]))
    labels = _check_data(config, xrays)
    run.start(alone=False, data=xrays.facts())
    try:
        study = _open_study(config, run, {**shared, "split": xrays.facts()["split_hash"]})
        _search(study, config, xrays, labels, run)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, RuntimeError) as error:
        raise UserError(
            f"the study in {_storage(config, run)} cannot be used ({str(error).splitlines()[0]}); if it is not merely "
            "busy, restore it or give another --storage."
        ) from error
    run.save_table("summary", trials_table(study))
    complete = study.get_trials(states=[TrialState.COMPLETE])
    if not complete:
        raise UserError(f"none of the {config['num_trials']} trials in {run} ended well; summary.csv has their errors.")
    best = settings(study.best_trial.params, labels)
    run.save_json("best", best)
    ended = {
        "pruned": len(study.get_trials(states=[TrialState.PRUNED])),
        "failed": sum("error" in trial.user_attrs for trial in study.trials),
    }
    found = {"score": study.best_value, "best": best, "importances": importances(study), **ended}
    run.finish({"synthetic": xrays.synthetic, "metric": read_targets(xrays, config).metric, "labels": labels, **found})
    return run


def _search(study: optuna.Study, config: SearchConfig, xrays: XRays, labels: int, run: Run) -> None:
    """Run trials until as many as wanted are done, or under way elsewhere."""
    left = config["num_trials"] - len(_counted(study))
    print(f"{max(0, left)} of {config['num_trials']} trials to run", file=sys.stderr)
    if left > 0:
        images = left * labels * sum(config["epochs_range"]) / 2
        minutes = images * _seconds_an_image(config, xrays) / 60
        print(f"about {max(1, round(minutes))} minutes by a probe of a few steps, if none is pruned", file=sys.stderr)
    with progress_bar(config["num_trials"], str(run), len(_counted(study)), unit="trial") as bar:
        while _run_next(study, config, xrays, labels, run):
            bar.update()
            run.save_table("summary", trials_table(study))


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
    """A row for each trial that ended, in order: trial, its parameters, score (its best), state, error or ""."""
    rows = [
        {
            "trial": trial.user_attrs["index"],
            **trial.params,
            "score": max([*trial.intermediate_values.values(), trial.value or 0.0]),
            "state": "failed" if "error" in trial.user_attrs else trial.state.name.lower(),
            "error": trial.user_attrs.get("error", ""),
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


def _seconds_an_image(config: SearchConfig, xrays: XRays, steps: int = 3) -> float:
    """Of training, by a few steps of a network that is thrown away; the first does not count."""
    whole = _finetuning(config, {"batch_size": max(config["batch_sizes"])}, "probe")
    targets, device = read_targets(xrays, config), choose_device(config["device"])
    train = labelled_subset(xrays, targets, whole)
    backbone = random_backbone(config["backbone"], config["in_channels"], 0)
    classifier = Classifier(backbone, len(targets.names), config["trainable"]).to(device)
    step = classify_step(classifier, xrays, loss_function(targets, train, config["class_weights"]), whole)
    optimizer = build_optimizer(classifier, engine_config(whole))
    batch, dtype = (
        torch.from_numpy(np.resize(train, whole["batch_size"])),
        choose_precision(config["precision"], device),
    )
    start = 0.0
    for n in range(steps + 1):
        if n == 1:
            start = time.perf_counter()
        gradient_step(classifier, optimizer, functools.partial(step, batch, 0, n), 0.0, 0.0, dtype)["loss"].item()
    return (time.perf_counter() - start) / steps / len(batch)


def _storage(config: SearchConfig, run: Run) -> str:
    return config["storage"] or f"sqlite:///{run.folder / 'study.db'}"


def _open_study(config: SearchConfig, run: Run, identity: dict[str, Any]) -> optuna.Study:
    """The study, which is of this config and split; UserError if it is of another."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with exclusive_lock(run.folder / ".ask.lock", "opening the study"):
        study = optuna.create_study(
            storage=_storage(config, run),
            study_name=config["run_name"],
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=RANDOM_START, n_warmup_steps=1),
        )
        if study.user_attrs.get("config", identity) != identity:
            raise UserError(
                f"the study {config['run_name']!r} in {_storage(config, run)} is of another config or other images; "
                "choose another run_name."
            )
        study.set_user_attr("config", identity)
    return study


def _run_next(study: optuna.Study, config: SearchConfig, xrays: XRays, labels: int, run: Run) -> bool:
    """Run the next trial, or one whose process died; False if enough are done or under way."""
    with exclusive_lock(run.folder / ".ask.lock", "choosing a trial"):
        _put_back_dead(study, config, run)
        if len(_counted(study)) + len(study.get_trials(states=[TrialState.RUNNING])) >= config["num_trials"]:
            return False
        trial = study.ask()
        index = trial.user_attrs.get("index", _next_index(study, trial.number))
        trial.set_user_attr("machine", _machine())
        trial.set_user_attr("index", index)
        lock = try_lock(_lock_file(run, index))
    assert lock is not None
    with lock:
        # TPE's draws are a function of (seed, index) and of the trials that are done
        seed = mixed_seed(config["random_seed"], index) % 2**32
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_START, seed=seed, multivariate=False, constant_liar=False
        )
        _train(study, trial, _finetuning(config, settings(_drawn(trial, config), labels), f"trial_{index:03d}"), xrays)
    return True


def _train(study: optuna.Study, trial: Trial, config: FinetuneConfig, xrays: XRays) -> None:
    """Fine-tune as the trial says and tell the study how it ended."""
    folder = Run(config["run_name"], config).folder

    def report(epoch: int, score: float) -> None:
        _report(study, trial, folder)  # of an earlier life
        if epoch not in study.trials[trial.number].intermediate_values:
            trial.report(score, epoch)
        if epoch < config["evaluations"] and trial.should_prune():
            raise optuna.TrialPruned

    try:
        finished = finetune(config, xrays, show_progress=False, after_evaluation=report)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except (UserError, RuntimeError, ValueError) as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        trial.set_user_attr("error", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        study.tell(trial, state=TrialState.FAIL)
    else:
        assert finished.summary is not None
        _report(study, trial, folder)
        study.tell(trial, finished.summary["score"])


def _report(study: optuna.Study, trial: Trial, folder: Path) -> None:
    """Tell the study every score in the run's metrics.csv that it does not know."""
    if not (folder / "metrics.csv").exists():
        return
    table, known = pd.read_csv(folder / "metrics.csv"), study.trials[trial.number].intermediate_values
    metric = next(name for name in METRICS if name in table)
    for epoch, score in table[["epoch", metric]].to_numpy():
        if int(epoch) not in known:
            trial.report(float(score), int(epoch))


def _put_back_dead(study: optuna.Study, config: SearchConfig, run: Run) -> None:
    """Trials under way whose process on this machine is gone wait to be run again, with their index and parameters."""
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        unmarked = _machine() if not config["storage"] else ""  # killed before it could say where it ran
        if trial.user_attrs.get("machine", unmarked) != _machine():
            continue
        index = trial.user_attrs.get("index", _next_index(study, trial.number))
        lock = try_lock(_lock_file(run, index))
        if lock is not None:
            lock.close()
            complete = trial.params if len(trial.params) == NUM_PARAMETERS else {}  # else all are drawn again
            study.enqueue_trial(complete, user_attrs={"index": index})
            study.tell(trial.number, state=TrialState.FAIL)


def _machine() -> str:
    return f"{platform.node()} {uuid.getnode():x}"


def _next_index(study: optuna.Study, number: int) -> int:
    """The index of a fresh trial: its number, less the numbers that trials which were run again took up."""
    failed = study.get_trials(states=[TrialState.FAIL])
    return number - sum("error" not in trial.user_attrs and trial.number < number for trial in failed)


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
    """Trials that ended: well, pruned, or by an error. A dead process's is run again under another number."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in study.trials if trial.state in ended or "error" in trial.user_attrs]
