"""Time and memory of a pretraining, cell by cell of a grid, each in a process of its own; and a forecast."""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dataset_loader.image_store import open_store
from dataset_loader.splits import SHARES
from dataset_loader.xrays import read_columns
from selfsup_task.monitor import FINDING_LABELS, HEALTH_IMAGES, PROBE_DRAWS, PROBE_LABELS, PROBE_TESTS
from selfsup_task.pretrain_config import PretrainConfig
from selfsup_task.pretraining import check_pretrain_config
from selfsup_task.timing import StepTimes, time_steps
from utils.config import UserError
from utils.hardware import choose_device
from utils.training_utils import check_fit_config

PROBE_SECONDS = 8.0  # of optimiser steps: a machine that others share is now faster, now slower
SIGKILL = 9  # Windows has none
SAMPLE = 256  # files that are decoded to see what the store takes, at least a batch of them
FORWARD = 1 / 3  # of a view's share of a step that one image's forward pass costs: backward is twice forward
REFUSED_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class OutOfMemory(Exception):
    """The cell needs more memory than there is."""


def measure(config: PretrainConfig, num_images: int, forecast_epochs: int) -> dict[str, Any]:
    """One cell: seconds of a batch and of its parts, images/s, peak memory, the bottleneck, the forecast in hours.

    It runs in a process of its own, so that the system may kill that one. {"out_of_memory": True} if memory ran
    out; any other failure raises, with its text.
    """
    try:
        measured = _in_a_process(config)
    except OutOfMemory as error:
        return {"out_of_memory": True, "reason": str(error)}
    times = StepTimes(**measured["times"])
    shares = {"reading": times.reading, "views": times.views, "network": times.step - times.views - times.reading}
    bottleneck = max(shares, key=shares.__getitem__)
    seconds = forecast(times, measured["store"], config, num_images, forecast_epochs)
    return {
        "out_of_memory": False,
        "images_per_second": config["batch_size"] / times.step,
        "seconds_reading": times.reading,
        "seconds_views": times.views,
        "seconds_step": times.step,
        "seconds_store_per_image": measured["store"],
        "peak_memory_gb": (times.memory + measured["bytes_on_gpu"] * num_images) / 1e9,
        "bottleneck": f"{bottleneck} ({shares[bottleneck] / times.step:.0%})",
        "hours": seconds / 3600,
    }


def forecast(times: StepTimes, store: float, config: PretrainConfig, num_images: int, epochs: int) -> float:
    """Seconds of a whole run on `num_images`: the store once, then epochs of steps, health and probes."""
    train = int(_train_share(config) * num_images)
    labels = FINDING_LABELS if config["dataset"] == "chexpert" else PROBE_LABELS
    probed = min(train, labels * PROBE_DRAWS) + min(int(SHARES["val"] * num_images), PROBE_TESTS)
    probes = 1 + epochs // config["probe_every"]
    forwards = (epochs + 1) * min(train, HEALTH_IMAGES) + probes * probed
    views_a_step = config["views"] * config["batch_size"]
    steps = epochs * (train // config["batch_size"]) + FORWARD * forwards / views_a_step
    return store * num_images + steps * times.step


def _in_a_process(config: PretrainConfig) -> dict[str, Any]:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_measure_here, args=(config, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        kind, value = ours.recv()
    except EOFError:  # it died without a word
        process.join()
        if process.exitcode == -SIGKILL:
            raise OutOfMemory("the system killed the process, as it does when memory is out") from None
        raise RuntimeError(f"the measuring process ended with exit code {process.exitcode}") from None
    process.join()
    if kind == "memory":
        raise OutOfMemory(value)
    if kind == "user":
        raise UserError(value)
    if kind == "error":
        raise RuntimeError(value)
    return value


def _measure_here(config: PretrainConfig, answer: Connection) -> None:
    """In the child: ("ok", numbers), ("memory" | "user" | "error", text)."""
    try:
        answer.send(("ok", _measured(config)))
    except UserError as error:
        answer.send(("user", str(error)))
    except Exception as error:
        kind = "memory" if is_out_of_memory(error) else "error"
        if kind == "error":
            traceback.print_exc()
        answer.send((kind, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"))


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was refused, by the GPU's allocator, the CPU's, or Python's; nothing else counts as that."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in REFUSED_MEMORY)


def _measured(config: PretrainConfig) -> dict[str, Any]:
    check_pretrain_config(config)
    columns = read_columns(config)
    paths = [str(path) for path in columns.paths[: max(SAMPLE, config["batch_size"])]]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        start = time.perf_counter()
        store = open_store(columns.root, paths, config["store_res"], Path(folder), show_progress=False)
        decoding = (time.perf_counter() - start) / len(paths)
        store = store.to(choose_device(config["device"]))
        size = min(len(store), config["batch_size"])
        rows = torch.arange(config["batch_size"]) % size
        times = time_steps(config, lambda batch: store.gather(rows[: len(batch)]), PROBE_SECONDS)
        on_gpu = config["store_res"] ** 2 if isinstance(store.array, torch.Tensor) else 0
    return {"times": times._asdict(), "store": decoding, "bytes_on_gpu": on_gpu}


def check_cell(cell: Mapping[str, Any], num_images: int) -> None:
    """Raise UserError for a cell that no pretraining on `num_images` could have."""
    config = pretraining(cell)
    check_pretrain_config(config)
    check_fit_config(config, round(_train_share(config) * num_images))


def pretraining(cell: Mapping[str, Any]) -> PretrainConfig:
    """The pretraining of a cell."""
    whole: Any = {key: cell[key] for key in PretrainConfig.__annotations__ if key in cell}
    whole |= {"num_epochs": 1, "warmup_epochs": 0}
    return whole


def _train_share(config: PretrainConfig) -> float:
    return SHARES["train"] if config["pretrain_on"] == "train" else 1.0


def grids(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Hours by image and batch size for each backbone and channel count.

    Infinite where memory ran out, minus infinite where the cell failed.
    """
    table = table.reindex(columns=["trial", "hours", "out_of_memory", "error"])
    hours = table["hours"].mask(table["out_of_memory"].eq(True), np.inf)
    hours = hours.mask(table["error"].fillna("").ne(""), -np.inf)
    keys = table["trial"].str.extract(r"(?P<backbone>.+)_(?P<channels>\d)ch_(?P<size>\d+)px_b(?P<batch>\d+)")
    cells = keys.astype({"size": int, "batch": int}).assign(hours=hours)
    sizes, batches = sorted(set(cells["size"])), sorted(set(cells["batch"]))
    return {
        f"{backbone}, {channels} channel{'s' if channels != '1' else ''}": rows.pivot(
            index="size", columns="batch", values="hours"
        )
        .reindex(sizes, columns=batches)
        .rename_axis(index="image size (pixels)", columns="batch size")
        for (backbone, channels), rows in cells.groupby(["backbone", "channels"], sort=False)
    }


def cells(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The grid as trials {name: overrides}: backbones x channels x resolutions x batch sizes."""
    return {
        f"{backbone}_{channels}ch_{resolution}px_b{batch_size}": {
            "backbone": backbone,
            "in_channels": channels,
            "img_res": resolution,
            "store_res": round(resolution * 8 / 7),
            "batch_size": batch_size,
        }
        for backbone in config["backbones"]
        for channels in config["channels"]
        for resolution in config["resolutions"]
        for batch_size in config["batch_sizes"]
    }
