"""Train, validation and test parts that share no patient; subsets of the labels."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.ids import PLAIN, Ids
from utils.config import UserError
from utils.files import write_text

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}  # of the images, by default
PARTS = tuple(SHARES)


def split_by_group(
    paths: np.ndarray,
    groups: np.ndarray,
    strata: np.ndarray,
    seed: int,
    shares: Sequence[float] = tuple(SHARES.values()),
    kept: np.ndarray | None = None,
) -> np.ndarray:
    """Return the part of each of N images, [N] of PARTS: whole groups only, stratified.

    `strata` is an int per image; a group's stratum is the most frequent one among its images. Each part gets
    its share of the images of each stratum to within one group; the next stratum compensates for the rounding.
    Groups are drawn in the order of a hash of (seed, group): neither the order of the images nor the version of a
    random generator matters. `kept` [N] holds parts that are fixed, the same for all images of a group, and "" for
    images to draw, so that kept and drawn ones together have the shares. Raises ValueError for lengths that differ, a
    path listed twice or shares that do not sum to 1.
    """
    if not len(paths) == len(groups) == len(strata) or len(np.unique(paths)) != len(paths):
        raise ValueError("paths, groups and strata must have one length, and a path must be listed once")
    if len(shares) != len(PARTS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares {shares} are not one per part of {PARTS} with a sum of 1")
    names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    stratum_of, size_of = _group_strata(group_of, np.asarray(strata)), np.bincount(group_of)
    drawn = np.argsort([hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in names])
    part_of = np.full(len(names), -1)
    for number, part in enumerate(PARTS if kept is not None else ()):
        part_of[group_of[kept == part]] = number
    carried = [0.0] * len(PARTS)  # images that each part is owed from the strata so far
    for stratum in np.unique(stratum_of):
        members = drawn[stratum_of[drawn] == stratum]
        has = [int(size_of[members[part_of[members] == part]].sum()) for part in range(len(PARTS))]
        new = members[part_of[members] == -1]
        part_of[new], carried = _deal(size_of[new].tolist(), has, shares, carried)
    return np.array(PARTS)[part_of[group_of]]


def complete_split(
    columns: Columns, seed: int, shares: Mapping[str, float] = SHARES, kept: np.ndarray | None = None
) -> np.ndarray:
    """Return the part of each of N images, [N] of PARTS: the official one where the source gives it.

    Images without one are split by group, as split_by_group does, into those parts that the source does not name, in
    proportion to `shares`, and train; those of an official group go to its part. Where the source names no validation
    or test part, images of its train part are drawn for it. Parts `kept` [N] of an earlier split ("" where there is
    none) come before drawing, and after the source's. Without any label, all are the train part.
    """
    if not columns.label_names:
        return np.full(len(columns), "train")
    parts = columns.official.astype("<U5")
    absent = [part for part in PARTS[1:] if part not in parts]
    for part in PARTS[1:]:
        parts[(parts == "") & np.isin(columns.groups, columns.groups[columns.official == part])] = part
    drawn = np.flatnonzero((parts == "") | ((parts == "train") & bool(absent)))
    if len(drawn):
        rows = columns.take(drawn)
        wanted = np.array([share * (part == "train" or part in absent) for part, share in shares.items()])
        wanted, fixed = (wanted / wanted.sum()).tolist(), None if kept is None else kept[drawn]
        parts[drawn] = split_by_group(rows.paths, rows.groups, strata_of(rows.labels), seed, wanted, fixed)
    return parts


def _group_strata(group_of: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Return [G]: the most frequent stratum among a group's images, the lowest of equally frequent ones."""
    values, codes = np.unique(strata, return_inverse=True)
    cells = (group_of.max() + 1) * len(values)
    counts = np.bincount(group_of * len(values) + codes, minlength=cells)
    return values[counts.reshape(-1, len(values)).argmax(axis=1)]


def _deal(
    sizes: list[int], has: list[int], shares: Sequence[float], carried: list[float]
) -> tuple[list[int], list[float]]:
    """Return the part of each of a stratum's groups, of `sizes` images, and how many images each part is owed then.

    Each part `has` so many images of the stratum before. A group goes to the part that is owed most among those that
    can take it whole; if none can, among all that are owed anything. So no part exceeds its share of the stratum by a
    whole group.
    """
    owed = [share * (sum(sizes) + sum(has)) - before for share, before in zip(shares, has, strict=True)]
    parts = []
    for size in sizes:
        takers = [part for part, images in enumerate(owed) if images >= size - 1e-9]
        takers = takers or [part for part, images in enumerate(owed) if images > 1e-9]
        part = max(takers, key=lambda part: owed[part] + carried[part])
        owed[part] -= size
        parts.append(part)
    return parts, [before + rest for before, rest in zip(carried, owed, strict=True)]


def strata_of(labels: np.ndarray) -> np.ndarray:
    """Return the strata to split by, [N] int64.

    Class labels [N] are their own strata. Findings [N, C] (1 positive, anything else not) overlap: an image's stratum
    is 1 + the rarest of its positive findings, 0 if it has none. So the findings that a random split distributes worst
    are distributed best (the idea of Sechidis et al. 2011, section 3).
    """
    if labels.ndim == 1:
        return labels.astype(np.int64)
    positive = labels == 1
    rarest_first = np.argsort(positive.sum(axis=0), kind="stable")
    rarest = rarest_first[positive[:, rarest_first].argmax(axis=1)]
    return np.where(positive.any(axis=1), 1 + rarest, 0).astype(np.int64)


def label_subset(paths: np.ndarray, strata: np.ndarray, fraction: float, draw: int, seed: int) -> np.ndarray:
    """Return positions [n], increasing, of `fraction` (0 to 1] of the images: stratified, nested over fractions.

    Each stratum has one order for a draw, by a hash of (seed, draw, path); a fraction takes its first images, at
    least one. So 1% lies inside 5%, and draw k is a function of (seed, k) and the names alone.
    Raises UserError for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"the label fraction is {fraction}; expected a number above 0 and up to 1, such as 0.05.")
    drawn = np.argsort([hashlib.sha256(f"{seed}:{draw}:{path}".encode()).hexdigest() for path in paths])
    chosen = []
    for stratum in np.unique(strata):
        members = drawn[strata[drawn] == stratum]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))


def names_hash(paths: np.ndarray) -> str:
    """Return 16 hex digits that identify a list of files, whatever their order."""
    return hashlib.sha256("\n".join(sorted(map(str, paths))).encode()).hexdigest()[:16]


def split_hash(paths: np.ndarray, parts: np.ndarray) -> str:
    """Return 16 hex digits that identify a split, whatever the order of the images."""
    lines = sorted(f"{path}\t{part}\n" for path, part in zip(paths, parts, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def write_split(
    path: Path, columns: Columns, parts: np.ndarray, unlabelled: Columns | None = None, ids: Ids = PLAIN
) -> None:
    """Write file,label,group,part as CSV; a label is the class's name or the findings that are not blank.

    `unlabelled` images of the same data set follow, whose part is UNLABELLED, except with `ids` "none", under which no
    later run finds a film again. `ids` says how files and groups are named.
    """
    table = pd.DataFrame(
        {"file": columns.paths, "label": _label_texts(columns), "group": columns.groups, "part": parts}
    )
    if unlabelled is not None and len(unlabelled) and ids.mode != "none":
        more = {"file": unlabelled.paths, "label": "", "group": unlabelled.groups, "part": UNLABELLED}
        table = pd.concat([table, pd.DataFrame(more)])
    table = table.assign(file=ids.files(table["file"]), group=ids.names(table["group"]))
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _label_texts(columns: Columns) -> list[str]:
    """Return `COVID`, or `Edema=1;Cardiomegaly=-1`, for each image."""
    if columns.labels.ndim == 1:
        return [columns.label_names[label] for label in columns.labels]
    texts: list[list[str]] = [[] for _ in range(len(columns))]
    for name, values in zip(columns.label_names, columns.labels.T, strict=True):
        for value in (1, 0, -1):
            text = f"{name}={value}"
            for row in np.flatnonzero(values == value).tolist():
                texts[row].append(text)
    return [";".join(parts) for parts in texts]
