"""How near is a step of pretraining to what its convolutions alone allow on this machine?

    python tests/benchmarks/bench_bound.py
    python tests/benchmarks/bench_bound.py --sizes 64 --precisions bfloat16 --threads 2

Each kind of convolution in the backbone (shapes, stride, kernel) is timed by itself, its forward pass and the gradients
of its weights and input, on channels_last tensors of random numbers; the sum over all convolutions and views is the
bound. Beside it the whole optimiser step of a Barlow Twins pretraining, and its parts that are not the network: views
of random pixels, and the optimiser. Medians, and the lowest and highest share. On a CPU seconds are those of
the processor, all threads together, which other programs change little. Not a test.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "backbone": "resnet18",
    "sizes": [64, 96, 224],  # pixels a side of the views
    "precisions": ["float32", "bfloat16"],
    "batch_size": 128,
    "views": 2,
    "projector_dims": [1024, 1024],
    "recipe": "solarize",
    "compiled": False,  # the step with torch.compile, which takes minutes first; the bound is that of eager operators
    "rounds": 3,  # of the step and of each convolution, after one that warms up
    "threads": 1,
    "device": "auto",
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from augmentations.transform_utils import Views, step_generator
from self_sup_classes.barlow import BarlowTwins
from selfsup_task.pretraining import PretrainConfig
from selfsup_task.resources import to_measure
from selfsup_task.scan_base import PRETRAINING, without
from utils.config import Config, make_config, part_of
from utils.hardware import choose_precision, describe_device, prepare, synchronise

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BoundConfig(Config):
    """The keys of the dict at the top."""

    backbone: str
    sizes: list[int]
    precisions: list[str]
    batch_size: int
    views: int
    projector_dims: list[int]
    recipe: str
    compiled: bool
    rounds: int
    threads: int
    device: str


def seconds_of(work: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    """Return the seconds of each round but the first, which allocates memory."""
    clock, seconds = time.process_time if device.type == "cpu" else time.perf_counter, []
    for _ in range(1 + rounds):
        start = clock()
        work()
        synchronise(device)
        seconds.append(clock() - start)
    return seconds[1:]


def convolutions(backbone: nn.Module, y: Tensor) -> dict[tuple[Shape, Shape, Shape], tuple[nn.Conv2d, int]]:
    """Return one convolution of each kind that a forward pass of y [N, C, R, R] takes, and how often it takes it.

    A kind is the shape of its input, that of its kernel, and the stride.
    """
    found, counts = {}, Counter[tuple[Shape, Shape, Shape]]()

    def note(layer: nn.Conv2d, inputs: tuple[Tensor], _: Tensor) -> None:
        kind = tuple(inputs[0].shape), tuple(layer.weight.shape), layer.stride
        counts[kind] += 1
        found[kind] = layer

    hooks = [layer.register_forward_hook(note) for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        backbone(y)
    for hook in hooks:
        hook.remove()
    return {kind: (layer, counts[kind]) for kind, layer in found.items()}


def bound(model: BarlowTwins, config: PretrainConfig, rounds: int, dtype: torch.dtype) -> float:
    """Return the seconds that the convolutions of one step take by themselves."""
    weight = next(model.parameters())
    y = torch.rand(config.batch_size, config.in_channels, config.img_res, config.img_res, device=weight.device)
    total = 0.0
    for (shape, _, _), (layer, count) in convolutions(model.backbone, y).items():
        first = shape == tuple(y.shape)  # pixels need no gradient
        inputs = torch.rand(shape, device=weight.device).to(dtype, memory_format=torch.channels_last)
        inputs.requires_grad_(not first)

        def both_ways(layer: nn.Conv2d = layer, inputs: Tensor = inputs) -> None:
            with torch.autocast(weight.device.type, dtype, enabled=dtype != torch.float32):
                out = layer(inputs)
            out.backward(torch.ones_like(out))
            layer.weight.grad = inputs.grad = None

        total += count * statistics.median(seconds_of(both_ways, rounds, weight.device))
    return total * config.views


def measure(config: PretrainConfig, rounds: int, compiled: bool) -> str:
    """Return the line of one size and precision."""
    device = prepare(config.device, config.threads)
    dtype = choose_precision(config.precision, device)
    pixels = torch.randint(256, (config.batch_size, 1, config.stored_size, config.stored_size), dtype=torch.uint8)
    pixels = pixels.to(device)
    model, optimizer, _, take = to_measure(config, lambda rows: pixels, device, graphs=not compiled)
    least = bound(model, config, rounds, dtype)
    if compiled:
        model.backbone = torch.compile(model.backbone)  # type: ignore[assignment]  # it acts as the module
    views = Views(config.recipe, config.img_res, config.views)
    whole = seconds_of(lambda: take(0)["loss"].item(), rounds, device)
    drawing = statistics.median(seconds_of(lambda: views(pixels, step_generator("benchmark", 0, 0, 0)), rounds, device))
    updating = statistics.median(seconds_of(optimizer.step, rounds, device))
    taken = statistics.median(whole)
    rest = taken - least - drawing - updating
    return (
        f"{config.img_res:5} {config.precision:>9} {config.batch_size / taken:9.1f} {config.batch_size / least:9.1f} "
        f"{least / taken:5.0%} [{least / max(whole):.0%}, {least / min(whole):.0%}] "
        f"{drawing / taken:7.0%} {updating / taken:9.0%} {rest / taken:6.0%}"
    )


def main(config: BoundConfig) -> None:
    """Print one line per size and precision."""
    device = prepare(config.device, config.threads)
    given = {**without(PRETRAINING, "only"), **part_of(config, PretrainConfig)}
    base = make_config(PretrainConfig, {**given, "run_name": "unused"})
    print(f"{describe_device(device)}, torch {torch.__version__}, {config.backbone}, batch {config.batch_size}")
    print(f"{'':15} {'X-rays/s':>19}, of a processor's time on a CPU")
    titles = f"{'px':>5} {'precision':>9} {'step':>9} {'bound':>9} {'share':>5} {'':>10}"
    print(f"{titles} {'views':>7} {'optimiser':>9} {'rest':>6}")
    for size in config.sizes:
        for precision in config.precisions:
            cell = replace(base, img_res=size, precision=precision)
            print(measure(cell, config.rounds, config.compiled), flush=True)


if __name__ == "__main__":
    run_script(main, BoundConfig, config)
