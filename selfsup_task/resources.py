"""Time and memory of a pretraining, cell by cell of a grid, each in a process of its own; and a forecast."""

import multiprocessing
import signal
import tempfile
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from dataset_loader.image_store import open_store
from dataset_loader.xrays import read_columns
from selfsup_task.gauge import HEALTH_IMAGES, PROBE_DRAWS, PROBE_LABELS, PROBE_TESTS
from selfsup_task.hyper_utils import check_pretrain_config
from selfsup_task.pretrain_config import PretrainConfig
from selfsup_task.timing import StepTimes, time_steps
from utils.config import UserError
from utils.hardware import choose_device

SAMPLE = 256  # files that are decoded to see what the store takes, at least a batch of them
PARTS = {"train": 0.8, "val": 0.1}  # shares of the images
FORWARD = 1 / 6  # of a pair's step that one image's forward pass costs: two views, and backward is twice forward
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
        "peak_memory_gb": times.memory / 1e9,
        "bottleneck": f"{bottleneck} ({shares[bottleneck] / times.step:.0%})",
        "hours": seconds / 3600,
    }


def forecast(times: StepTimes, store: float, config: PretrainConfig, num_images: int, epochs: int) -> float:
    """Seconds of a whole run on `num_images`: the store once, then epochs of steps, health and probes."""
    train = int(PARTS["train"] * num_images)
    probed = min(train, PROBE_LABELS * PROBE_DRAWS) + min(int(PARTS["val"] * num_images), PROBE_TESTS)
    probes = 1 + epochs // config["probe_every"]
    forwards = (epochs + 1) * min(train, HEALTH_IMAGES) + probes * probed
    steps = epochs * (train // config["batch_size"]) + FORWARD * forwards / config["batch_size"]
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
        if process.exitcode == -signal.SIGKILL:
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
        answer.send((kind, str(error).splitlines()[0] if kind == "memory" else traceback.format_exc()))


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was refused, by the GPU's allocator, the CPU's, or Python's; nothing else counts as that."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in REFUSED_MEMORY)


def _measured(config: PretrainConfig) -> dict[str, Any]:
    check_pretrain_config(config)
    columns = read_columns(config)
    paths = [str(path) for path in columns.paths[: max(SAMPLE, config["batch_size"])]]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = open_store(columns.root, paths, config["store_res"], Path(folder), show_progress=False)
        decoding = (time.perf_counter() - start) / len(paths)
        store = store.to(choose_device(config["device"]))
        size = min(len(store), config["batch_size"])
        rows = torch.arange(config["batch_size"]) % size
        times = time_steps(config, lambda batch: store.gather(rows[: len(batch)]))
    return {"times": times._asdict(), "store": decoding}


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
