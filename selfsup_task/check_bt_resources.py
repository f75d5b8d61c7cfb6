"""What does a pretraining cost on this machine? Time, memory, bottleneck and a forecast, before you start it.

    python selfsup_task/check_bt_resources.py
    python selfsup_task/check_bt_resources.py --dataset covid --resolutions 224 --batch-sizes 64 128 \\
        --forecast-epochs 300
    python selfsup_task/check_bt_resources.py --dataset chexpert --channels 1 3 \\
        --backbones resnet18 resnet34 resnet50 resnet101 efficientnet_b0 efficientnet_b1 efficientnet_b2 \\
        efficientnet_b3 efficientnet_b4 --resolutions 32 64 96 128 160 192 224 --batch-sizes 16 32 64 128 256

Each combination of backbone, channels, resolution and batch size takes some steps in a process of its own, so that one
without enough memory ends alone. It takes half a minute or more; leave the machine alone meanwhile. runs/<run_name>/
holds summary.csv (seconds of a batch and its parts, images/s, peak memory, the bottleneck, hours for forecast_epochs on
your images) and a figure of heat maps. The same command again resumes; other lists add to the table.
"""

from typing import Any

from selfsup_task.scan_base import FILES, PRETRAINING, REAL_XRAYS, without
from utils.scripts import command, flags, run_script

VARIED = ("backbone", "in_channels", "img_res", "store_res", "batch_size", "num_epochs", "warmup_epochs")
UNUSED = {"also": [], "exclude": [], "start": "random"}  # neither changes what a step costs

config: dict[str, Any] = {
    **without(PRETRAINING, *VARIED, *UNUSED),  # selfsup_task/scan_base.py
    "run_name": "resources/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "backbones": ["resnet18", "efficientnet_b0"],  # torchvision's name, such as densenet121, or timm/NAME
    "channels": [1],  # 1 (gray) | 3
    "resolutions": [32, 64],  # pixels a side of the views; the store's are 8 / 7 of them
    "batch_sizes": [32, 64],  # X-rays per step
    "forecast_epochs": 100,  # for which hours are forecast
    "probe_every": 2,  # epochs between probes, in the forecast
}
real_xrays: dict[str, Any] = {
    **without(REAL_XRAYS, *VARIED, *UNUSED, "finetune"),
    "backbones": [REAL_XRAYS["backbone"]],
    "resolutions": [REAL_XRAYS["img_res"], 224],
    "batch_sizes": [64],
    "forecast_epochs": REAL_XRAYS["num_epochs"],
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__, *FILES, real_xrays=real_xrays)  # before the slow imports

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dataset_loader.listing import listing
from dataset_loader.xrays import Size, read_columns
from self_sup_classes.backbones import TIMM, BackboneName, Channels
from selfsup_task import scan_plots
from selfsup_task.pretraining import PretrainConfig
from selfsup_task.resources import measure, train_images
from utils.config import Count, as_dict, part_of
from utils.facts import LISTED
from utils.hardware import describe_device, prepare
from utils.logging_utils import Run
from utils.optimisation import BatchSize
from utils.sweeps import check_all_finished, check_trial_names, inner_runs, run_trials
from utils.training_utils import check_batch_size

LISTS = ("backbones", "channels", "resolutions", "batch_sizes")
SETTINGS = ["backbone", "in_channels", "img_res", "batch_size"]  # of a cell


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig(PretrainConfig):
    backbones: list[BackboneName]
    channels: list[Channels]
    resolutions: list[Size]
    batch_sizes: list[BatchSize]
    forecast_epochs: Count
    only: list[str]


def main(config: ResourcesConfig) -> None:
    """Measure a pretraining of every cell, draw the forecast, print the table."""
    device = prepare(config.device, config.threads)
    base = PretrainConfig(**part_of(config, PretrainConfig))
    cells = {}
    for backbone, channels, size, batch in itertools.product(*(getattr(config, key) for key in LISTS)):
        name = f"{backbone.removeprefix(TIMM)}_{channels}ch_{size}px_b{batch}"
        changes = {"backbone": backbone, "in_channels": channels, "img_res": size, "batch_size": batch}
        cells[name] = replace(base, run_name=f"{config.run_name}/{name}", store_res=0, **changes)
    check_trial_names([*cells], config.only)
    shared = {key: value for key, value in as_dict(config).items() if key not in (*VARIED, *LISTS, "only", "run_name")}
    run = Run(config.run_name, {"varied": [*LISTS], **shared}, "resources", keys_of=ResourcesConfig)
    trials = {name: Run(cells[name].run_name, cells[name], "trial") for name in config.only or cells}
    columns = read_columns(config)
    data, train = {"images": len(columns), LISTED: listing(columns)}, train_images(config, columns.named_parts)
    for name in trials:
        check_batch_size(cells[name].batch_size, train)
    run.start(alone=False, data=data, device=describe_device(device))

    def measure_cell(trial: Run) -> None:
        trial.start()
        costs = measure(cells[trial.folder.name], columns, config.forecast_epochs)
        trial.finish({**{key: trial.config[key] for key in SETTINGS}, **costs})

    table = run_trials(run, trials, measure_cell)
    print(table.drop(columns=["error"]).to_string(index=False, float_format="{:.4g}".format))
    forecast = f"hours for {config.forecast_epochs} epochs on {train:,} of {data['images']:,} images"
    every_cell = {name: trial.config for name, trial in inner_runs(run).items()}
    run.save_figure(
        "resources", scan_plots.heat_maps(grids(table, every_cell), f"Forecast: {forecast}", "hours", "{:.3g}")
    )
    print(f"\nhours              {forecast}\ntable and figure   {run}/")
    trained = {"dataset": config.dataset, "data_root": config.data_root}
    print(f"next               {command('selfsup_task/train_barlow_twins.py', trained)}   # and what you can afford")
    check_all_finished(table, [*trials])


def grids(table: pd.DataFrame, cells: Mapping[str, Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Return hours by image and batch size for each backbone and channel count; `cells` are the configs by trial.

    Infinite where memory ran out, minus infinite where the cell failed.
    """
    rows = table.reindex(columns=["trial", "hours", "out_of_memory", "error"])
    settings = pd.DataFrame([{key: cells[trial][key] for key in SETTINGS} for trial in rows["trial"]])
    sizes, batches = sorted(set(settings["img_res"])), sorted(set(settings["batch_size"]))
    channels = settings["in_channels"].replace({1: ", 1 channel", 3: ", 3 channels"})
    settings["title"] = settings["backbone"] + channels
    settings["hours"] = rows["hours"].mask(rows["out_of_memory"].eq(True), np.inf).mask(rows["error"] != "", -np.inf)
    return {
        str(title): part.pivot(index="img_res", columns="batch_size", values="hours")
        .reindex(sizes, columns=batches)
        .rename_axis(index="image size (pixels)", columns="batch size")
        for title, part in settings.groupby("title", sort=False)
    }


if __name__ == "__main__":
    cell = {"backbone": "resnet18", "in_channels": 1, "img_res": 32, "store_res": 0, "batch_size": 64, **UNUSED}
    run_script(main, ResourcesConfig, {**cell, "num_epochs": 1, "warmup_epochs": 0, **config})
