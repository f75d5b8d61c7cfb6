"""What a report is made of, whatever it is written as: sections of text, tables and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.wording import interval_text


@dataclass(frozen=True)
class Number:
    """A cell's number: how it is written, and itself, to be sorted by and to be checked."""

    text: str
    value: float
    low: float | None = None
    high: float | None = None


Cell = str | Number


@dataclass(frozen=True)
class Text:
    """A paragraph, after a few words that stand out."""

    text: str
    lead: str = ""

    def __post_init__(self) -> None:
        """Raises TypeError for what is no text."""
        if not isinstance(self.text, str):
            raise TypeError(f"a paragraph is {self.text!r}")


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns, and the runs that they came from."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    runs: Sequence[str] = ()
    folded: bool = False

    def __post_init__(self) -> None:
        """Raises TypeError for a cell that cannot be written: a damaged file is found where its section is made."""
        strange = [cell for row in [self.columns, *self.rows] for cell in row if not isinstance(cell, str | Number)]
        if strange:
            raise TypeError(f"a cell holds {strange[0]!r}")


@dataclass(frozen=True)
class Picture:
    """A PNG file's bytes, its (width, height), what it says to who cannot see it, and the run that it came from."""

    png: bytes
    size: tuple[int, int]
    alt: str
    run: str


@dataclass(frozen=True)
class Missing:
    """What has not been run, and the command that runs it."""

    what: str
    command: str


Block = Text | Table | Picture | Missing


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; `anchor` is its name in links."""

    anchor: str
    title: str
    blocks: Sequence[Block]


def number(value: float, form: str = ".3f") -> Cell:
    """A number without an interval: its column or caption says "one run", or it is a count."""
    return Number(f"{value:{form}}", float(value)) if _is_known(value) else "not known"


def count(value: float) -> Cell:
    """A number of things."""
    return number(value, ",.0f")


def estimate(value: float, low: float, high: float, form: str = ".3f") -> Cell:
    """A number with its 95% interval, or, where that is not known, with the words that it has none."""
    if not _is_known(value):
        return "not known"
    if not (_is_known(low) and _is_known(high)):
        return Number(interval_text(value, float("nan"), float("nan"), form), float(value))
    return Number(interval_text(value, low, high, form), float(value), float(low), float(high))


def change(before: float, now: float, form: str = ".3f") -> Cell:
    """Two numbers of one run, sorted by the second."""
    if not (_is_known(before) and _is_known(now)):
        return "not known"
    return Number(f"{before:{form}} → {now:{form}}", float(now))


def row_estimate(row: Mapping[Any, Any], form: str = ".3f", value: str = "value") -> Cell:
    """The estimate of a table's row with the columns `value`, low and high."""
    return estimate(row[value], row["low"], row["high"], form)


def _is_known(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(np.isfinite(value))
