"""How fast is a step of pretraining, and what holds it back?

    python tests/benchmarks/bench_step.py
    python tests/benchmarks/bench_step.py --threads 1 --variants default float32  # on a CPU
    python tests/benchmarks/bench_step.py --backbones resnet18 --sizes 64 --views 4 --recipe solarize \\
        --projector-dims 1024 1024

Optimiser steps of a Barlow Twins pretraining on random pixels, one after the other without waiting, each row in a
process of its own; of the rounds the median, the lowest and the highest:
  default            what train_barlow_twins.py does: bfloat16, deterministic, views, network and store on the GPU
  host store         the same with the store in the host's memory, from which each batch is copied
  not deterministic  cuDNN chooses its algorithms by their speed
  float32            on a GPU with TF32 in convolutions, as torch has it
  no graphs          the kernels of forward and backward pass are started one by one, not replayed as CUDA graphs
  compiled           the same, the backbone by torch.compile, for which this repo has no key
Beside it: which share of the speed of large matrix products the network's multiplications reach; the
share of the time in which the GPU works, copies included; milliseconds of reading a batch, its views, and the network
with its optimiser, each repeated alone, so that they overlap less than in the step; memory with this store; and the
hours of the original project's two trainings at this rate, 21,165 X-rays 300 times and 191,027 X-rays 60 times.
Schedule, logging, probes and checkpoints of a training are left out. Not a test.
"""

from typing import Any

from utils.scripts import flags

config: dict[str, Any] = {
    "backbones": ["resnet18", "resnet50"],
    "sizes": [224],  # pixels a side of the views
    "batch_size": 128,  # the original project's
    "views": 2,
    "projector_dims": [512],
    "recipe": "original",
    "variants": ["default", "host store", "not deterministic", "float32", "no graphs", "compiled"],
    "images": 4096,  # in the store
    "steps": 20,  # of a round
    "rounds": 5,
    "device": "auto",
    "threads": 0,  # CPU threads; 0 leaves them to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import functools
import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import measuring
import numpy as np
import torch
from measuring import Table, spread
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from augmentations.transform_utils import Views, step_generator
from dataset_loader.image_store import ImageStore
from selfsup_task.pretraining import PretrainConfig, build_model, loss_of_views, pretraining_step
from selfsup_task.resources import seconds_of
from selfsup_task.scan_base import PRETRAINING, without
from utils.config import make_config
from utils.hardware import choose_precision, describe_device, peak_memory, placed, prepare
from utils.optimisation import build_optimizer, gradient_step

NEED_CUDA = ["host store", "no graphs"]
COVID, CHEXPERT = 21_165 * 300, 191_027 * 60  # X-rays that the original project's trainings saw

Step = Callable[[int], object]  # of a number


def seconds_per_step(take: Step, steps: int, rounds: int, device: torch.device) -> list[float]:
    """Return the seconds of a step in each round of steps that do not wait for each other; no two have one number."""
    numbers = itertools.count()

    def several() -> None:
        for _ in range(steps):
            take(next(numbers))

    return [seconds / steps for seconds in seconds_of(several, rounds, device)]


def busy_share(take: Step, steps: int, seconds: float) -> float:
    """Return the share of a step's `seconds` in which a CUDA GPU works, one kernel or copy after the other."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for number in range(steps):
            take(number)
        torch.cuda.synchronize()
    work = sum(event.self_device_time_total for event in found.key_averages())  # microseconds
    return work / 1e6 / steps / seconds


def matrix_products(device: torch.device, side: int) -> float:
    """Return the operations per second of a product of two matrices, in the precision "auto"."""
    a, b = (torch.randn(side, side, device=device, dtype=choose_precision("auto", device)) for _ in range(2))
    return 2 * side**3 / statistics.median(seconds_per_step(lambda _: a @ b, 10, 5, device))


def open_pixels(config: PretrainConfig, images: int, device: torch.device, on_host: bool) -> ImageStore:
    """Return a store of random pixels in the memory of the device or of the host."""
    shape, draws = (images, 1, config.stored_size, config.stored_size), np.random.default_rng(0)
    pixels = draws.integers(0, 256, shape, dtype=np.uint8)
    array = pixels if on_host else torch.from_numpy(pixels).to(device)
    return ImageStore(array, np.arange(images), config.stored_size, 0, Path(), device)


def steps_of(
    variant: str, config: PretrainConfig, images: int, device: torch.device
) -> tuple[Step, dict[str, Step], int]:
    """Return the whole step of a variant, its parts, and the network's floating-point operations of a step."""
    config = replace(config, precision="float32") if variant == "float32" else config
    dtype, order = choose_precision(config.precision, device), np.random.default_rng(1)
    store = open_pixels(config, images, device, on_host=variant == "host store")
    views = Views(config.recipe, config.img_res, config.views)

    def read(*_: object) -> Tensor:
        return store.gather(torch.from_numpy(order.integers(0, images, config.batch_size)))

    def draw(number: int) -> list[Tensor]:
        return views(pixels, step_generator("benchmark", config.random_seed, 0, number))

    def train_on_drawn(loss_of: Callable[..., Mapping[str, Tensor]]) -> None:
        gradient_step(model, optimizer, lambda: loss_of(*drawn), config.lr, config.gradient_clip, dtype)

    def take(number: int) -> None:
        forward = functools.partial(step, rows, 0, number)
        gradient_step(model, optimizer, forward, config.lr, config.gradient_clip, dtype)

    model = placed(build_model(config), device).train()
    optimizer, rows = build_optimizer(model, config), torch.arange(config.batch_size)
    loss_of = model if variant in ("no graphs", "compiled") else loss_of_views(model, config)
    step = pretraining_step(loss_of, read, config)
    pixels = read()
    drawn = draw(0)
    with FlopCounterMode(display=False) as counter:
        train_on_drawn(model)  # what a graph does is not counted
    if device.type == "cuda":  # nor is the memory of this step part of the variant's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if variant == "compiled":
        model.backbone = torch.compile(model.backbone)  # type: ignore[assignment]  # it acts as the module
    parts: dict[str, Step] = {"reading": read, "views": draw, "network": lambda _: train_on_drawn(loss_of)}
    return take, parts, counter.get_total_flops()


def row_of(variant: str, cell: PretrainConfig, config: SimpleNamespace, peak: float) -> dict[str, str]:
    """Return the row of one variant; needs a process of its own."""
    device = prepare(config.device, config.threads, deterministic=variant != "not deterministic")
    take, parts, operations = steps_of(variant, cell, config.images, device)
    seconds = seconds_per_step(take, config.steps, config.rounds, device)
    memory, median = peak_memory(device), statistics.median(seconds)
    row = {"variant".ljust(18): variant.ljust(18), "X-rays/s": spread([cell.batch_size / one for one in seconds])}
    row["ms: step"] = f"{1000 * median:.1f}"
    for name, part in parts.items():
        row[name] = f"{1000 * statistics.median(seconds_per_step(part, config.steps, config.rounds, device)):.1f}"
    row["peak"] = f"{operations / median / peak:.0%}"
    # last, since what a profiler leaves behind may take time
    row["busy"] = f"{busy_share(take, config.steps, median):.0%}" if device.type == "cuda" else ""
    row["GB"] = f"{memory / 1e9:.1f}"
    hours = median / cell.batch_size / 3600
    return row | {"COVID h": f"{COVID * hours:.2f}", "CheXpert h": f"{CHEXPERT * hours:.2f}"}


def main(config: SimpleNamespace) -> None:
    """Print one table per backbone and size, with a row per variant."""
    device = prepare(config.device, config.threads)
    keys = ("batch_size", "views", "projector_dims", "recipe", "device")
    given = {**without(PRETRAINING, "only"), **{key: vars(config)[key] for key in keys}, "run_name": "unused"}
    peak = matrix_products(device, 8192 if device.type == "cuda" else 2048)
    print(f"{describe_device(device)}, torch {torch.__version__}: matrix products {peak / 1e12:.1f} TFLOP/s")
    for backbone, size in itertools.product(config.backbones, config.sizes):
        cell = make_config(PretrainConfig, {**given, "backbone": backbone, "img_res": size})
        print(f"\n{backbone}, {size} px, batch {cell.batch_size}, {cell.views} views by {cell.recipe!r}")
        table = Table()
        for variant in config.variants:
            if variant in NEED_CUDA and device.type != "cuda":
                print(f"  {variant} needs a CUDA GPU")
            else:
                table.add(measuring.in_fresh_process(row_of, variant, cell, config, peak))


if __name__ == "__main__":
    main(SimpleNamespace(**config))
