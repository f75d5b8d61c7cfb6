"""Confidence intervals: of one network's score over images, and of two arms' difference over images and draws.

Images of one patient, or duplicates, are no independent evidence: what is resampled is the group. Networks that were
fine-tuned on one draw of labels say nothing about the next draw: what compares arms counts the draws too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

FEWEST_GROUPS = 5  # from which on an interval of a mean over groups is given


class Difference(NamedTuple):
    """Score of arm a minus arm b, and its interval; NaN bounds where it cannot be known."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_interval(values: np.ndarray | Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of values [K] and the bounds of its Student-t interval with K - 1 degrees of freedom; K = 1 gives NaN.

    Over draws scored on the same images it speaks of new draws, not of new images: see paired_bootstrap.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    reach = _t_quantile(level, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - reach), float(values.mean() + reach)


def grouped_mean_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """mean_interval over groups: of the means of values [M], NaN where not known, within each of groups [M].

    NaN bounds for fewer than FEWEST_GROUPS groups.
    """
    known = np.isfinite(values)
    names, group_of = np.unique(groups[known], return_inverse=True)
    sums = np.bincount(group_of, weights=values[known], minlength=len(names))
    means = sums / np.bincount(group_of, minlength=len(names))
    if len(means) < FEWEST_GROUPS:
        return (float(means.mean()) if len(means) else float("nan")), float("nan"), float("nan")
    return mean_interval(means)


def fewest_groups(labels: np.ndarray, groups: np.ndarray) -> int:
    """Groups of the rarest class among labels [M], or of a finding's rarer value among [M, C]; at least 1."""
    of_kind = [labels == c for c in np.unique(labels)]
    if labels.ndim > 1:
        of_kind = [column == value for column in labels.T for value in (0, 1)]
    return max(1, min(len(np.unique(groups[rows])) for rows in of_kind))


def resamples(groups: np.ndarray, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """`repeats` times the rows of as many whole groups as groups [M] has, drawn with replacement."""
    group_of = np.unique(groups, return_inverse=True)[1]
    by_group, sizes = np.argsort(group_of, kind="stable"), np.bincount(group_of)
    starts = sizes.cumsum() - sizes
    generator = np.random.default_rng(seed)
    for _ in range(repeats):
        drawn = generator.integers(0, len(sizes), len(sizes))
        images = sizes[drawn]
        ends = images.cumsum()
        shift = starts[drawn] - (ends - images)  # from the place in the resample to the place in by_group
        yield by_group[np.arange(ends[-1]) + shift.repeat(images)]


def bootstrap_interval(
    score: Callable[[np.ndarray], float], groups: np.ndarray, repeats: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bounds of score(rows), a number in 0..1, over new groups like groups [M]; see bootstrap_intervals."""
    _, low, high = bootstrap_intervals(lambda rows: {"score": score(rows)}, groups, repeats, level, seed)["score"]
    return low, high


def bootstrap_intervals(
    scores: Callable[[np.ndarray], Mapping[str, float]],
    groups: np.ndarray,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    fewest: int | None = None,
) -> dict[str, tuple[float, float, float]]:
    """Each of scores(rows), numbers in 0..1, with its bounds over new groups like groups [M]; rows may repeat.

    The standard error over resampled groups, as a Student-t interval on the logit scale (delta method). Percentile
    intervals are too narrow for scores near 1 that hang on few groups (89-94 % of 95 where this one holds 94-96).
    A score of 0 or 1 has no spread to resample; its bound is the one for `fewest` groups without an exception (Clopper
    and Pearson 1934): those of the rarest class, where classes matter; by default all groups. NaN scores of resamples
    are left out. NaN bounds: no score, or a single group. It is too narrow for a class of under about 20 groups (about
    90 % for 7). Raises ValueError outside 0..1.
    """
    now, units = scores(np.arange(len(groups))), len(np.unique(groups))
    outside = {name: value for name, value in now.items() if not (np.isnan(value) or 0 <= value <= 1)}
    if outside:
        raise ValueError(f"scores must lie in 0..1, not {outside}")
    resampled = [scores(rows) for rows in resamples(groups, repeats, seed)] if units > 1 else []
    return {
        name: (value, *_bounds(value, np.array([s[name] for s in resampled]), units, level, fewest or units))
        for name, value in now.items()
    }


def _bounds(now: float, resampled: np.ndarray, units: int, level: float, fewest: int) -> tuple[float, float]:
    if units < 2 or np.isnan(now):
        return float("nan"), float("nan")
    if now in (0, 1):
        bound = ((1 - level) / 2) ** (1 / fewest)
        return (0.0, 1 - bound) if now == 0 else (bound, 1.0)
    if np.isnan(resampled).all():
        return float("nan"), float("nan")
    error = np.sqrt(np.nanvar(resampled) * units / (units - 1))
    reach = _t_quantile(level, units - 1) * error / (now * (1 - now))
    return float(expit(logit(now) - reach)), float(expit(logit(now) + reach))


def paired_bootstrap(
    score: Callable[[np.ndarray, np.ndarray], float],
    predictions_a: Sequence[np.ndarray] | np.ndarray,
    predictions_b: Sequence[np.ndarray] | np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    repeats: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Mean difference of score(labels, predictions) between two arms, over new images and new draws of labels.

    predictions_* hold K arrays [M, ...]: run k of both arms was fine-tuned on the same draw and predicts the same
    images, with labels [M, ...] and groups [M]. The method is that of paired_difference.
    """
    a, b = (resampled_scores(score, p, labels, groups, repeats, seed) for p in (predictions_a, predictions_b))
    now_a, now_b = (np.array([score(labels, run) for run in p]) for p in (predictions_a, predictions_b))
    return paired_difference(now_a, now_b, a, b, len(np.unique(groups)), level)


def resampled_scores(
    score: Callable[[np.ndarray, np.ndarray], float],
    predictions: Sequence[np.ndarray] | np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    repeats: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Scores [repeats, K] of one arm's K runs on resampled groups, the same for every arm of one seed.

    Several arms are compared at the price of one resampling each: keep these and call paired_difference.
    """
    scores = []
    for rows in resamples(groups, repeats, seed):
        drawn = labels[rows]
        scores.append([score(drawn, run[rows]) for run in predictions])
    return np.array(scores)


def paired_difference(
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    resampled_a: np.ndarray,
    resampled_b: np.ndarray,
    units: int,
    level: float = 0.95,
) -> Difference:
    """Mean of scores_a - scores_b [K] over K draws, with an interval for new images and new draws.

    resampled_* [repeats, K] are the scores on resamples of the `units` groups, the same for both arms. The draws'
    differences share the images, so var(mean) = var(between draws) / K + cov, where cov, what two draws share, is a
    covariance over the resamples. By luck, few draws may differ less than their images alone make them differ; the
    first part is never taken as smaller than that. Student's t has the harmonic mean of the parts' degrees of freedom
    K - 1 and units - 1, weighted by their variances. (Satterthwaite 1946, Biometrics Bulletin 2, squares the weights:
    with three draws, equal arms come out different in up to 8 % of cases, with these in at most 6 %; resampling the
    draws gives up to 25 %. Two draws are too few: up to 9 %.) NaN bounds for one draw or one group; resamples with a
    NaN are left out. Raises ValueError where the draws of the arms do not pair.
    """
    if np.shape(scores_a) != np.shape(scores_b) or resampled_a.shape != resampled_b.shape:
        raise ValueError("both arms need the same draws and resamples")
    differences, resampled = np.asarray(scores_a) - np.asarray(scores_b), resampled_a - resampled_b
    resampled, k, mean = resampled[~np.isnan(resampled).any(1)], len(differences), float(differences.mean())
    if min(k, units, len(resampled)) < 2:
        return Difference(mean, float("nan"), float("nan"))
    covariance = np.cov(resampled.T) * units / (units - 1)  # [K, K]
    shared = max((covariance.sum() - covariance.trace()) / (k * (k - 1)), 0.0)
    own = max(covariance.trace() / k - shared, 0.0)
    draws = max(differences.var(ddof=1), own) / k
    if draws + shared == 0:
        return Difference(mean, mean, mean)
    freedom = (draws + shared) / (draws / (k - 1) + shared / (units - 1))
    reach = _t_quantile(level, freedom) * np.sqrt(draws + shared)
    return Difference(mean, float(mean - reach), float(mean + reach))


def _t_quantile(level: float, freedom: float) -> float:
    return float(student.ppf((1 + level) / 2, freedom))
