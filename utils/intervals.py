"""Confidence intervals.

An interval of one network's score speaks of new images. Images of one patient, or duplicates, are not independent, so
whole groups are resampled. An interval of the difference between two arms speaks of new draws of labels too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, stdtrit

from utils.seeds import mixed_seed

LEVEL = 0.95  # of all intervals
MIN_GROUPS = 5  # for an interval of a mean over groups
MIN_UNITS = 3  # pretrainings, or draws that share none, for an interval over new ones
HELD_OUT = 0.25  # test images per train image: one of five folds against the other four
ROUNDING = 1e-16  # a variance of scores that are equal
OWN = 0.75  # by simulation: intervals of 3, 5 and 10 units cover 93.5 to 98.5 %, whatever images and luck contribute


class Difference(NamedTuple):
    """Score of arm a minus arm b, and its interval; NaN bounds where it cannot be known."""

    mean: float
    low: float
    high: float


def mean_interval(values: np.ndarray | Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of values [K] and its 95% Student-t interval with K - 1 degrees of freedom; NaN bounds for K = 1.

    For draws scored on the same images it speaks of new draws, not of new images: see difference_interval.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    reach = _t_quantile(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - reach), float(values.mean() + reach)


def grouped_mean_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Return mean_interval of the groups' means; values [M] are NaN where unknown, groups [M] name their groups.

    NaN bounds for fewer than MIN_GROUPS groups.
    """
    known = np.isfinite(values)
    names, group_of = np.unique(groups[known], return_inverse=True)
    sums = np.bincount(group_of, weights=values[known], minlength=len(names))
    means = sums / np.bincount(group_of, minlength=len(names))
    if len(means) < MIN_GROUPS:
        return (float(means.mean()) if len(means) else float("nan")), float("nan"), float("nan")
    return mean_interval(means)


def fewest_groups(labels: np.ndarray, groups: np.ndarray) -> int:
    """Return how many groups hold the rarest class of labels [M], or value of findings [M, C]; at least 1."""
    of_kind = [labels == c for c in np.unique(labels)]
    if labels.ndim > 1:
        of_kind = [column == value for column in labels.T for value in (0, 1)]
    return min((len(np.unique(groups[rows])) for rows in of_kind if rows.any()), default=1)


def resamples(groups: np.ndarray, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """Yield, `repeats` times, the rows of as many whole groups as groups [M] has, drawn with replacement."""
    group_of = np.unique(groups, return_inverse=True)[1]
    by_group, sizes = np.argsort(group_of, kind="stable"), np.bincount(group_of)
    starts = sizes.cumsum() - sizes
    generator = np.random.default_rng(mixed_seed("resamples of groups", seed))
    for _ in range(repeats):
        drawn = generator.integers(0, len(sizes), len(sizes))
        images = sizes[drawn]
        ends = images.cumsum()
        shift = starts[drawn] - (ends - images)  # from a position in the resample to one in by_group
        yield by_group[np.arange(ends[-1]) + shift.repeat(images)]


def bootstrap_intervals(
    scores: Callable[[np.ndarray], Mapping[str, float]],
    groups: np.ndarray,
    repeats: int,
    seed: int = 0,
    fewest: int | None = None,
) -> dict[str, tuple[float, float, float]]:
    """Return (score, low, high) for each of scores(rows), numbers in 0..1, over new groups like groups [M].

    The standard error over resampled groups, as a Student-t interval on the logit scale (delta method). Percentile
    intervals are too narrow for scores near 1 that depend on few groups (they cover 89-94 % instead of 95 %, this one
    94-96 %). A score of 0 or 1 has no spread to resample; its bound is that of `fewest` groups without an exception
    (Clopper and Pearson 1934): the groups of the rarest class, where classes matter; by default all groups. Resamples
    whose score is NaN are left out. The bounds are NaN without a score or for a single group. The interval is too
    narrow for a class of fewer than about 20 groups (it covers about 90 % for 7). `rows` may repeat. Raises ValueError
    for a score outside 0..1.
    """
    now, units = scores(np.arange(len(groups))), len(np.unique(groups))
    outside = {name: value for name, value in now.items() if not (np.isnan(value) or 0 <= value <= 1)}
    if outside:
        raise ValueError(f"scores must lie in 0..1, not {outside}")
    resampled = [scores(rows) for rows in resamples(groups, repeats, seed)] if units > 1 else []
    return {
        name: (value, *_bounds(value, np.array([s[name] for s in resampled]), units, fewest or units))
        for name, value in now.items()
    }


def independent_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return a - b and its interval, for two independent estimates that are each (value, low, high).

    The distances of the bounds add in squares (MOVER, Zou and Donner 2008, Stat Med 27:1693), so that a score of 0 or 1
    keeps the uncertainty that its own interval has.
    """
    difference = a[0] - b[0]
    low = difference - np.hypot(a[0] - a[1], b[2] - b[0])
    return difference, float(low), float(difference + np.hypot(a[2] - a[0], b[0] - b[1]))


def means(values: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], dict[str, float]]:
    """Return the scores(rows) of bootstrap_intervals that are the means of some values [M] in 0..1, by name."""
    return lambda rows: {name: float(of_image[rows].mean()) for name, of_image in values.items()}


def _bounds(now: float, resampled: np.ndarray, units: int, fewest: int) -> tuple[float, float]:
    if units < 2 or np.isnan(now):
        return float("nan"), float("nan")
    if now in (0, 1):
        bound = ((1 - LEVEL) / 2) ** (1 / fewest)
        return (0.0, 1 - bound) if now == 0 else (bound, 1.0)
    if np.isnan(resampled).all():
        return float("nan"), float("nan")
    error = np.sqrt(np.nanvar(resampled) * units / (units - 1))
    reach = _t_quantile(units - 1) * error / (now * (1 - now))
    return float(expit(logit(now) - reach)), float(expit(logit(now) + reach))


def resample_weights(groups: np.ndarray, repeats: int, seed: int = 0) -> np.ndarray:
    """Return how often each image is drawn in `resamples`, uint8 [1 + repeats, M]; in row 0 each image once."""
    counts = (np.bincount(rows, minlength=len(groups)) for rows in resamples(groups, repeats, seed))
    return np.array([np.ones(len(groups)), *counts], dtype=np.uint8)


class Shared(NamedTuple):
    """What makes the scores of D draws alike.

    covariance  [D, D] of their scores over resampled images; 0 between draws with different test images
    units       [D] draws of equal numbers share a pretraining
    labels      0..1, the labels that a draw learns from, as a share of those of its train part
    groups      patients or duplicate groups among all test images
    """

    covariance: np.ndarray
    units: np.ndarray
    labels: float
    groups: int


def draw_units(*starts: np.ndarray) -> np.ndarray:
    """Return a number [D] for each draw, the same for draws that share a pretraining of any arm, directly or in turn.

    starts  for each arm [D], which of its pretrainings a draw starts from. An arm with a single one joins no draws.
    """
    units = np.arange(len(starts[0]))
    for of_arm in starts:
        pretrainings = np.unique(of_arm)
        for start in pretrainings if 1 < len(pretrainings) < len(of_arm) else ():
            joined = units[of_arm == start]
            units[np.isin(units, joined)] = joined.min()
    return np.unique(units, return_inverse=True)[1]


def difference_interval(values: np.ndarray, shared: Shared) -> Difference:
    """Return the mean of values [D], one for each draw, with an interval for new images, labels and pretrainings.

    values are scores, or differences of two arms' scores. Units (draws that share a pretraining) differ by their luck
    and by their test images. With the units' means y [U] and weights w, images with a covariance C explain E(C) of the
    spread Q = sum w^2 (y - mean)^2. The rest is luck, taken as 0 if it is negative: var(mean) = w C w + factor (Q -
    E(C)), the estimate of a variance component by moments (Searle, Casella and McCulloch 1992, chapter 4).

    The factor is U / (U - 1) for independent luck. But train parts overlap, and what all units have in common does not
    show in their spread. For all labels, Nadeau and Bengio (2003, Machine Learning 52:239) add HELD_OUT to 1 / U: a
    compromise between luck of seeds, which is independent, and of images. The luck of two draws correlates by no more
    than the share of labels that both have (Hoeffding's decomposition), so for n of N labels HELD_OUT n / N is added.

    Student's t has the harmonic mean of the parts' degrees of freedom, weighted by their variances: U - 1 for luck, and
    for OWN of what images explain of the spread; groups - 1 for the rest. (Satterthwaite 1946, Biometrics Bulletin 2,
    squares the weights and gives images no share of U - 1; with three units that covers 87 %.) NaN bounds for fewer
    than MIN_UNITS units or a single group.
    """
    mean, count = float(values.mean()), int(shared.units.max()) + 1
    if count < MIN_UNITS or shared.groups < 2:
        return Difference(mean, float("nan"), float("nan"))
    of_unit = np.eye(count)[shared.units].T  # [U, D]
    w, of_unit = of_unit.mean(1), of_unit / of_unit.sum(1, keepdims=True)
    centred = np.eye(count) - w
    spread = centred.T @ np.diag(w**2) @ centred  # [U, U]: Q = y spread y, E(C) = trace(spread C)
    y, covariance = of_unit @ values, of_unit @ shared.covariance @ of_unit.T
    independent = (w @ w) / spread.trace()
    found, by_images = independent * (y @ spread @ y), independent * (spread * covariance).sum()
    luck = max(found - by_images, 0) * (1 + count * HELD_OUT * shared.labels)
    total = luck + w @ covariance @ w
    if total < ROUNDING:
        return Difference(mean, mean, mean)
    few = min(luck + OWN * min(found, by_images), total)
    freedom = total / (few / (count - 1) + (total - few) / (shared.groups - 1))
    reach = _t_quantile(freedom) * np.sqrt(total)
    return Difference(mean, float(mean - reach), float(mean + reach))


def _t_quantile(freedom: float) -> float:
    return float(stdtrit(freedom, (1 + LEVEL) / 2))
