"""What the page is made of: tables, figures and paragraphs, from the files of runs."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from utils.report.runs import FoundRun
from utils.wording import interval_text

SCALE = 96 / 150  # figures are saved at 150 dpi, a page has 96
MAX_HEIGHT = 440  # of a figure on the page, in pixels
ESTIMATES = ("value", "mean", "difference", "coverage")  # columns with an interval beside them: low, high


@dataclass(frozen=True)
class Block:
    """A table (as HTML) or a figure (a PNG in base64, with its width in pixels) and its caption, or a paragraph."""

    caption: str
    table: str = ""
    png: str = ""
    width: int = 0
    text: str = ""
    folded: bool = False


def table(caption: str, frame: pd.DataFrame, headings: Mapping[str, str] | None = None, folded: bool = False) -> Block:
    """Return a table of `frame`, or of those columns that `headings` names.

    An estimate stands with its interval, if low and high are known. Raises KeyError for a column that is not there.
    """
    shown: Any = frame.assign(**{name: intervals(frame, name) for name in ESTIMATES if name in frame})
    shown = shown if headings is None else shown[[*headings]].rename(columns=dict(headings))
    shown = shown.map(cell).rename_axis(columns=None)
    with pd.option_context("display.max_colwidth", None):
        return Block(caption, table=shown.to_html(index=False, border=0), folded=folded)


def rows_of(caption: str, runs: Sequence[FoundRun], columns: Mapping[str, str | tuple[str, str]]) -> Block:
    """Return a table of runs, a row for each; `columns` maps headings to a key of the summary, or to two: a → b."""
    rows = [
        {"run": run.label, **{heading: _fact(run.summary, key) for heading, key in columns.items()}} for run in runs
    ]
    return table(caption, pd.DataFrame(rows).dropna(axis=1, how="all"))


def intervals(frame: pd.DataFrame, name: str, form: str = ".3f") -> list[str]:
    """Return the estimates of a column as text, each with the interval `low` to `high` where it is known."""
    bounds = frame.reindex(columns=["low", "high"]).to_numpy(float)
    return [_estimate(value, *pair, form=form) for value, pair in zip(frame[name].astype(float), bounds, strict=True)]


def cell(value: Any) -> str:
    """Return the text of a value: a number, words, or [estimate, low, high]."""
    if isinstance(value, list):
        known = len(value) == 3 and not any(isinstance(item, str) for item in value)
        return _estimate(*value) if known else ", ".join(map(cell, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items())
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float | np.floating) and not float(value).is_integer():
        return f"{value:.3f}" if 1e-3 <= abs(value) < 10 else f"{value:,.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float | np.number) and not isinstance(value, bool) else str(value)


def figures(run: FoundRun, **alts: str) -> list[Block]:
    """Return those of the named figures that exist. Raises OSError if one is not an image."""
    shown = []
    for name, alt in alts.items():
        path = run.folder / "figures" / f"{name}.png"
        if path.exists():
            png = path.read_bytes()
            with Image.open(io.BytesIO(png)) as image:
                image.load()
                width = round(image.width * min(SCALE, MAX_HEIGHT / image.height))
            shown.append(Block(f"{run.label}: {alt}", png=base64.b64encode(png).decode(), width=width))
    return shown


def _fact(summary: Mapping[str, Any], key: str | tuple[str, str]) -> Any:
    if isinstance(key, str):
        return summary.get(key)
    before, now = (cell(summary.get(name)) for name in key)
    return f"{before} → {now}" if now else ""


def _estimate(value: Any, low: Any, high: Any, form: str = ".3f") -> str:
    if value is None or np.isnan(value):
        return ""
    return interval_text(value, low, high, form, unknown="")
