"""How near is a step of pretraining to what its convolutions alone allow on this machine?

    python tests/benchmarks/bench_bound.py
    python tests/benchmarks/bench_bound.py --sizes 64 --precisions bfloat16 --threads 2

Each kind of convolution in the backbone (shapes, stride, kernel) is timed by itself, its forward pass and the gradients
of its weights and input, on channels_last tensors of random numbers; the sum over all convolutions and views is the
bound. Beside it are the whole optimiser step of a Barlow Twins pretraining, and its parts that are not the network:
views of random pixels, and the optimiser. Medians, and the lowest and highest share. On a CPU, seconds are those of the
processor, all threads together, which other programs change little. Not a test.
"""

from typing import Any

from utils.scripts import flags

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
from types import SimpleNamespace

import torch
from measuring import Table, seconds_of, spread, to_measure
from torch import Tensor, nn

from augmentations.transform_utils import Views, step_generator
from self_sup_classes.barlow import BarlowTwins
from selfsup_task.pretraining import PretrainConfig
from selfsup_task.scan_base import PRETRAINING, without
from utils.config import make_config
from utils.hardware import choose_precision, describe_device, prepare

Seconds = Callable[[Callable[[], object]], list[float]]  # of each round of some work
Shape = tuple[int, ...]


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


def bound(model: BarlowTwins, config: PretrainConfig, dtype: torch.dtype, seconds: Seconds) -> float:
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

        total += count * statistics.median(seconds(both_ways))
    return total * config.views


def measure(config: PretrainConfig, rounds: int, compiled: bool) -> dict[str, str]:
    """Return the row of one size and precision."""
    device = prepare(config.device, config.threads)
    dtype = choose_precision(config.precision, device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def seconds(work: Callable[[], object]) -> list[float]:
        return seconds_of(work, rounds, device, clock)

    shape = (config.batch_size, 1, config.stored_size, config.stored_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8).to(device)
    model, optimizer, _, take = to_measure(config, lambda rows: pixels, device, graphs=not compiled)
    least = bound(model, config, dtype, seconds)
    if compiled:
        model.backbone = torch.compile(model.backbone)  # type: ignore[assignment]  # it acts as the module
    views = Views(config.recipe, config.img_res, config.views)
    whole = seconds(lambda: take(0)["loss"].item())
    parts = {"views": lambda: views(pixels, step_generator("benchmark", 0, 0, 0)), "optimiser": optimizer.step}
    taken = statistics.median(whole)
    row = {"px": str(config.img_res), "precision": config.precision}
    row |= {"X-rays/s": f"{config.batch_size / taken:.1f}", "bound": f"{config.batch_size / least:.1f}"}
    row["share"] = spread([least / one for one in whole], ".0%")
    return row | {name: f"{statistics.median(seconds(part)) / taken:.0%}" for name, part in parts.items()}


def main(config: SimpleNamespace) -> None:
    """Print one row per size and precision."""
    print(f"{describe_device(prepare(config.device, config.threads))}, torch {torch.__version__}, {config.backbone}")
    keys = ("backbone", "batch_size", "views", "projector_dims", "recipe", "threads", "device")
    given, table = {**without(PRETRAINING, "only"), **{key: vars(config)[key] for key in keys}}, Table()
    for size in config.sizes:
        for precision in config.precisions:
            values = {**given, "img_res": size, "precision": precision, "run_name": "unused"}
            table.add(measure(make_config(PretrainConfig, values), config.rounds, config.compiled))


if __name__ == "__main__":
    main(SimpleNamespace(**config))
