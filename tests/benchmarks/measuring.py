"""What benchmarks share: processes of their own, rounds of timings, tables that are printed row by row."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from utils.hardware import synchronise

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
