"""Optuna's search over how a classifier is trained: reproducible, resumable, shared between workers."""

import functools
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.trial import Trial, TrialState

from dataset_loader.xrays import DataConfig, XRays, open_xrays
from downstream_task.classifier import Classifier
from downstream_task.finetuning import (
    FinetuneConfig,
    check_finetune_config,
    classify_step,
    engine_config,
    finetune,
    labelled_subset,
)
from downstream_task.shared_study import BROKEN, ended, importances, next_turn, open_study, report_stored, trials_table
from downstream_task.targets import TargetConfig, check_learnable, loss_function, read_targets
from downstream_task.trials import check_lists
from self_sup_classes.initialisation import random_backbone, start_from
from self_sup_classes.provenance import check_unseen
from utils.config import UserError, check_at_least, check_config
from utils.hardware import choose_device, choose_precision, median_seconds, placed
from utils.locks import exclusive_lock
from utils.logging_utils import Run
from utils.optimisation import build_optimizer, gradient_step
from utils.progress import progress_bar
from utils.wording import about_minutes

NUM_PARAMETERS = 6  # of a trial
RECIPES = {(False, False): "none", (True, False): "supervised", (False, True): "crop", (True, True): "supervised+crop"}


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
    identity = {**shared, "split": xrays.facts()["split_hash"]}
    study = open_study(config["storage"], config["run_name"], run.folder, identity)
    _check_same_study(study, run)
    try:
        _search(study, config, xrays, labels, run)
    except BROKEN as error:
        raise UserError(f"the study broke off ({str(error).splitlines()[0]}); the same command goes on.") from error
    with exclusive_lock(run.folder / ".table.lock", "writing the results"):
        _conclude(study, config, xrays, labels, run)
    return run


def _conclude(study: optuna.Study, config: SearchConfig, xrays: XRays, labels: int, run: Run) -> None:
    """The table, the winner and the summary of the trials so far; UserError if none ended well."""
    run.save_table("summary", trials_table(study))
    complete = study.get_trials(states=[TrialState.COMPLETE])
    if not complete:
        raise UserError(f"none of the {config['num_trials']} trials in {run} ended well; summary.csv has their errors.")
    best = settings(study.best_trial.params, labels)
    shared = {key: config[key] for key in ("head", "optimizer", "backbone_lr_factor")}
    best = {"lrs": [best.pop("lr")], **best, **shared}  # as a comparison's dict has them
    run.save_json("best", best)
    others = {
        "pruned": len(study.get_trials(states=[TrialState.PRUNED])),
        "failed": sum("error" in trial.user_attrs for trial in study.trials),
    }
    found = {"score": study.best_value, "best": best, "importances": importances(study), **others}
    run.finish({"synthetic": xrays.synthetic, "metric": read_targets(xrays, config).metric, "labels": labels, **found})


def _check_same_study(study: optuna.Study, run: Run) -> None:
    """Raise UserError if the folder has results of a study in another storage, which would be lost."""
    table = run.folder / "summary.csv"
    known = {trial.user_attrs.get("index") for trial in study.trials}
    lost = set(pd.read_csv(table)["trial"]) - known if table.exists() else set()
    if lost:
        raise UserError(
            f"{run} holds {len(lost)} trials that this study does not have; give the --storage that it was begun with, "
            "or another run_name."
        )


def _search(study: optuna.Study, config: SearchConfig, xrays: XRays, labels: int, run: Run) -> None:
    """Run trials until as many as wanted are done, or under way elsewhere."""
    left = config["num_trials"] - len(ended(study))
    print(f"{max(0, left)} of {config['num_trials']} trials to run", file=sys.stderr)
    if left > 0:
        images = left * labels * sum(config["epochs_range"]) / 2
        forecast = about_minutes(images * _seconds_an_image(config, xrays))
        print(f"{forecast} by a probe of a few steps, if none is pruned", file=sys.stderr)
    with progress_bar(config["num_trials"], str(run), len(ended(study)), unit="trial") as bar:
        while turn := next_turn(study, run.folder, config["num_trials"], config["random_seed"], NUM_PARAMETERS):
            with turn.lock:
                chosen = settings(_drawn(turn.trial, config), labels)
                _train(study, turn.trial, _finetuning(config, chosen, f"trial_{turn.index:03d}"), xrays)
            bar.update()
            with exclusive_lock(run.folder / ".table.lock", "writing the results"):
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


def _check(config: SearchConfig) -> None:
    check_config(config, SearchConfig)
    check_at_least("num_trials", config["num_trials"], 1)
    for key in ("lr_range", "weight_decay_range", "epochs_range"):
        bounds = config[key]
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise UserError(f"{key} is {bounds}; expected the least and the largest value, both above 0.")
    check_lists(config, "batch_sizes")
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
    """Of training, by a few steps of a network that is thrown away."""
    whole = _finetuning(config, {"batch_size": max(config["batch_sizes"])}, "probe")
    targets, device = read_targets(xrays, config), choose_device(config["device"])
    train = labelled_subset(xrays, targets, whole)
    backbone = random_backbone(config["backbone"], config["in_channels"], 0)
    classifier = placed(Classifier(backbone, len(targets.names), config["trainable"]), device)
    step = classify_step(classifier, xrays, loss_function(targets, train, config["class_weights"]), whole)
    optimizer, dtype = build_optimizer(classifier, engine_config(whole)), choose_precision(config["precision"], device)
    batch = torch.from_numpy(np.resize(train, whole["batch_size"]))
    work = functools.partial(gradient_step, classifier, optimizer, lambda: step(batch, 0, 0), 0.0, 0.0, dtype)
    return median_seconds(work, steps, device) / len(batch)


def _train(study: optuna.Study, trial: Trial, config: FinetuneConfig, xrays: XRays) -> None:
    """Fine-tune as the trial says and tell the study how it ended."""
    metrics = Run(config["run_name"], config).folder / "metrics.csv"

    def report(epoch: int, score: float) -> None:
        report_stored(study, trial, metrics)  # of an earlier life
        if epoch not in study.trials[trial.number].intermediate_values:
            trial.report(score, epoch)
        if epoch < config["evaluations"] and trial.should_prune():
            raise optuna.TrialPruned

    try:
        finished = finetune(config, xrays, show_progress=False, after_evaluation=report)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except BROKEN:
        raise
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        trial.set_user_attr("error", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        study.tell(trial, state=TrialState.FAIL)
    else:
        assert finished.summary is not None
        report_stored(study, trial, metrics)
        study.tell(trial, finished.summary["score"])


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
