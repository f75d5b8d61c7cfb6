"""What a pretraining step takes on this machine: a short probe."""

import functools
import json
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from augmentations.transform_utils import Views, step_generator
from selfsup_task.pretrain_config import PretrainConfig
from selfsup_task.pretraining import build_model, twin_step
from utils.hardware import choose_device, choose_precision, median_seconds, peak_memory, placed
from utils.memory import keep_freed_memory
from utils.optimisation import build_optimizer, gradient_step

STEPS = 3  # that are timed, at least


class StepTimes(NamedTuple):
    """Seconds that a batch takes: reading its pixels, making its views, the whole step. Peak memory in bytes."""

    reading: float
    views: float
    step: float
    memory: int


def time_steps(
    config: PretrainConfig, images_of: Callable[[Tensor], Tensor] | None = None, seconds: float = 0.0
) -> StepTimes:
    """Medians over STEPS optimiser steps, or `seconds` of them, of a network like config's, which is thrown away.

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
    model = placed(build_model(config), device).train()
    optimizer = build_optimizer(model, config)
    views = Views(config["recipe"], config["img_res"])
    step = twin_step(model, images_of, config)
    batch = torch.arange(config["batch_size"])
    pixels = images_of(batch)

    works = {
        "reading": lambda: images_of(batch),
        "views": lambda: views(pixels, step_generator(config["random_seed"], 0, 0)),
        "step": lambda: gradient_step(model, optimizer, lambda: step(batch, 0, 0), config["lr"], 0.0, dtype),
    }
    times = {
        name: median_seconds(work, STEPS, device, seconds if name == "step" else 0.0) for name, work in works.items()
    }
    return StepTimes(**times, memory=peak_memory(device))


def seconds_an_image(config: PretrainConfig) -> float:
    """Seconds that a step takes for each X-ray, all its views; configs of equal cost are timed once."""
    alike = {**config, "run_name": "", "barlow_lambda": 0.0, "lr": 0.0, "scheduler": "constant"}
    return _seconds_an_image(json.dumps(alike))


@functools.cache
def _seconds_an_image(config: str) -> float:
    alike: PretrainConfig = json.loads(config)
    return time_steps(alike).step / alike["batch_size"]
