"""What a data set holds, as facts that a run records: from tables and names alone, no pixel is looked at."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dataset_loader.columns import Columns
from utils.facts import fact

DETAILS = ("sex", "age", "view", "source", "study")  # that scores are split by


def listing(columns: Columns) -> dict[str, Any]:
    """Return facts about the files, labels, named parts and patients, by name."""
    labelled = columns.labelled() if columns.label_names else columns.take(np.arange(0))
    named = columns.take(np.flatnonzero(columns.named_parts != ""))
    has_patient = columns.groups.astype(str) != columns.paths.astype(str)  # without one, an image is its own group
    known = columns.take(np.flatnonzero(has_patient))
    parts = {part: int((named.named_parts == part).sum()) for part in sorted(set(named.named_parts))}
    study: Iterable[Any] = known.details["study"].astype(str) if "study" in known.details else [""] * len(known)
    return {
        "files": listed_files(columns.paths),
        "labels": _labels(labelled),
        "official parts": fact(len(named), _lines(named.paths, named.named_parts), parts),
        "patients": fact(len(np.unique(known.groups)), _lines(known.paths, known.groups, study)),
    }


def listed_files(paths: np.ndarray) -> dict[str, Any]:
    """Return the fact about a list of files, whatever their order."""
    return fact(len(paths), sorted(map(str, paths)))


def listed_lines(file: Path) -> dict[str, Any]:
    """Return the fact about the lines of a table but the first, whatever their order."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    return fact(len(lines), sorted(lines))


def details(columns: Columns) -> dict[str, Any]:
    """Return the fact about sex, age and the like, and lung masks."""
    known = [name for name in DETAILS if name in columns.details]
    values = [columns.details[name].astype("string").fillna("") for name in known]
    masks = [mask or "" for mask in columns.masks]
    counts = {name: int(np.sum(value != "")) for name, value in zip(known, values, strict=True)}
    counts["lung masks"] = sum(map(bool, masks))
    return fact(len(columns), [*known, *_lines(columns.paths, *values, masks)], counts)


def _labels(columns: Columns) -> dict[str, Any]:
    """Return the fact about the labels of images that have one: its parts are classes, or positives of findings."""
    names, labels = np.array(columns.label_names, dtype=object), columns.labels
    if labels.ndim == 1:
        counts = dict(zip(names.tolist(), np.bincount(labels, minlength=len(names)).tolist(), strict=True))
        return fact(len(columns), _lines(columns.paths, names[labels]), counts)
    order = np.argsort(names)
    values = np.nan_to_num(np.ascontiguousarray(labels[:, order], dtype=np.float32), nan=9)
    counts = dict(zip(names.tolist(), (labels == 1).sum(0).tolist(), strict=True))
    return fact(len(columns), [*names[order], *map(str, columns.paths), values.tobytes()], counts)


def _lines(*columns: Iterable[Any]) -> list[str]:
    return ["\t".join(map(str, row)) for row in zip(*columns, strict=True)]
