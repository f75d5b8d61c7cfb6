"""Which lambda and which projector? A pretraining for each pair, judged by what it gives downstream.

    python selfsup_task/scan_best_hyperparameters.py
    python selfsup_task/scan_best_hyperparameters.py --lambdas 5e-3 1e-3 --projectors 512 512-1024
    python selfsup_task/scan_best_hyperparameters.py --dataset covid --img-res 224 --num-epochs 20 --recipe base \\
        --lambdas 1e-1 5e-2 1e-2 5e-3 1e-3 5e-4 1e-4 \\
        --projectors 512 1024 2048 512-512 512-1024 512-2048 2048-2048-2048 8192-8192-8192

A projector is its widths with dashes between them; the last is the embedding's. The third command is the whole grid,
for a GPU. A linear probe and a full fine-tuning on validation rank the pairs, not the loss, whose scale depends on
lambda and on the width. runs/<run_name>/ holds summary.csv (one row per trial), ranking.csv (one per pair), best.json
for `train_barlow_twins.py --from`, a figure of two heat maps and one folder per trial. By default it takes a quarter of
an hour on two cores on synthetic X-rays, too short to choose by. The same command again resumes the scan, another part
of the grid adds to it, and several may work on one scan at once.
"""

from typing import Any

from selfsup_task.scan_base import FILES, REAL_XRAYS, SCAN_BASE, without
from utils.scripts import flags, run_script

config: dict[str, Any] = {
    # selfsup_task/scan_base.py: the pretraining and fine-tuning that are the same
    **without(SCAN_BASE, "barlow_lambda", "projector_dims"),
    "run_name": "scans/{dataset}_hyperparameters",  # runs/<run_name>/; {dataset} is the name of the data set
    "lambdas": [5e-2, 5e-3, 5e-4],  # weights of the off-diagonal term
    "projectors": ["512", "2048", "512-512"],  # widths with dashes; the last is the embedding's
}
real_xrays = {**without(REAL_XRAYS, "projector_dims"), "projectors": ["512", "512-512", "1024-1024", "2048-2048"]}

if __name__ == "__main__":  # before the slow imports
    config = flags(config, __doc__, __file__, *FILES, real_xrays=real_xrays, best="pretraining")

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from selfsup_task import scan_plots
from selfsup_task.hyper_utils import Scan, ScanConfig
from utils import plots
from utils.config import UserError
from utils.jobs import with_jobs
from utils.wording import metric_name


@dataclass(frozen=True, kw_only=True)
class GridConfig(ScanConfig):
    lambdas: list[float]
    projectors: list[str]


def main(config: GridConfig) -> None:
    """Pretrain with each lambda and projector, judge each encoder, draw both scores over the grid."""
    settings = {
        f"lambda{lambd}_p{projector}": {"barlow_lambda": lambd, "projector_dims": widths(projector)}
        for lambd in config.lambdas
        for projector in config.projectors
    }
    scan = Scan(config, settings, lists=["lambdas", "projectors"])
    ranking = scan.run_trials()  # each a pretraining, a linear probe and a fine-tuning
    scan.run.save_figure("hyperparameters", draw(ranking, scan.start))
    scan.print_results(ranking)


def draw(finished: pd.DataFrame, start: Sequence[float]) -> Figure:
    """Return both scores over the whole grid that is finished, whichever call made it."""
    lambdas = sorted(set(finished["barlow_lambda"]), reverse=True)
    projectors = sorted(set(finished["projector_dims"]), key=lambda p: (p.count("-"), widths(p)))
    grids = {
        title: finished.pivot(index="barlow_lambda", columns="projector_dims", values=column)
        .reindex(lambdas, columns=projectors)
        .rename_axis(index="lambda", columns="projector")
        for column, title in scan_plots.SCAN_SCORES.items()
    }
    seeds, spread = max(finished["seeds"]), finished["linear_spread"].max()
    each = "one run each" if seeds == 1 else f"mean of {seeds} seeds (linear: up to {spread:.3f} apart)"
    title = f"Which lambda and which projector? {each}; the start, linear probe: {np.mean(start):.3f}"
    title = plots.marked(title, bool(finished["synthetic"].iloc[0]))
    return scan_plots.heat_maps(grids, title, metric_name(finished["metric"].iloc[0]) + " on validation")


def widths(projector: str) -> list[int]:
    """Return [512, 1024] for "512-1024"."""
    try:
        return [int(width) for width in projector.split("-")]
    except ValueError:
        raise UserError(f"projectors holds {projector!r}; expected widths with dashes, such as 512-1024.") from None


if __name__ == "__main__":
    own = {"barlow_lambda": 0.0, "projector_dims": [2], "random_seed": 0}  # each trial has its own
    run_script(with_jobs(main), GridConfig, {**own, **config})
