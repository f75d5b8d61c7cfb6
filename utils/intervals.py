"""Confidence intervals, and scores with their intervals in words.

An interval of one network's score speaks of new images. Images of one patient, or duplicates, are not independent, so
whole groups are resampled. An interval of the difference between two arms speaks of new draws of labels too.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

from utils.seeds import mixed_seed

ABBREVIATIONS = {word.lower(): word for word in ("AUROC", "AUPRC", "ECE", "F1")}

METHOD_NAMES = {"best": "best method", "linear": "linear probe", "finetune": "fine-tuning", "as_is": "as it is"}

SALIENCY_NAMES = {
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
}

MIN_GROUPS = 5  # for an interval of a mean over groups
MAX_COUNTS = 2**21  # of images in resamples, which are scored at once


class Difference(NamedTuple):
    """Score of arm a minus arm b, and its interval; NaN bounds where it cannot be known."""

    mean: float
    low: float
    high: float


def mean_interval(values: np.ndarray | Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of values [K] and its Student-t interval with K - 1 degrees of freedom; NaN bounds for K = 1.

    For draws scored on the same images it speaks of new draws, not of new images: see paired_difference.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    reach = _t_quantile(level, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
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
    repeats: int = 2000,
    level: float = 0.95,
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
        name: (value, *_bounds(value, np.array([s[name] for s in resampled]), units, level, fewest or units))
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


def resampled_scores(
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    predictions: Sequence[np.ndarray] | np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    repeats: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Return the scores [repeats, K] of one arm's K runs on resampled groups, the same for every arm of one seed.

    score(labels, predictions, weights) takes the images' labels [M, ...], one run of predictions, of K [M, ...], and
    how often each image is drawn in some of the resamples, [r, M]; it returns [r].
    """
    found, rows = [], resamples(groups, repeats, seed)
    while drawn := list(itertools.islice(rows, MAX_COUNTS // len(groups) + 1)):
        weights = np.array([np.bincount(one, minlength=len(groups)) for one in drawn])  # [r, M]
        found.append(np.stack([score(labels, run, weights) for run in predictions], axis=1))
    return np.concatenate(found)


def paired_difference(
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    resampled_a: np.ndarray,
    resampled_b: np.ndarray,
    units: int,
    level: float = 0.95,
) -> Difference:
    """Return the mean of scores_a - scores_b [K] over K draws, with an interval for new images and new draws.

    Run k of both arms was fine-tuned on the same draw of labels and scored on the same images. resampled_* [repeats, K]
    are the scores on resamples of the `units` groups, the same for both arms. The draws' differences share the images,
    so var(mean) = var(between draws) / K + cov, where cov, shared by two draws, is a covariance over the resamples. By
    chance, few draws may differ less than their images alone make them differ; the first part is never taken as
    smaller than that. Student's t has the harmonic mean of the parts' degrees of freedom K - 1 and units - 1, weighted
    by their variances. (Satterthwaite 1946, Biometrics Bulletin 2, squares the weights: with three draws, equal arms
    come out different in up to 8 % of cases, with these in at most 6 %; resampling the draws gives up to 25 %. Two
    draws are too few: up to 9 %.) NaN bounds for one draw or one group; resamples with a NaN are left out. Raises
    ValueError if the arms have different draws.
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


def metric_name(metric: str) -> str:
    """Return a metric's name for a reader: `balanced accuracy`, `AUROC`, `macro F1`."""
    return " ".join(ABBREVIATIONS.get(word, word) for word in re.split("[_ ]", metric))


def interval_text(value: float, low: float | None, high: float | None, form: str = ".3f") -> str:
    """Return `0.712 [0.680, 0.744]`, or a note in place of the brackets if the interval is not known."""
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return f"{value:{form}} (too few for an interval)"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def interval_scope(pretrainings: int) -> str:
    """Return what the intervals of a comparison are for, whose arms have so many pretraining runs."""
    also = f"and new pretrainings (of {pretrainings})" if pretrainings > 1 else "not for a new pretraining run"
    return f"new images and new draws of labels, {also}"


def labels_text(row: Mapping[str, float], name: str, word: str, fewest: int, most: int) -> str:
    """Return: 310 WORD (95% of resamples 180 to more than 1,869), from the row's `name`, `name`_low and `name`_high.

    0 is fewer than the `fewest` labels that were tried, inf more than the `most`.
    """

    def text(labels: float) -> str:
        if labels == 0:
            return f"fewer than {fewest:,}"
        return f"more than {most:,}" if np.isinf(labels) else f"{labels:,.0f}"

    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if np.isnan(low) else f" (95% of resamples {text(low)} to {text(high)})"
    return f"{text(row[name])} {word}{interval}"


def savings_sentence(row: Mapping[str, float], arm: str, reference: str, fewest: int, most: int) -> str:
    """Return: With 94 labels ARM scores as REFERENCE does with 310 labels (95% of resamples 180 to more than 1,869)."""
    needed = labels_text(row, "reference_needs", "labels", fewest, most)
    return f"With {row['labels']:,.0f} labels {arm} scores as {reference} does with {needed}."
