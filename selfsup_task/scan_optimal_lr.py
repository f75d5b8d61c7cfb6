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

if __name__ == "__main__":
    config = flags(
        config, __doc__, __file__, *FILES, real_xrays=REAL_XRAYS, best="pretraining"
    )  # before the slow imports

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dataset_loader.xrays import XRays
from downstream_task.classifier import Classifier
from downstream_task.finetuning import classify_step, engine_config, labelled_subset, lr_factors
from downstream_task.targets import loss_function, read_targets
from self_sup_classes.initialisation import start_from
from selfsup_task import scan_plots
from selfsup_task.hyper_utils import Scan, ScanConfig, finetuning
from selfsup_task.lr_range import lr_range_test, suggest
from selfsup_task.pretraining import build_model, partners_of, passes_of, twin_step
from utils import plots
from utils.config import RUNS_ROOT, UserError, as_dict, between, one_of
from utils.distributed import exclusive_lock
from utils.hardware import placed
from utils.jobs import with_jobs
from utils.logging_utils import Run
from utils.optimisation import SCHEDULERS


@dataclass(frozen=True, kw_only=True)
class RatesConfig(ScanConfig):
    """The keys of this script."""

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
            found = suggest(table)._asdict()
            title = plots.marked(f"Learning-rate range test, {task}", xrays.synthetic)
            run.save_table("lr_range", table)
            run.save_figure("lr_range", scan_plots.lr_range(table, found, title))
            run.finish({**found, "synthetic": xrays.synthetic})
    return run


def range_of_pretraining(config: RatesConfig, xrays: XRays, lrs: np.ndarray) -> pd.DataFrame:
    """Test the rates on Barlow Twins, from the weights that trials start from."""
    partners = partners_of(xrays, config)
    model = placed(build_model(config), xrays.store.device)
    step = twin_step(passes_of(model, config), xrays.batch, config, partners)
    return lr_range_test(model, step, xrays.pretraining_indices("train"), config, lrs)


def range_of_finetuning(config: RatesConfig, xrays: XRays, lrs: np.ndarray) -> pd.DataFrame:
    """Test the rates on a classifier, all layers, from the weights that trials start from, trained as trials are."""
    part = finetuning(config, "finetune", "random")
    targets = read_targets(xrays, part)
    train = labelled_subset(xrays, targets, part.num_labels, part.label_draw, config.split_seed)
    backbone = start_from(config.start, config.backbone, config.in_channels, config.random_seed).backbone
    classifier = placed(Classifier(backbone, len(targets.names), "all"), xrays.store.device)
    step = classify_step(classifier, xrays, loss_function(targets, train, part.class_weights), part)
    return lr_range_test(classifier, step, train, engine_config(part, len(train)), lrs, lr_factors(classifier, part))


def report(found: Mapping[str, float | None]) -> str:
    """Return what a range test suggests, as text."""
    ended = "never diverged" if found["diverged"] is None else f"diverged at {found['diverged']:.2g}"
    return (
        f"the smoothed loss falls steepest at lr {found['steepest']:.2g}, is lowest at {found['lowest']:.2g}, {ended}"
    )


if __name__ == "__main__":
    constant = {"scheduler": "constant", "warmup_epochs": 0, "random_seed": 0}  # of the range tests
    run_script(with_jobs(main), RatesConfig, {**constant, **config})
