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

from typing import Any

from selfsup_task import scan_base
from selfsup_task.scan_base import PRETRAINING, without
from utils.scripts import flags, run_script

config: dict[str, Any] = {
    # selfsup_task/scan_base.py
    **without(PRETRAINING, "backbone", "in_channels", "img_res", "store_res", "batch_size", "num_epochs"),
    "run_name": "resources/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "backbones": ["resnet18", "efficientnet_b0"],  # resnet18/34/50/101, efficientnet_b0 ... b4
    "channels": [1],  # 1 (gray) | 3
    "resolutions": [32, 64],  # pixels a side of the views; the store's are 8 / 7 of them
    "batch_sizes": [32, 64],  # pairs of views a step
    "forecast_epochs": 100,  # for which hours are forecast
    "probe_every": 1,  # epochs between probes, in the forecast
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__, scan_base.__file__)  # before the slow imports

import sys

from dataset_loader.xrays import described, read_columns
from selfsup_task.resources import cells, check_cell, grids, measure, pretraining
from utils import scan_plots
from utils.config import check_at_least
from utils.hardware import choose_device, describe_device
from utils.sweeps import check_all_finished, open_sweep, run_sweep

SECONDS_A_CELL = 25  # half of them for starting Python and torch; steps of ten seconds take longer


def main(config: ResourcesConfig) -> None:
    """Measure every cell, draw the forecast, print the table."""
    check_at_least("forecast_epochs", config.forecast_epochs, 1)
    grid = ("backbones", "channels", "resolutions", "batch_sizes", "only", "run_name")
    shared = {"varied": list(grid[:4]), **{key: value for key, value in config.items() if key not in grid}}
    run, trials = open_sweep(config.run_name, shared, cells(config), config.only)
    data = described(read_columns(config))
    num_images = data["images"]
    for one in trials.values():
        check_cell(one.config, num_images)
    todo = [one for name, one in trials.items() if one.summary is None and name in (config.only or trials)]
    print(f"{len(todo)} of {len(trials)} cells to measure, {SECONDS_A_CELL} s each or more", file=sys.stderr)

    def trial(cell: dict[str, Any]) -> dict[str, Any]:
        return measure(pretraining(cell), num_images, config.forecast_epochs)

    device = describe_device(choose_device(config.device))
    table = run_sweep(run, trials, trial, config.only, data=data, device=device)
    print(table.drop(columns=["error"]).to_string(index=False, float_format="{:.4g}".format))
    hours = f"hours for {config.forecast_epochs} epochs on the train part of {num_images:,} images"
    run.save_figure("resources", scan_plots.heat_maps(grids(table), f"Forecast: {hours}", "hours", "{:.3g}"))
    print(f"\n{hours} stand in the column hours\ntable and figure   {run}/")
    print("next               python selfsup_task/train_barlow_twins.py, with the settings that you can afford")
    check_all_finished(table, config.only or list(trials))


if __name__ == "__main__":
    run_script(main, ResourcesConfig, config)
