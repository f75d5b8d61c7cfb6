"""Scores by sex, age, view and source, where a data set knows them."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from utils.intervals import bootstrap_intervals, fewest_groups

MIN_IMAGES = 30  # with fewer, a subgroup's score says little, and the table says so
AGE_BANDS = {
    "0 to 17": (0, 18),
    "18 to 39": (18, 40),
    "40 to 59": (40, 60),
    "60 to 79": (60, 80),
    "80 or more": (80, 999),
}
MAX_GROUPS = 12  # of one detail; of more, as when each file has its own source, the smallest make one group
TEXTS = ("sex", "view", "source")  # details that are groups as they are


def subgroups(details: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield detail, group and which of the N rows belong to it, bool [N], for each group that occurs.

    Of more than MAX_GROUPS groups of a detail, the largest come one by one and the others together.
    """
    for name in TEXTS:
        if name in details:
            values = details[name].astype("string").str.strip().fillna("")
            counts = values[values != ""].value_counts()
            if len(counts) > MAX_GROUPS:
                rest = counts.index[MAX_GROUPS - 1 :]
                values = values.mask(values.isin(rest), f"{len(rest):,} others")
            yield from ((name, group, (values == group).to_numpy()) for group in sorted(set(values) - {""}))
    if "age" in details:
        age = np.asarray(pd.to_numeric(details["age"], errors="coerce"), dtype=float)
        found = ((band, (age >= low) & (age < high)) for band, (low, high) in AGE_BANDS.items())
        yield from (("age", band, rows) for band, rows in found if rows.any())


def subgroup_table(
    details: pd.DataFrame,
    score: Callable[[np.ndarray], float],
    labels: np.ndarray,
    groups: np.ndarray,
    repeats: int,
) -> pd.DataFrame:
    """Return detail, group, images, value, low, high, note: score(rows) of each subgroup's rows.

    labels are classes [N] or findings [N, C], and the interval is over the groups [N] (patients). The note says where a
    subgroup has fewer than MIN_IMAGES images, or lacks some of the classes (of a finding, positive or negative images):
    its score is then over the others, and not to be compared with those of other subgroups.
    """
    rows, kinds = [], _kinds(labels)
    for detail, group, chosen in subgroups(details):
        members = np.flatnonzero(chosen)

        def value(drawn: np.ndarray, members: np.ndarray = members) -> dict[str, float]:
            return {"score": score(members[drawn])}

        fewest = fewest_groups(labels[members], groups[members])
        found = bootstrap_intervals(value, groups[members], repeats, fewest=fewest)["score"]
        notes = ["few images"] * (len(members) < MIN_IMAGES)
        notes += ["lacks some classes"] * (_kinds(labels[members]) < kinds)
        rows.append((detail, group, len(members), *found, ", ".join(notes)))
    return pd.DataFrame(rows, columns=["detail", "group", "images", "value", "low", "high", "note"])


def _kinds(labels: np.ndarray) -> int:
    """Return how many classes occur, or for findings how many of their values, present and absent."""
    if labels.ndim == 1:
        return len(np.unique(labels))
    return int((labels == 1).any(0).sum() + (labels == 0).any(0).sum())
