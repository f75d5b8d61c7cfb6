"""Train, validation and test parts that share no patient; subsets of the labels."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.ids import PLAIN, Ids
from utils.config import UserError
from utils.files import write_table

PARTS = ("train", "val", "test")
VAL_SHARE = 0.1  # of the images whose part is drawn, by default: validation; the others are the folds
FOLDS = 5
FOLD_NAMES = [str(fold) for fold in range(FOLDS)]


def split_by_group(
    groups: np.ndarray, strata: np.ndarray, seed: int, shares: Sequence[float], kept: np.ndarray | None = None
) -> np.ndarray:
    """Return the set of each of N images, [N] int from 0 to len(shares) - 1: whole groups only, stratified.

    `strata` is an int per image; a group's stratum is the most frequent one among its images. Each set gets
    its share, of `shares` that sum to 1, of the images of each stratum to within one group; the next stratum
    compensates for the rounding.
    Groups are drawn in the order of a hash of (seed, group): neither the order of the images nor the version of a
    random generator matters. `kept` [N] holds sets that are fixed, the same for all images of a group, and -1 for
    images to draw, so that kept and drawn ones together have the shares.
    """
    names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    stratum_of, size_of = _group_strata(group_of, np.asarray(strata)), np.bincount(group_of)
    drawn = np.argsort([hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in names])
    set_of = np.full(len(names), -1)
    if kept is not None:
        set_of[group_of] = kept
    carried = [0.0] * len(shares)  # images that each set is owed from the strata so far
    for stratum in np.unique(stratum_of):
        members = drawn[stratum_of[drawn] == stratum]
        has = [int(size_of[members[set_of[members] == number]].sum()) for number in range(len(shares))]
        new = members[set_of[members] == -1]
        set_of[new], carried = _deal(size_of[new].tolist(), has, shares, carried)
    return set_of[group_of]


def places_of(columns: Columns, seed: int, val_share: float = VAL_SHARE, kept: np.ndarray | None = None) -> np.ndarray:
    """Return the place of each of N images, [N] str: a part of PARTS, whatever the fold, or one of FOLD_NAMES.

    A part that the source names stays; images whose group it puts into validation or test go there. The others are
    drawn by group, as split_by_group does: `val_share` of them are validation, unless the source names that part, and
    the rest are folds of equal size, or train where the source names a test part. Where the source names no validation
    or test part, images of its train part are drawn for it. Places `kept` [N] of an earlier split ("" where there is
    none) come before drawing, and after the source's: its folds stay beside a test part that the source names now.
    Without any label, all are train.
    """
    if not columns.label_names:
        return np.full(len(columns), "train")
    places = columns.named_parts.astype("<U5")
    absent = [part for part in PARTS[1:] if part not in places]
    for part in PARTS[1:]:
        places[(places == "") & np.isin(columns.groups, columns.groups[columns.named_parts == part])] = part
    to_draw = (places == "") | ((places == "train") & bool(absent))
    if kept is not None:
        places = np.where(to_draw, kept, places)
        to_draw &= ~np.isin(kept, ["train", "test"])
    drawn = np.flatnonzero(to_draw)
    if len(drawn):
        rows, val_share = columns.take(drawn), val_share if "val" in absent else 0.0
        has_folds = "test" in absent or (kept is not None and np.isin(kept, FOLD_NAMES).any())
        sets = FOLD_NAMES if has_folds else ["train"]
        shares = [(1 - val_share) / len(sets)] * len(sets) + [val_share]
        names = [*sets, "val"]
        fixed = None if kept is None else np.array([names.index(k) if k in names else -1 for k in kept[drawn]])
        numbers = split_by_group(rows.groups, strata_of(rows.labels), seed, shares, fixed)
        places[drawn] = np.array(names)[numbers]
    return places


def parts_of(places: np.ndarray, fold: int) -> np.ndarray:
    """Return the part of each of N images, [N] of PARTS, when one fold is the test part and the others train."""
    in_fold = np.isin(places, FOLD_NAMES)
    return np.where(in_fold, np.where(places == str(fold), "test", "train"), places)


def _group_strata(group_of: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Return [G]: the most frequent stratum among a group's images, the lowest of equally frequent ones."""
    values, codes = np.unique(strata, return_inverse=True)
    cells = (group_of.max() + 1) * len(values)
    counts = np.bincount(group_of * len(values) + codes, minlength=cells)
    return values[counts.reshape(-1, len(values)).argmax(axis=1)]


def _deal(
    sizes: list[int], has: list[int], shares: Sequence[float], carried: list[float]
) -> tuple[list[int], list[float]]:
    """Return the set of each of a stratum's groups, of `sizes` images, and how many images each set is owed then.

    Each set `has` so many images of the stratum before. A group goes to the set that is owed most among those that
    can take it whole; if none can, among all that are owed anything. So no set exceeds its share of the stratum by a
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


def label_subset(paths: np.ndarray, strata: np.ndarray, count: int, draw: int, seed: int) -> np.ndarray:
    """Return positions [count], increasing, of the images whose labels are used: stratified, nested for every count.

    Each stratum has one order for a draw, by a hash of (seed, draw, path). The strata take turns as parties take seats
    by Sainte-Lague's rule, one each first: a stratum of n images, of which k are taken, has the claim n / (2 k + 1). So
    the images for 20 labels are among those for 21, each stratum has its share to within about one image, and draw k
    is a function of (seed, k) and the names alone. Stratifying reads all labels of the images.
    Raises UserError for a count below the number of strata or above that of images.
    """
    hashed = np.array([hashlib.sha256(f"{seed}:{draw}:{path}".encode()).hexdigest() for path in paths])
    drawn = np.argsort(hashed)
    claim = np.zeros(len(paths))
    strata_there = np.unique(strata)
    for stratum in strata_there:
        members = drawn[strata[drawn] == stratum]
        claim[members] = len(members) / (2 * np.arange(len(members)) + 1)
        claim[members[0]] = np.inf
    if not len(strata_there) <= count <= len(paths):
        raise UserError(
            f"{count:,} labels are asked for; there are {len(paths):,} to train with, and {len(strata_there)} classes "
            "or groups of findings, each of which needs one."
        )
    return np.sort(np.lexsort((hashed, -claim))[:count])


def names_hash(paths: np.ndarray) -> str:
    """Return 16 hex digits that identify a list of files, whatever their order."""
    return hashlib.sha256("\n".join(sorted(map(str, paths))).encode()).hexdigest()[:16]


def split_hash(paths: np.ndarray, parts: np.ndarray) -> str:
    """Return 16 hex digits that identify a split, whatever the order of the images."""
    lines = sorted(f"{path}\t{part}\n" for path, part in zip(paths, parts, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def write_split(
    path: Path,
    columns: Columns,
    places: np.ndarray,
    fold: int,
    unlabelled: Columns | None = None,
    ids: Ids = PLAIN,
) -> None:
    """Write file,label,group,part,fold as CSV; a label is the class's name or the findings that are not blank.

    `part` is that when `fold` is the test part; the column fold is blank for images that no fold holds.

    `unlabelled` images of the same data set follow, whose part is UNLABELLED, except with `ids` "none", under which no
    later run finds a film again. `ids` says how files and groups are named.
    """
    table = pd.DataFrame(
        {"file": columns.paths, "label": _label_texts(columns), "group": columns.groups, "part": parts_of(places, fold)}
    ).assign(fold=np.where(np.isin(places, FOLD_NAMES), places, ""))
    if unlabelled is not None and len(unlabelled) and ids.mode != "none":
        more = {"file": unlabelled.paths, "label": "", "group": unlabelled.groups, "part": UNLABELLED, "fold": ""}
        table = pd.concat([table, pd.DataFrame(more)])
    write_table(path, table.assign(file=ids.files(table["file"]), group=ids.names(table["group"])))


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
