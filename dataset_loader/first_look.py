"""What a person checks first about opened data: films by class and part, odd classes, leaks between parts, copies."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dataset_loader.columns import Columns
from dataset_loader.duplicates import joined_groups
from dataset_loader.readers.tables import class_key
from dataset_loader.splits import PARTS, VAL_SHARE
from utils.messages import say

FEW = 10  # films of a class; fewer are a warning
_LISTED = 40  # classes or findings, at most
_MANY_COPIES = 10  # of one film; more are hardly films


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


def warn_of_named_parts(columns: Columns, parts: np.ndarray, val_share: float) -> None:
    """Say what joins the parts that the source names, and which groups they divide; a drawn split divides none."""
    named = set(columns.named_parts) & {"val", "test"}
    if "val" in named and val_share != VAL_SHARE:
        say("warning: val_share without effect: the source names a validation part")
    joined = (columns.named_parts == "") & np.isin(parts, list(named))
    if joined.any():
        say(
            f"warning: {joined.sum():,} more images join the {' and '.join(sorted(named))} images that the source "
            "names: they share a patient or a film with one of these"
        )
    groups = columns.groups
    shared = (parts == "train") & np.isin(groups, groups[parts != "train"])
    if shared.any():
        say(
            f"warning: {shared.sum():,} images of the named train part share a patient or a film with a validation or "
            "test image, so scores may be too good"
        )


def warn_of_copies(columns: Columns, parts: np.ndarray, duplicates: pd.DataFrame) -> None:
    """Say where more than _MANY_COPIES files show one picture, and of which class and part they are."""
    if len(duplicates) < _MANY_COPIES:  # n copies are n - 1 pairs
        return
    files, classes = columns.paths.astype(str), ""
    if columns.labels.ndim == 1:
        classes = np.array([f"{name} " for name in columns.label_names], dtype=object)[columns.labels]
    kinds = pd.Series(classes + "images of the " + parts.astype(object) + " part")
    picture = pd.Series(joined_groups(columns.paths, columns.paths, duplicates))
    for name in picture.value_counts().loc[lambda count: count > _MANY_COPIES].index:
        copies = (picture == name).to_numpy()
        distances = duplicates.loc[duplicates["file"].isin(files[copies].tolist()), "distance"]
        exact = "exact " * bool((distances == 0).all())
        if not exact and len(set(columns.details.loc[copies, "patient"])) == 1:
            continue  # films of one patient, taken day by day
        shares = [f"{n:,} of {(kinds == kind).sum():,} {kind}" for kind, n in kinds.loc[copies].value_counts().items()]
        say(
            f"warning: {copies.sum():,} files are {exact}copies of one picture ({', '.join(files[copies][:3])}, ...), "
            "perhaps what an export writes for a film that is missing. They are one group, which a drawn split keeps "
            f"whole: {', '.join(shares)}. If they show no film, move them out of the data."
        )
