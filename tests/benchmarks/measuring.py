"""What benchmarks share: processes of their own, and tables that are printed row by row."""

import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return function(*arguments) from a process that ends with it, and so gives back its memory; wait for it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


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
