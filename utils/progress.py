"""Progress: a bar with rate and time left on a terminal, a line now and then where output is a file."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


class _Lines:
    """stderr for a bar that is not drawn over itself."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(total: int, description: str, done: int = 0, show: bool = True) -> "tqdm[Any]":
    """A bar over `total` images of which `done` are done, to be closed by the caller or a with statement."""
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
    return tqdm(total=total, initial=done, desc=description, unit="img", disable=not show, **style)
