"""What a report is made of: tables, figures and notes. A table is declared as {heading: column}."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from utils.intervals import interval_text


@dataclass(frozen=True)
class Number:
    """A cell with a number: its text, and the exact value with the bounds of its interval for sorting and checking."""

    text: str
    value: float
    low: float | None = None
    high: float | None = None


Cell = str | Number
Row = Mapping[Any, Any]
Column = Callable[[Row], Cell]


@dataclass(frozen=True)
class Note:
    """A paragraph; `lead` is set in bold before it."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Figure:
    """A PNG, base64-encoded, with its width on the page in pixels and a text that describes it."""

    png: str
    width: int
    alt: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; `runs` names the runs they come from, `folded` tables are closed at first."""

    caption: str
    heads: list[str]
    rows: list[list[Cell]]
    runs: list[str]
    folded: bool = False


Block = Note | Figure | Table


def table(
    caption: str,
    rows: Any,
    columns: Mapping[str, str | Column],
    runs: Iterable[str] = (),
    folded: bool = False,
) -> Table:
    """Return a table of `rows`; `columns` maps each heading to a function of the row, or to the name of a text value.

    Raises KeyError or TypeError for rows that lack a value or hold another type.
    """
    records = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    cells = [[_text(row, col) if isinstance(col, str) else col(row) for col in columns.values()] for row in records]
    return Table(caption, list(columns), cells, list(runs), folded)


def number(name: str, form: str = ".3f", unknown: str = "not known") -> Column:
    """Return a column of plain numbers."""
    return lambda row: Number(f"{row[name]:{form}}", float(row[name])) if _is_known(row.get(name)) else unknown


def count(name: str, unknown: str = "not known") -> Column:
    """Return a column of whole numbers."""
    return number(name, ",.0f", unknown)


def change(before: str, now: str, form: str = ".3f", unknown: str = "not known") -> Column:
    """Return a column of two numbers, before → now, sorted by the second."""

    def cell(row: Row) -> Cell:
        known = _is_known(row.get(before)) and _is_known(row.get(now))
        return Number(f"{row[before]:{form}} → {row[now]:{form}}", float(row[now])) if known else unknown

    return cell


def estimate(value: str = "value", form: str = ".3f", scale: float = 1) -> Column:
    """Return a column of numbers with the 95% interval that the row gives as low and high."""
    return lambda row: _interval(*(scale * row[key] for key in (value, "low", "high")), form=form)


def triple(name: str, form: str = ".3f") -> Column:
    """Return a column of [value, low, high] lists, or of None."""
    return lambda row: _interval(*row[name], form=form) if row.get(name) else "not known"


def _interval(value: Any, low: Any, high: Any, form: str = ".3f") -> Cell:
    if not _is_known(value):
        return "not known"
    bounds = (float(low), float(high)) if _is_known(low) and _is_known(high) else (None, None)
    return Number(interval_text(value, *bounds, form), float(value), *bounds)


def _text(row: Row, name: str) -> str:
    if not isinstance(row[name], str):
        raise TypeError(f"expected text under {name!r}, not {row[name]!r}")
    return row[name]


def _is_known(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(np.isfinite(value))
