"""Which learning rate, and which schedule? A range test for both trainings, then schedules on equal budgets.

    python selfsup_task/scan_optimal_lr.py
    python selfsup_task/scan_optimal_lr.py --dataset covid --recipe base --projector-dims 512 1024 1024

The range test raises the learning rate step by step and discards the network. Take a rate between the steepest fall
of the smoothed loss and its lowest point, below where it diverges. Then each schedule gets a pretraining at the
config's `lr` for each seed, judged by a linear probe and a full fine-tuning on validation. runs/<run_name>/ holds
range_<task>/lr_range.csv, schedulers/summary.csv and ranking.csv, best.json for `train_barlow_twins.py --from`, and the
figures. By default it takes a quarter of an hour on two cores on synthetic X-rays, too short to choose by. The same
command again resumes the scan.
"""

from typing import Annotated, Any

from selfsup_task.scan_base import FILES, REAL_XRAYS, SCAN_BASE, without
from utils.scripts import flags, run_script

config: dict[str, Any] = {
    # selfsup_task/scan_base.py: the pretraining and fine-tuning that are the same
    **without(SCAN_BASE, "scheduler", "warmup_epochs"),
    "num_epochs": 3,
    "run_name": "scans/{dataset}_lr",  # runs/<run_name>/; {dataset} is the name of the data set
    "tasks": ["pretraining", "finetuning"],  # what a range test is run for
    "lr_from": 1e-6,  # where the range test begins
    "lr_to": 1.0,  # where it ends, if it does not diverge before
    "range_steps": 60,  # optimiser steps of a range test
    "schedulers": ["constant", "multiplicative", "cosine", "warmup+cosine"],  # compared on equal budgets
}

if __name__ == "__main__":  # before the slow imports
    config = flags(config, __doc__, __file__, *FILES, real_xrays=REAL_XRAYS, best="pretraining")

import copy
import functools
import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from dataset_loader.xrays import XRays
from downstream_task.classifier import Classifier
from downstream_task.finetuning import classify_step, engine_config, labelled_subset, lr_factors
from downstream_task.targets import loss_function, read_targets
from self_sup_classes.initialisation import start_from
from selfsup_task import scan_plots
from selfsup_task.hyper_utils import Scan, ScanConfig, finetuning
from selfsup_task.pretraining import build_model, loss_of_views, partners_of, pretraining_step
from utils import plots
from utils.config import RUNS_ROOT, UserError, as_dict, between, one_of
from utils.distributed import exclusive_lock
from utils.hardware import choose_precision, placed
from utils.jobs import with_jobs
from utils.logging_utils import Run
from utils.optimisation import SCHEDULERS, FitConfig, build_optimizer, gradient_step
from utils.scripts import progress_bar
from utils.seeds import endless_order, mixed_seed
from utils.training_utils import StepFunction

SMOOTHING = 0.8  # of the exponential mean over steps
DIVERGED = 3.0  # times its lowest, the smoothed loss ends the test
SETTLING = 0.1  # of the steps, in which too few losses have been seen for that


@dataclass(frozen=True, kw_only=True)
class RatesConfig(ScanConfig):
    tasks: list[Annotated[str, one_of(["pretraining", "finetuning"])]]
    schedulers: list[Annotated[str, one_of([*SCHEDULERS, *(f"warmup+{name}" for name in SCHEDULERS)])]]
    lr_from: Annotated[float, between(1e-12, 1e3)]
    lr_to: float
    range_steps: Annotated[int, between(10, 10_000)]

    def __post_init__(self) -> None:
        super().__post_init__()
        between(10 * self.lr_from, 1e6)("lr_to", self.lr_to)


def main(config: RatesConfig) -> None:
    """Test a range of rates for each task, then pretrain with each schedule and judge the encoders."""
    if (RUNS_ROOT / config.run_name / "config.json").exists():
        raise UserError(f"runs/{config.run_name} holds another run; choose another run_name.")
    settings = {name: schedule(name, config.num_epochs) for name in config.schedulers}
    lists = ["schedulers", "tasks", "lr_from", "lr_to", "range_steps"]
    scan = Scan(replace(config, run_name=f"{config.run_name}/schedulers"), settings, lists)

    for task in config.tasks:
        run = range_run(task, config, scan.xrays)
        print(f"{task}: {report(run.summary or {})}   {run}/figures/lr_range.png")

    ranking = scan.run_trials()  # each a pretraining, a linear probe and a fine-tuning
    seed = config.seeds[0]
    losses = {
        name: pd.read_csv(scan.run.folder / f"{name}_s{seed}" / "pretrain" / "metrics.csv")
        for name in ranking["setting"]
    }
    title = plots.marked("Schedules on equal budgets", scan.xrays.synthetic)
    scan.run.save_figure("schedulers", scan_plots.schedules(ranking, scan.start, losses, title))
    scan.print_results(ranking)


def schedule(name: str, num_epochs: int) -> dict[str, Any]:
    """Return the config keys of a schedule: "warmup+cosine" is a cosine after a tenth of the epochs, at least one."""
    warmup = max(1, num_epochs // 10) if name.startswith("warmup+") else 0
    if warmup >= num_epochs:
        raise UserError(f"{name} needs 2 epochs or more, and num_epochs is {num_epochs}; leave it out of schedulers.")
    return {"scheduler": name.removeprefix("warmup+"), "warmup_epochs": warmup}


def range_run(task: str, config: RatesConfig, xrays: XRays) -> Run:
    """Return the finished range test of a task: lr_range.csv, its figure, and a summary of what it suggests."""
    left_out = ("tasks", "schedulers", "only", "keep_all", "seeds", "halving")
    needed = {key: value for key, value in as_dict(config).items() if key not in left_out}
    name = f"{config.run_name}/range_{task}"
    run = Run(name, needed, "learning rates", look=lambda: {"data": xrays.facts()}, keys_of=RatesConfig)
    with exclusive_lock(run.folder / ".range.lock", f"running {run}"):
        run.reread()
        if run.summary is None:
            run.start(data=xrays.facts())
            lrs = np.geomspace(config.lr_from, config.lr_to, config.range_steps)
            table = (range_of_pretraining if task == "pretraining" else range_of_finetuning)(config, xrays, lrs)
            gc.collect()  # on a GPU the graphs of a pretraining refer to themselves, and hold memory
            found = suggest(table)
            title = plots.marked(f"Learning-rate range test, {task}", xrays.synthetic)
            run.save_table("lr_range", table)
            run.save_figure("lr_range", scan_plots.lr_range(table, found, title))
            run.finish({**found, "synthetic": xrays.synthetic})
    return run


def range_of_pretraining(config: RatesConfig, xrays: XRays, lrs: np.ndarray) -> pd.DataFrame:
    """Test the rates on Barlow Twins, from the weights that trials start from."""
    partners = partners_of(xrays, config)
    model = placed(build_model(config), xrays.store.device)
    step = pretraining_step(loss_of_views(model, config), xrays.batch, config, partners)
    return lr_range_test(model, step, xrays.pretraining_indices("train"), config, lrs)


def range_of_finetuning(config: RatesConfig, xrays: XRays, lrs: np.ndarray) -> pd.DataFrame:
    """Test the rates on a classifier, all layers, from the weights that trials start from, trained as trials are."""
    tuning = finetuning(config, "finetune", "random")
    targets = read_targets(xrays, tuning)
    train = labelled_subset(xrays, targets, tuning.num_labels, tuning.label_draw, config.split_seed)
    backbone = start_from(config.start, config.backbone, config.in_channels, config.random_seed).backbone
    classifier = placed(Classifier(backbone, len(targets.names), "all"), xrays.store.device)
    step = classify_step(classifier, xrays, loss_function(targets, train, tuning.class_weights), tuning)
    return lr_range_test(
        classifier, step, train, engine_config(tuning, len(train)), lrs, lr_factors(classifier, tuning)
    )


def lr_range_test(
    module: nn.Module,
    step: StepFunction,
    indices: np.ndarray,
    config: FitConfig,
    lrs: np.ndarray,
    lr_factors: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Take a step at each of the growing learning rates `lrs` (Smith 2017, arXiv 1506.01186, section 3.3).

    Returns one row per step with lr, loss and smoothed, up to where the smoothed loss is DIVERGED times its lowest or
    the loss is not finite. Afterwards the module is as it was, without gradients, however the test ends.
    Raises UserError if the first loss is not finite.
    """
    before, was_training = copy.deepcopy(module.state_dict()), module.training
    optimizer = build_optimizer(module, config, lr_factors)
    num_steps = len(lrs)
    dtype = choose_precision(config.precision, next(module.parameters()).device)
    order = torch.from_numpy(endless_order(indices, config.random_seed, 0, num_steps * config.batch_size))
    rows: list[dict[str, float]] = []
    try:
        module.train()
        with progress_bar(num_steps, "learning rates", unit="step") as bar:
            for n, (lr, batch) in enumerate(zip(lrs, order.chunk(num_steps), strict=True)):
                torch.manual_seed(mixed_seed("dropout of a range test", config.random_seed, n))
                forward = functools.partial(step, batch, 0, n)
                metrics = gradient_step(module, optimizer, forward, float(lr), config.gradient_clip, dtype)
                loss = metrics["loss"].item()
                weights = SMOOTHING ** np.arange(n + 1)[::-1]  # of an exponential mean without the bias of its start
                smoothed = (weights * [*(row["loss"] for row in rows), loss]).sum() / weights.sum()
                rows.append({"lr": float(lr), "loss": loss, "smoothed": float(smoothed)})
                bar.update()
                too_large = rows[-1]["smoothed"] > DIVERGED * min(row["smoothed"] for row in rows)
                if not math.isfinite(loss) or (too_large and n >= SETTLING * num_steps):
                    break
    finally:
        module.load_state_dict(before)
        module.train(was_training)
        module.zero_grad(set_to_none=True)
    if not math.isfinite(rows[0]["loss"]):
        raise UserError(f"the loss is not finite at the first learning rate, {lrs[0]:.2g}; lower lr_from.")
    return pd.DataFrame(rows)


def suggest(table: pd.DataFrame) -> dict[str, float | None]:
    """Return the learning rates that a range test's table suggests: steepest, lowest and diverged, or None for that.

    The steepest fall is that of the smoothed loss over log(lr).
    """
    lrs, smoothed = table[["lr", "smoothed"]].to_numpy().T
    lrs, smoothed = lrs[np.isfinite(smoothed)], smoothed[np.isfinite(smoothed)]
    bottom = int(smoothed.argmin())
    window = max(2, len(table) // 15)  # steps each side: the slope between neighbours is noise
    middles = np.arange(window, max(window + 1, bottom - window + 1)).clip(max=len(smoothed) - 1)
    ahead, behind = (middles + window).clip(max=len(smoothed) - 1), (middles - window).clip(min=0)
    steepest = middles[(smoothed[ahead] - smoothed[behind]).argmin()]
    ended = smoothed[-1] > DIVERGED * smoothed.min() or len(smoothed) < len(table)
    diverged = float(table["lr"].iloc[-1]) if ended else None
    return {"steepest": float(lrs[steepest]), "lowest": float(lrs[bottom]), "diverged": diverged}


def report(found: Mapping[str, float | None]) -> str:
    """Return what a range test suggests, as text."""
    ended = "never diverged" if found["diverged"] is None else f"diverged at {found['diverged']:.2g}"
    return (
        f"the smoothed loss falls steepest at lr {found['steepest']:.2g}, is lowest at {found['lowest']:.2g}, {ended}"
    )


if __name__ == "__main__":
    constant = {"scheduler": "constant", "warmup_epochs": 0, "random_seed": 0}  # of the range tests
    run_script(with_jobs(main), RatesConfig, {**constant, **config})
