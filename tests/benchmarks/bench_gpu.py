"""How fast is pretraining on a GPU, and what holds it back?

    python tests/benchmarks/bench_gpu.py
    python tests/benchmarks/bench_gpu.py --backbones resnet18 --sizes 64 --views 4 --recipe solarize

Optimiser steps of a Barlow Twins pretraining on random pixels, one after the other without waiting, as a training takes
them; of each line the median of the rounds, the lowest and the highest:
  default            what train_barlow_twins.py does: bfloat16, deterministic, views, network and store on the GPU
  host store         the same with the store in the host's memory, from which each batch is copied
  not deterministic  cuDNN chooses its algorithms by their speed
  float32            with TF32 in convolutions, as torch has it
  graph              forward and backward pass as one CUDA graph, for which this repo has no key
  compiled           the backbone by torch.compile, for which it has none either
For each the share of the GPU's matrix products' speed (bfloat16, a product of 8,192 a side) that the network's
multiplications reach, the share of the time in which the GPU computes, the step's parts, and the hours of the original
project's two trainings, 21,165 X-rays 300 times and 191,027 X-rays 60 times. Not a test.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "backbones": ["resnet18", "resnet50"],
    "sizes": [224],  # pixels a side of the views
    "batch_size": 128,  # the original project's
    "views": 2,
    "projector_dims": [512],
    "recipe": "original",
    "variants": ["default", "host store", "not deterministic", "float32", "graph", "compiled"],
    "images": 4096,  # in the store
    "steps": 20,  # of a round
    "rounds": 5,
    "device": "auto",
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from augmentations.transform_utils import Views, step_generator
from dataset_loader.image_store import ImageStore
from self_sup_classes.barlow import BarlowTwins
from selfsup_task.pretraining import PretrainConfig, build_model, twin_step
from selfsup_task.scan_base import PRETRAINING, without
from utils.config import Config, check_choice, make_config, part_of
from utils.hardware import choose_algorithms, choose_precision, describe_device, peak_memory, placed, prepare
from utils.optimisation import build_optimizer, gradient_step

VARIANTS = ["default", "host store", "not deterministic", "float32", "graph", "compiled"]
NEED_CUDA = ["host store", "graph"]
COVID, CHEXPERT = 21_165 * 300, 191_027 * 60  # pairs of views that the original project trained on
WARM_UP = 5  # steps

Step = Callable[[int], object]  # of a number


@dataclass(frozen=True, kw_only=True)
class GpuConfig(Config):
    """The keys of the dict at the top."""

    backbones: list[str]
    sizes: list[int]
    batch_size: int
    views: int
    projector_dims: list[int]
    recipe: str
    variants: list[str]
    images: int
    steps: int
    rounds: int
    device: str

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.variants:
            check_choice("variants", name, VARIANTS)


def synchronise(device: torch.device) -> None:
    """Wait until the device has computed everything."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_per_step(take: Step, steps: int, rounds: int, device: torch.device) -> list[float]:
    """Return the seconds of a step in each round of steps that do not wait for each other."""
    for number in range(WARM_UP):
        take(number)
    found = []
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        for number in range(steps):
            take(number)
        synchronise(device)
        found.append((time.perf_counter() - start) / steps)
    return found


def busy_share(take: Step, steps: int, seconds: float, device: torch.device) -> float:
    """Return the share of a step's `seconds` in which the GPU computes; its kernels run one after the other."""
    if device.type != "cuda":
        return float("nan")
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for number in range(steps):
            take(number)
        synchronise(device)
    kernels = sum(event.self_device_time_total for event in found.key_averages())  # microseconds
    return kernels / 1e6 / steps / seconds


def matrix_products(device: torch.device, side: int) -> float:
    """Return the operations per second of a product of two bfloat16 matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / statistics.median(seconds_per_step(lambda _: a @ b, 10, 5, device))


def open_pixels(config: PretrainConfig, images: int, device: torch.device, on_host: bool) -> ImageStore:
    """Return a store of random pixels in the memory of the device or of the host."""
    shape, draws = (images, 1, config.stored_size, config.stored_size), np.random.default_rng(0)
    pixels = draws.integers(0, 256, shape, dtype=np.uint8)
    array = pixels if on_host else torch.from_numpy(pixels).to(device)
    return ImageStore(array, np.arange(images), config.stored_size, 0, Path(), device)


def graphed(model: BarlowTwins, optimizer: torch.optim.Optimizer, like: list[Tensor], dtype: torch.dtype) -> Any:
    """Return a function of views as large as `like` that takes one step: forward and backward pass are one graph."""
    given = [torch.empty_like(y) for y in like]
    for place, y in zip(given, like, strict=True):
        place.copy_(y)

    def both_passes() -> None:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False):
            loss = model(*given).loss
        loss.backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as torch's documentation asks
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            both_passes()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        both_passes()

    def take(views: list[Tensor]) -> None:
        for place, y in zip(given, views, strict=True):
            place.copy_(y)
        graph.replay()
        optimizer.step()

    return take


def steps_of(
    variant: str, config: PretrainConfig, images: int, device: torch.device
) -> tuple[Step, dict[str, Step], int]:
    """Return the whole step of a variant, its parts, and the network's floating-point operations of a step."""
    choose_algorithms(variant != "not deterministic")
    dtype = torch.float32 if variant == "float32" else choose_precision(config.precision, device)
    store = open_pixels(config, images, device, on_host=variant == "host store")
    model = placed(build_model(config), device).train()
    optimizer = build_optimizer(model, config)
    views = Views(config.recipe, config.img_res, config.views)
    order = np.random.default_rng(1)

    def read(_: int) -> Tensor:
        return store.gather(torch.from_numpy(order.integers(0, images, config.batch_size)))

    pixels = read(0)

    def draw(number: int) -> list[Tensor]:
        return views(pixels, step_generator(config.random_seed, 0, number))

    step, batch = twin_step(model, lambda _: read(0), config), torch.arange(config.batch_size)
    drawn = draw(0)

    def network(_: int) -> object:
        return gradient_step(model, optimizer, lambda: model(*drawn)._asdict(), config.lr, 0.0, dtype)

    def take(number: int) -> object:
        return gradient_step(model, optimizer, lambda: step(batch, 0, number), config.lr, 0.0, dtype)

    with FlopCounterMode(display=False) as counter:
        network(0)
    parts: dict[str, Step] = {"reading": read, "views": draw, "network": network}
    if variant == "graph":
        by_graph = graphed(model, optimizer, drawn, dtype)
        parts["network"] = lambda _: by_graph(drawn)

        def replay(number: int) -> object:
            return by_graph(views(read(0), step_generator(config.random_seed, 0, number)))

        return replay, parts, counter.get_total_flops()
    if variant == "compiled":
        model.backbone = torch.compile(model.backbone)  # type: ignore[assignment]  # it acts as the module
    return take, parts, counter.get_total_flops()


def line_of(variant: str, cell: PretrainConfig, config: GpuConfig, device: torch.device, peak: float) -> str:
    """Return the line of one variant."""
    start = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    take, parts, operations = steps_of(variant, cell, config.images, device)
    seconds = seconds_per_step(take, config.steps, config.rounds, device)
    memory, median = peak_memory(device), statistics.median(seconds)
    busy = busy_share(take, config.steps, median, device)
    shares = [statistics.median(seconds_per_step(part, config.steps, 1, device)) for part in parts.values()]
    pairs = [cell.batch_size * cell.views / 2 / one for one in seconds]
    middle, spread = statistics.median(pairs), f"[{min(pairs):.0f}, {max(pairs):.0f}]"
    return (
        f"{variant:18} {middle:7.0f} {spread:14} {operations / median / peak:5.0%} {busy:5.0%} "
        + "".join(f"{1000 * one:8.1f}" for one in (*shares, median))
        + f" {memory / 1e9:6.1f} {COVID / middle / 3600:6.2f} {CHEXPERT / middle / 3600:8.2f}"
        + f"   ({time.perf_counter() - start:.0f} s)"
    )


def main(config: GpuConfig) -> None:
    """Print one line per backbone, size and variant."""
    device = prepare(config.device, 0)
    given = {**without(PRETRAINING, "only"), **part_of(config, PretrainConfig)}
    base = make_config(PretrainConfig, {**given, "run_name": "unused"})
    peak = matrix_products(device, 8192 if device.type == "cuda" else 512)
    print(f"{describe_device(device)}, torch {torch.__version__}: matrix products {peak / 1e12:.1f} TFLOP/s")
    for backbone in config.backbones:
        for size in config.sizes:
            cell = replace(base, backbone=backbone, img_res=size)
            print(f"\n{backbone}, {size} px, batch {cell.batch_size}, {cell.views} views by {cell.recipe!r}")
            print(
                f"{'':18} {'pairs/s':>7} {'':14} {'peak':>5} {'busy':>5} {'ms:':>3} reading   views network   step",
                end="",
            )
            print("     GB  COVID CheXpert hours")
            for variant in config.variants:
                if variant in NEED_CUDA and device.type != "cuda":
                    print(f"{variant:18} needs a CUDA GPU")
                else:
                    print(line_of(variant, cell, config, device, peak), flush=True)


if __name__ == "__main__":
    run_script(main, GpuConfig, config)
