"""What a pretraining step takes on this machine: a short probe on made-up pixels."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from augmentations.transform_utils import TwinViews, step_generator
from selfsup_task.hyper_utils import build_model, twin_step
from selfsup_task.pretrain_config import PretrainConfig
from utils.hardware import choose_device, choose_precision, peak_memory
from utils.memory import keep_freed_memory
from utils.optimisation import build_optimizer, gradient_step

WARM_UP = 1  # steps that are not timed: the first ones allocate


class StepTimes(NamedTuple):
    """Seconds of a step: the views of its batch, and all of it, views included. Peak memory in bytes."""

    views: float
    step: float
    memory: int


def time_steps(config: PretrainConfig, steps: int = 3) -> StepTimes:
    """Medians over `steps` optimiser steps of a network like config's, which is thrown away.

    The memory is the GPU's, or else that of the process so far.
    """
    if config["threads"] > 0:
        torch.set_num_threads(config["threads"])
    keep_freed_memory()
    device = choose_device(config["device"])
    dtype = choose_precision(config["precision"], device)
    shape = (config["batch_size"], 1, config["store_res"], config["store_res"])
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    model = build_model(config).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = build_optimizer(model, config)
    views = TwinViews(config["recipe"], config["img_res"])
    step = twin_step(model, lambda _: pixels, config)
    batch = torch.arange(config["batch_size"])

    def one(n: int) -> None:
        gradient_step(model, optimizer, functools.partial(step, batch, 0, n), config["lr"], 0.0, dtype)

    def only_views(n: int) -> None:
        views(pixels, step_generator(config["random_seed"], 0, n))

    return StepTimes(_median(only_views, steps, device), _median(one, steps, device), peak_memory(device))


@functools.cache
def _seconds_a_pair(key: tuple[tuple[str, object], ...]) -> float:
    config: PretrainConfig = {name: list(value) if isinstance(value, tuple) else value for name, value in key}  # type: ignore[assignment]  # as it was before it was made hashable
    return time_steps(config).step / config["batch_size"]


def seconds_a_pair(config: PretrainConfig) -> float:
    """Seconds that a pair of views takes; networks, sizes and recipes alike are timed once."""
    alike = {**config, "run_name": "", "barlow_lambda": 0.0, "lr": 0.0, "scheduler": "constant"}
    return _seconds_a_pair(tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in alike.items()))


def _median(work: Callable[[int], None], repeats: int, device: torch.device) -> float:
    seconds = []
    for n in range(WARM_UP + repeats):
        start = time.perf_counter()
        work(n)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])
