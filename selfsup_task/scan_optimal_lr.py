"""Which learning rate, and which schedule? A range test for both trainings, then schedules on equal budgets.

    python selfsup_task/scan_optimal_lr.py
    python selfsup_task/scan_optimal_lr.py --dataset covid --img-res 64 --store-res 72 --num-epochs 20 \\
        --recipe base --batch-size 128 --projector-dims 512 1024 1024 --run-name scans/covid_lr

The range test raises the learning rate step by step and throws the network away. Take a rate between the steepest fall
of the smoothed loss and its lowest point, below where it diverges. Then each schedule gets a pretraining at the
config's `lr`, judged by a linear probe and a full fine-tuning on validation. runs/<run_name>/ holds
range_<task>/lr_range.csv, schedulers/summary.csv and the figures. As it stands, minutes on two cores on synthetic
X-rays, too short to choose by. The same command again goes on where it stopped.
"""

from typing import Any

from selfsup_task import scan_base
from selfsup_task.scan_base import SCAN_BASE, without
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
    config = flags(config, __doc__, __file__, scan_base.__file__)  # before the slow imports

import pandas as pd
from matplotlib.figure import Figure

from selfsup_task.hyper_utils import open_scan, run_scan
from selfsup_task.lr_ranges import TASKS, range_run
from utils import plots, scan_plots
from utils.config import UserError, check_at_least, check_choice
from utils.logging_utils import RUNS_ROOT, Run
from utils.optimisation import SCHEDULERS


def main(config: ScanConfig) -> None:
    """Test the ranges, compare the schedules."""
    for task in config.tasks:
        check_choice("tasks", task, list(TASKS))
    for name in config.schedulers:
        check_choice("schedulers", name, [*SCHEDULERS, *(f"warmup+{known}" for known in SCHEDULERS)])
    for key, least in {"lr_from": 1e-12, "lr_to": 10 * config.lr_from, "range_steps": 10}.items():
        check_at_least(key, config[key], least)
    if (RUNS_ROOT / config.run_name / "config.json").exists():
        raise UserError(f"runs/{config.run_name} holds another run; choose another run_name.")
    trials = {name: schedule(name, config.num_epochs) for name in config.schedulers}
    schedulers = {**config, "run_name": f"{config.run_name}/schedulers"}
    scan = open_scan(schedulers, trials, varied=["schedulers", "tasks", "lr_from", "lr_to", "range_steps"])
    for task in config.tasks:
        print(report(task, range_run(task, {**config, "scheduler": "constant", "warmup_epochs": 0})))

    def draw(finished: pd.DataFrame, random: float) -> Figure:
        losses = {name: pd.read_csv(scan.run.folder / name / "pretrain" / "metrics.csv") for name in finished["trial"]}
        title = plots.marked("Schedules on equal budgets", finished["synthetic"].iloc[0])
        return scan_plots.schedules(finished, random, losses, title)

    run_scan(scan, draw)


def schedule(name: str, num_epochs: int) -> dict[str, Any]:
    """ "warmup+cosine" is a cosine after a tenth of the epochs, at least one."""
    warmup = max(1, num_epochs // 10) if name.startswith("warmup+") else 0
    if warmup >= num_epochs:
        raise UserError(f"{name} needs 2 epochs or more, and num_epochs is {num_epochs}; leave it out of schedulers.")
    return {"scheduler": name.removeprefix("warmup+"), "warmup_epochs": warmup}


def report(task: str, run: Run) -> str:
    """Draw a range test; what it suggests, as text."""
    assert run.summary is not None
    found = run.summary
    title = plots.marked(f"Learning-rate range test, {task}", found["synthetic"])
    run.save_figure("lr_range", scan_plots.lr_range(pd.read_csv(run.folder / "lr_range.csv"), found, title))
    ended = "never diverged" if found["diverged"] is None else f"diverged at {found['diverged']:.2g}"
    return (
        f"{task}: the smoothed loss falls steepest at lr {found['steepest']:.2g}, is lowest at {found['lowest']:.2g}, "
        f"{ended}   {run}/figures/lr_range.png"
    )


if __name__ == "__main__":
    run_script(main, ScanConfig, config)
