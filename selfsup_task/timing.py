"""What a pretraining step takes on this machine: a short probe."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from augmentations.transform_utils import TwinViews, step_generator
from selfsup_task.hyper_utils import build_model, twin_step
from selfsup_task.pretrain_config import PretrainConfig
from utils.hardware import choose_device, choose_precision, peak_memory
from utils.memory import keep_freed_memory
from utils.optimisation import build_optimizer, gradient_step

WARM_UP = 1  # steps that are not timed: the first ones allocate


class StepTimes(NamedTuple):
    """Seconds that a batch takes: reading its pixels, making its views, the whole step. Peak memory in bytes."""

    reading: float
    views: float
    step: float
    memory: int


def time_steps(
    config: PretrainConfig, images_of: Callable[[Tensor], Tensor] | None = None, steps: int = 3
) -> StepTimes:
    """Medians over `steps` optimiser steps of a network like config's, which is thrown away.

    `images_of` gives the pixels uint8 [B, 1, S, S] of a batch of indices 0 to B - 1; by default made-up ones.

    The memory is the GPU's, or else that of the process so far.
    """
    if config["threads"] > 0:
        torch.set_num_threads(config["threads"])
    keep_freed_memory()
    device = choose_device(config["device"])
    dtype = choose_precision(config["precision"], device)
    shape = (config["batch_size"], 1, config["store_res"], config["store_res"])
    made_up = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    images_of = images_of or (lambda _: made_up)
    model = build_model(config).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = build_optimizer(model, config)
    views = TwinViews(config["recipe"], config["img_res"])
    step = twin_step(model, images_of, config)
    batch = torch.arange(config["batch_size"])
    pixels = images_of(batch)

    def one(n: int) -> None:
        gradient_step(model, optimizer, functools.partial(step, batch, 0, n), config["lr"], 0.0, dtype)

    def only_views(n: int) -> object:
        return views(pixels, step_generator(config["random_seed"], 0, n))

    reading, views_alone, whole = (
        _median(work, steps, device) for work in (lambda _: images_of(batch), only_views, one)
    )
    return StepTimes(reading, views_alone, whole, peak_memory(device))


@functools.cache
def _seconds_a_pair(key: tuple[tuple[str, object], ...]) -> float:
    config: PretrainConfig = {name: list(value) if isinstance(value, tuple) else value for name, value in key}  # type: ignore[assignment]  # as it was before it was made hashable
    return time_steps(config).step / config["batch_size"]


def seconds_a_pair(config: PretrainConfig) -> float:
    """Seconds that a pair of views takes; networks, sizes and recipes alike are timed once."""
    alike = {**config, "run_name": "", "barlow_lambda": 0.0, "lr": 0.0, "scheduler": "constant"}
    return _seconds_a_pair(tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in alike.items()))


def _median(work: Callable[[int], object], repeats: int, device: torch.device) -> float:
    seconds = []
    for n in range(WARM_UP + repeats):
        start = time.perf_counter()
        work(n)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])
