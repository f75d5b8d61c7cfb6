"""Sensitivity and specificity at thresholds that were chosen on the validation part."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.intervals import bootstrap_intervals, means

# What a threshold is chosen for: at least this much on validation, and as much of the other as that allows; or the
# largest sensitivity + specificity (Youden 1950).
RULES: dict[str, tuple[str, float]] = {
    "specificity 0.90": ("specificity", 0.90),
    "specificity 0.95": ("specificity", 0.95),
    "sensitivity 0.90": ("sensitivity", 0.90),
    "sensitivity 0.95": ("sensitivity", 0.95),
    "Youden": ("both", 0.0),
}
RATES = ("sensitivity", "specificity")
POINT_COLUMNS = ["class", "rule", "threshold", "rate", "value", "low", "high", "images", "validation_labels"]


def choose_threshold(truth: np.ndarray, score: np.ndarray, rule: str) -> float:
    """Return the threshold of a rule for truth [M] (1, 0, NaN) and score [M]; an image is called at or above it.

    It is one of the scores, or infinity where only calling nothing satisfies the rule. NaN unless there are both kinds.
    """
    candidates, sensitivity, specificity = _rates_over_thresholds(truth, score)
    if not len(candidates):
        return float("nan")
    wanted, least = RULES[rule]
    if wanted == "specificity":
        return float(candidates[np.argmax(specificity >= least)])  # the lowest that is specific enough
    if wanted == "sensitivity":
        return float(candidates[np.flatnonzero(sensitivity >= least)[-1]])  # the highest that is sensitive enough
    return float(candidates[np.argmax(sensitivity + specificity)])


def operating_points(
    val: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    groups: np.ndarray,
    names: Sequence[str],
    repeats: int,
) -> pd.DataFrame:
    """Return one row of the POINT_COLUMNS per class or finding, rule and rate.

    val and test are truth [., C] of one_against_rest and probabilities [., C]. `images` are those that the rate is
    measured on, the interval is over the groups [M] of the test images, and validation_labels chose the threshold.
    """
    chosen = {
        (name, rule): choose_threshold(val[0][:, c], val[1][:, c], rule)
        for c, name in enumerate(names)
        for rule in RULES
    }
    rows = []
    for c, name in enumerate(names):
        truth, score = test[0][:, c], test[1][:, c]
        for wanted, rate in zip((1, 0), RATES, strict=True):
            of_kind = truth == wanted
            thresholds = {rule: chosen[name, rule] for rule in RULES if not np.isnan(chosen[name, rule])}
            if not of_kind.any() or not thresholds:
                continue
            right = {rule: (score[of_kind] >= threshold) == wanted for rule, threshold in thresholds.items()}
            found = bootstrap_intervals(means(right), groups[of_kind], repeats)
            counts = int(of_kind.sum()), int(np.isfinite(val[0][:, c]).sum())
            rows += [(name, rule, at, rate, *found[rule], *counts) for rule, at in thresholds.items()]
    return pd.DataFrame(
        rows, columns=["class", "rule", "threshold", "rate", "value", "low", "high", "images", "validation_labels"]
    )


def _rates_over_thresholds(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return thresholds [K], increasing, and sensitivity and specificity [K] at each; empty if a kind is missing."""
    positive, negative = np.sort(score[truth == 1]), np.sort(score[truth == 0])
    if not len(positive) or not len(negative):
        return np.empty(0), np.empty(0), np.empty(0)
    candidates = np.append(np.unique(np.concatenate([positive, negative])), np.inf)
    sensitivity = 1 - np.searchsorted(positive, candidates) / len(positive)
    return candidates, sensitivity, np.searchsorted(negative, candidates) / len(negative)
