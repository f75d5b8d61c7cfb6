"""What does a pretraining cost on this machine? Time, memory, bottleneck and a forecast, before it is begun.

    python selfsup_task/check_bt_resources.py
    python selfsup_task/check_bt_resources.py --dataset covid --resolutions 224 --batch-sizes 64 128 \\
        --forecast-epochs 300 --run-name resources/covid
    python selfsup_task/check_bt_resources.py --dataset chexpert --run-name resources/chexpert --channels 1 3 \\
        --backbones resnet18 resnet34 resnet50 resnet101 efficientnet_b0 efficientnet_b1 efficientnet_b2 \\
        efficientnet_b3 efficientnet_b4 --resolutions 32 64 96 128 160 192 224 --batch-sizes 16 32 64 128 256

Each cell of backbones x channels x resolutions x batch sizes takes some steps in a process of its own, so that one that
runs out of memory ends alone. runs/<run_name>/ holds summary.csv (seconds of a batch and its parts, images/s, peak
memory, the bottleneck, hours for forecast_epochs on your images) and a figure of heat maps. Leave the machine alone
meanwhile. The same command again goes on where it stopped; other lists add to it.
"""

import sys
from typing import Any

import numpy as np
import pandas as pd

from dataset_loader.xrays import read_columns
from selfsup_task.pretrain_config import PretrainConfig
from selfsup_task.resources import cells, measure
from selfsup_task.scan_base import PRETRAINING
from utils import plots
from utils.config import check_at_least, run_script
from utils.sweeps import check_all_finished, open_sweep, run_sweep

config: dict[str, Any] = {
    **PRETRAINING,  # selfsup_task/scan_base.py
    "run_name": "resources/phantom",
    "backbones": ["resnet18", "efficientnet_b0"],
    "channels": [1],
    "resolutions": [32, 64],
    "batch_sizes": [32, 64],
    "forecast_epochs": 100,
    "probe_every": 1,
}

SECONDS_A_CELL = 15  # about, most of them for starting Python and torch


def main(config: dict[str, Any]) -> None:
    """Measure every cell, draw the forecast, print the table."""
    check_at_least("forecast_epochs", config["forecast_epochs"], 1)
    grid = ("backbones", "channels", "resolutions", "batch_sizes", "only", "run_name")
    shared = {key: value for key, value in config.items() if key not in grid}
    run, trials = open_sweep(config["run_name"], shared, cells(config), config["only"])
    todo = [one for name, one in trials.items() if one.summary is None and name in (config["only"] or trials)]
    print(f"{len(todo)} of {len(trials)} cells to measure, about {SECONDS_A_CELL} s each", file=sys.stderr)
    num_images = len(read_columns(config))  # type: ignore[arg-type]  # a part of PretrainConfig

    def trial(cell: dict[str, Any]) -> dict[str, Any]:
        pretraining: Any = {key: cell[key] for key in PretrainConfig.__annotations__}
        return measure(pretraining, num_images, config["forecast_epochs"])

    table = run_sweep(run, trials, trial, config["only"])
    print(table.drop(columns=["error"]).to_string(index=False, float_format="{:.4g}".format))
    hours = f"hours for {config['forecast_epochs']} epochs on {num_images:,} images"
    run.save_figure("resources", plots.heat_maps(grids(table, config), "Forecast", hours, "{:.3g}"))
    print(f"\n{hours} stand in the column hours\ntable and figure   {run}/")
    check_all_finished(table)


def grids(table: pd.DataFrame, config: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Hours by resolution and batch size for each backbone and channel count; infinite where memory ran out."""
    rows = {row["trial"]: row for row in table.to_dict("records")}

    def value(name: str) -> float:
        row = rows.get(name, {})
        return np.inf if row.get("out_of_memory") is True else row.get("hours", np.nan)

    return {
        f"{backbone}, {channels} channel{'s' if channels > 1 else ''}": pd.DataFrame(
            [
                [value(f"{backbone}_{channels}ch_{resolution}px_b{size}") for size in config["batch_sizes"]]
                for resolution in config["resolutions"]
            ],
            index=pd.Index(config["resolutions"], name="image size (pixels)"),
            columns=pd.Index(config["batch_sizes"], name="batch size"),
        )
        for backbone in config["backbones"]
        for channels in config["channels"]
    }


if __name__ == "__main__":
    run_script(main, config, __doc__)
