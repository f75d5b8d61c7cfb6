"""The classes or findings of a data set, as a person checks them: counts in each part, and names that look alike."""

import re
from collections.abc import Sequence

import numpy as np

from dataset_loader.columns import Columns
from dataset_loader.readers.tables import class_key
from dataset_loader.splits import PARTS
from utils.messages import say

FEW = 10  # films of a class; fewer are a warning
_LISTED = 40  # classes or findings, at most


def say_labels(columns: Columns, parts: np.ndarray) -> None:
    """Print on stderr the number of films of each class, or with each finding, in each part [N]; warn of odd classes.

    Odd are classes of fewer than FEW films, and names that only a program tells from each other.
    """
    names, counts = columns.label_names, label_counts(columns.labels, len(columns.label_names), parts)
    if not names:
        return
    findings = columns.labels.ndim > 1
    rows = [("positive films" if findings else "class", *PARTS)]
    rows += [(name, *(f"{count:,}" for count in row)) for name, row in zip(names[:_LISTED], counts, strict=False)]
    width = max(len(row[0]) for row in rows)
    for name, *cells in rows:
        say(f"  {name:<{width}}" + "".join(f"  {cell:>7}" for cell in cells))
    if len(names) > _LISTED:
        say(f"  ... and {len(names) - _LISTED:,} more")
    for alike in look_alikes(names):
        listed = " and ".join(map(repr, alike))
        say(f"warning: {listed} differ only in case, spaces, _ or dashes; are they the same?")
    few = [f"{name} ({count})" for name, count in zip(names, counts.sum(axis=1), strict=True) if count < FEW]
    if few and not findings:
        say(f"warning: classes of fewer than {FEW} films: {', '.join(few)}")


def label_counts(labels: np.ndarray, number: int, parts: np.ndarray) -> np.ndarray:
    """Return [C, 3] the number of films of each of C classes [N], or with each finding [N, C], in each of PARTS."""
    present = labels == 1 if labels.ndim > 1 else labels[:, None] == np.arange(number)  # [N, C]
    return np.array([present[parts == part].sum(axis=0) for part in PARTS]).T


def look_alikes(names: Sequence[str]) -> list[list[str]]:
    """Return the names that differ only in what class_key drops, or in spaces, underscores and dashes."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub("[ _-]+", " ", class_key(name)).strip(), []).append(name)
    return [same for same in alike.values() if len(same) > 1]
