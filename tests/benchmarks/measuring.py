"""What benchmarks share: processes of their own, rounds of timings, tables that are printed row by row."""

import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from self_sup_classes.barlow import BarlowTwins
from selfsup_task.pretraining import PretrainConfig, build_model, loss_of_views, pretraining_step
from utils.hardware import choose_precision, placed, synchronise
from utils.optimisation import build_optimizer, gradient_step

Result = TypeVar("Result")


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return function(*arguments) from a process that ends with it, and so gives back its memory; wait for it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def seconds_of(
    work: Callable[[], object], rounds: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the seconds of each round but the first, which allocates memory."""
    seconds = []
    for _ in range(1 + rounds):
        start = clock()
        work()
        synchronise(device)
        seconds.append(clock() - start)
    return seconds[1:]


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Return median [lowest, highest]."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


class Table:
    """A table whose rows are printed as they come, the first below the names of the columns."""

    def __init__(self) -> None:
        self.widths: list[int] = []

    def add(self, row: Mapping[str, object]) -> None:
        """Print a row, its cells by column."""
        if not self.widths:
            self.widths = [2 + max(len(name), len(str(cell))) for name, cell in row.items()]
            print("".join(name.rjust(width) for name, width in zip(row, self.widths, strict=True)))
        cells = zip(row.values(), self.widths, strict=True)
        print("".join(f" {cell}".rjust(width) for cell, width in cells), flush=True)


class Measured(NamedTuple):
    """A pretraining that is measured and discarded.

    loss_of(*views) is the loss of views and its terms; take(n) draws the views of step n and takes one optimiser step.
    """

    model: BarlowTwins
    optimizer: torch.optim.Optimizer
    loss_of: Callable[..., Mapping[str, Tensor]]
    take: Callable[[int], Mapping[str, Tensor]]


def to_measure(
    config: PretrainConfig, images_of: Callable[[Tensor], Tensor], device: torch.device, graphs: bool = True
) -> Measured:
    """Return a pretraining at its start; `images_of` gives the pixels uint8 [B, 1, S, S] of indices 0 to B - 1.

    Without `graphs` a GPU's kernels are started one by one.
    """
    model = placed(build_model(config), device).train()
    optimizer, dtype = build_optimizer(model, config), choose_precision(config.precision, device)
    loss_of, batch = loss_of_views(model, config) if graphs else model, torch.arange(config.batch_size)
    step = pretraining_step(loss_of, images_of, config)

    def take(number: int) -> Mapping[str, Tensor]:
        forward = functools.partial(step, batch, 0, number)
        return gradient_step(model, optimizer, forward, config.lr, config.gradient_clip, dtype)

    return Measured(model, optimizer, loss_of, take)
