"""Learning-rate range tests of the two trainings: Barlow Twins, and a classifier from random weights."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from dataset_loader.xrays import XRays, open_xrays
from downstream_task.classifier import Classifier
from downstream_task.finetuning import classify_step, engine_config, labelled_subset, lr_factors
from downstream_task.targets import loss_function, read_targets
from self_sup_classes.initialisation import random_backbone
from selfsup_task.hyper_utils import ScanConfig, finetuning
from selfsup_task.lr_range import lr_range_test, suggest
from selfsup_task.pretraining import build_model, twin_step
from utils.hardware import choose_device, make_deterministic, placed
from utils.locks import exclusive_lock
from utils.logging_utils import Run
from utils.memory import keep_freed_memory


class RangeConfig(ScanConfig):
    """The keys of selfsup_task/scan_optimal_lr.py."""

    tasks: list[str]
    schedulers: list[str]
    lr_from: float
    lr_to: float
    range_steps: int


def range_run(task: str, config: RangeConfig) -> Run:
    """The range test of one of TASKS as a run of its own, with lr_range.csv and what it suggests; never run twice."""
    needed = {key: value for key, value in config.items() if key not in ("tasks", "schedulers", "only")}
    run = Run(f"{config['run_name']}/range_{task}", needed)
    if run.summary is None:
        with exclusive_lock(run.folder / ".range.lock", f"at work on {run}"):
            run.reread()
            if run.summary is None:
                _test_range(task, config, run)
    return run


def _test_range(task: str, config: RangeConfig, run: Run) -> None:
    keep_freed_memory()
    make_deterministic()
    if config["threads"] > 0:
        torch.set_num_threads(config["threads"])
    xrays = open_xrays(config, choose_device(config["device"]))
    run.start(data=xrays.facts())
    table = TASKS[task](config, xrays)
    run.save_table("lr_range", table)
    run.finish({**suggest(table)._asdict(), "synthetic": xrays.synthetic})


def _of_pretraining(config: RangeConfig, xrays: XRays) -> pd.DataFrame:
    device, indices = choose_device(config["device"]), xrays.indices("train")
    model = placed(build_model(config), device)
    return lr_range_test(model, twin_step(model, xrays.batch, config), indices, config, _rates(config))


def _of_finetuning(config: RangeConfig, xrays: XRays) -> pd.DataFrame:
    """All layers from random weights, with the scan's batches, optimizer and smaller rate for the backbone."""
    device, whole = choose_device(config["device"]), finetuning(config, "finetune", "random")
    targets = read_targets(xrays, whole)
    train = labelled_subset(xrays, targets, whole)
    backbone = random_backbone(config["backbone"], config["in_channels"], config["random_seed"])
    classifier = placed(Classifier(backbone, len(targets.names), "all"), device)
    step = classify_step(classifier, xrays, loss_function(targets, train, whole["class_weights"]), whole)
    return lr_range_test(classifier, step, train, engine_config(whole), _rates(config), lr_factors(classifier, whole))


def _rates(config: RangeConfig) -> np.ndarray:
    return np.geomspace(config["lr_from"], config["lr_to"], config["range_steps"])


TASKS: Mapping[str, Callable[[Any, XRays], pd.DataFrame]] = {
    "pretraining": _of_pretraining,
    "finetuning": _of_finetuning,
}
