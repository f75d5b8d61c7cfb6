"""Time and memory of a pretraining step, measured in a process of its own; and a forecast of a whole run."""

import functools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from augmentations.transform_utils import Views, step_generator
from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.image_store import open_store
from dataset_loader.splits import FOLDS
from dataset_loader.xrays import read_columns, size_of_store
from selfsup_task.monitor import FINDING_LABELS, HEALTH_IMAGES, PROBE_DRAWS, PROBE_LABELS, PROBE_TESTS
from selfsup_task.pretraining import PretrainConfig, build_model, loss_of_views, pretraining_step
from utils.hardware import choose_precision, is_out_of_memory, peak_memory, placed, prepare, synchronise
from utils.optimisation import build_optimizer, gradient_step

STEPS = 3  # optimiser steps that are timed, at least
STEP_SECONDS = 8.0  # and for at least so long: the speed of a shared machine varies
SAMPLE = 256  # files that are decoded to time the store, at least a batch of them
FORWARD = 1 / 3  # of a view's share of a step that one image's forward pass costs: backward is twice forward


class Costs(NamedTuple):
    """Seconds to decode an image, to read a batch, to make its views, to take a whole step; and bytes of memory."""

    decoding: float
    reading: float
    views: float
    step: float
    peak_memory: int  # the GPU's or, without one, that of the process so far
    stored_on_gpu: int  # an image in the store; 0 where the store stays on disk


def measure(config: PretrainConfig, columns: Columns, forecast_epochs: int) -> dict[str, Any]:
    """Return seconds of a batch and its parts, images/s, peak memory, the bottleneck, and hours for forecast_epochs.

    Returns {"out_of_memory": True, "reason": ...} if memory ran out; any other failure is raised.
    """
    try:
        costs = measure_apart(config)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"out_of_memory": True, "reason": f"{type(error).__name__}: {error}".partition("\n")[0]}
    shares = {"reading": costs.reading, "views": costs.views, "network": costs.step - costs.views - costs.reading}
    bottleneck = max(shares, key=shares.__getitem__)
    return {
        "out_of_memory": False,
        "images_per_second": config.batch_size / costs.step,
        "seconds_reading": costs.reading,
        "seconds_views": costs.views,
        "seconds_step": costs.step,
        "seconds_store_per_image": costs.decoding,
        "peak_memory_gb": (costs.peak_memory + costs.stored_on_gpu * len(columns)) / 1e9,
        "bottleneck": f"{bottleneck} ({shares[bottleneck] / costs.step:.0%})",
        "hours": forecast(costs, config, columns, forecast_epochs) / 3600,
    }


def forecast(costs: Costs, config: PretrainConfig, columns: Columns, epochs: int) -> float:
    """Return the seconds of a run on N images: the store once, then epochs of steps, health and probes."""
    named = columns.named_parts
    train = train_images(config, named)
    labels = FINDING_LABELS if columns.labels.ndim > 1 else PROBE_LABELS
    probed = min(train, labels * PROBE_DRAWS) + min(_images_of("val", config, named), PROBE_TESTS)
    probes = 1 + epochs // config.probe_every
    forwards = (epochs + 1) * min(train, HEALTH_IMAGES) + probes * probed
    steps = epochs * (train // config.batch_size) + FORWARD * forwards / (config.views * config.batch_size)
    return costs.decoding * len(named) + steps * costs.step


def train_images(config: PretrainConfig, named: np.ndarray) -> int:
    """Return about how many images a pretraining takes, by the part [N] that the source gives each (Columns)."""
    if config.pretrain_on == "all":
        return len(named)
    return _images_of("train", config, named) + int((named == UNLABELLED).sum())


def _images_of(part: str, config: PretrainConfig, named: np.ndarray) -> int:
    """Return about how many images a part has: those that the source names, and its share of those that it does not."""
    share = config.val_share if part == "val" else (1 - config.val_share) * (1 - 1 / FOLDS)  # of train
    return int((named == part).sum() + share * (named == "").sum())


def measure_apart(config: PretrainConfig) -> Costs:
    """Return what a step costs, measured in a process of its own, which the system may kill for its memory.

    Raises what was raised there, MemoryError if the process died, for which memory is the likely reason.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_costs, config).result()
        except BrokenProcessPool:
            raise MemoryError("the measuring process died, as when the system kills it for its memory") from None


def _costs(config: PretrainConfig) -> Costs:
    device = prepare(config.device, config.threads, config.deterministic)
    columns = read_columns(config)
    paths = [str(path) for path in columns.paths[: max(SAMPLE, config.batch_size)]]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        size, start = size_of_store(config, columns), time.perf_counter()
        store = open_store(columns.root, paths, size, Path(folder), show_progress=False)
        decoding = (time.perf_counter() - start) / len(paths)
        store = store.to(device)
        rows = torch.arange(config.batch_size) % min(len(store), config.batch_size)
        times = time_steps(config, lambda batch: store.gather(rows[: len(batch)]), device)
        on_gpu = size**2 if isinstance(store.array, torch.Tensor) else 0
    return Costs(decoding, times["reading"], times["views"], times["step"], peak_memory(device), on_gpu)


def time_steps(config: PretrainConfig, images_of: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
    """Return median seconds of "reading", "views" and the whole "step" of a pretraining at its start.

    `images_of` gives the pixels uint8 [B, 1, S, S] of indices 0 to B - 1.
    """
    model = placed(build_model(config), device).train()
    optimizer, dtype = build_optimizer(model, config), choose_precision(config.precision, device)
    step = pretraining_step(loss_of_views(model, config), images_of, config)
    views, batch = Views(config.recipe, config.img_res, config.views), torch.arange(config.batch_size)
    pixels = images_of(batch)

    def draw() -> object:
        return views(pixels, step_generator("timed views", config.random_seed, 0, 0))

    def take() -> object:
        forward = functools.partial(step, batch, 0, 0)
        return gradient_step(model, optimizer, forward, config.lr, config.gradient_clip, dtype)

    seconds = {
        "reading": seconds_of(lambda: images_of(batch), STEPS, device),
        "views": seconds_of(draw, STEPS, device),
        "step": seconds_of(take, STEPS, device, STEP_SECONDS),
    }
    return {name: statistics.median(rounds) for name, rounds in seconds.items()}


def seconds_of(work: Callable[[], object], rounds: int, device: torch.device, at_least: float = 0.0) -> list[float]:
    """Return the seconds that `work` takes, the device's included, in so many rounds or more, for `at_least` seconds.

    The first round, which allocates memory, does not count.
    """
    seconds: list[float] = []
    while len(seconds) < 1 + rounds or sum(seconds[1:]) < at_least:
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]
