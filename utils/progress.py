"""Progress: a bar with rate and time left on a terminal, a line now and then where output is a file."""

import sys
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30
CURSOR_UP = "\x1b[A"  # how tqdm goes back from a bar inside another


Item = TypeVar("Item")


class _Lines:
    """stderr for a bar that is not drawn over itself."""

    def write(self, text: str) -> None:
        line = text.replace(CURSOR_UP, "").strip()
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(total: int, description: str, done: int = 0, show: bool = True, unit: str = "img") -> "tqdm[Any]":
    """A bar over `total` images, or another unit, of which `done` are done, for the caller or `with` to close."""
    style: dict[str, Any] = {"dynamic_ncols": True}
    if not sys.stderr.isatty():
        interval = SECONDS_BETWEEN_LINES
        style = {
            "file": _Lines(),
            "ascii": True,
            "ncols": 100,
            "mininterval": interval,
            "maxinterval": interval,
        }
    return tqdm(total=total, initial=done, desc=description, unit=unit, disable=not show, **style)


def tracked(items: Collection[Item], description: str, unit: str) -> Iterator[Item]:
    """The items, one by one, under a bar over them."""
    with progress_bar(len(items), description, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()
