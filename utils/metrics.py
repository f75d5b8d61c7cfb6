"""Scores of predictions and embeddings, exact over all samples.

scikit-learn has many of them, at 1 to 3 ms per call; intervals need thousands of calls per network. What they resample
is computed here, 20 times as fast, and tested against scikit-learn.
"""

from collections.abc import Iterable

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

CLASS_SCORES = ("sensitivity", "specificity", "auroc", "auprc")
TEMPERATURES = (0.01, 100.0)  # range of fit_temperature


def balanced_accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return mean recall over the classes that occur in labels [M], predicted as the largest of scores [M, C]."""
    counts = confusion_counts(labels, scores)
    occurring = counts.sum(1) > 0
    return float((counts.diagonal()[occurring] / counts.sum(1)[occurring]).mean())


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve of labels [M] in 0, 1 by the last column of scores [M, 2]; chance is 0.5."""
    return float(roc_auc_score(labels, scores[:, -1]))


def weighted_scores(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the score [R] of probabilities [M, C] under each of R weights [R, M] of the images, whole numbers.

    Balanced accuracy over the classes that occur in labels [M], or the mean AUROC of findings [M, C] (1, 0, NaN where
    unknown) over those with images of both kinds; NaN without any. An image of weight k counts as k equal ones.
    """
    if labels.ndim == 1:
        of_class = np.eye(probabilities.shape[1])[labels]  # [M, C]
        right = of_class * (probabilities.argmax(1) == labels)[:, None]
        hits, totals = weights @ right, weights @ of_class  # [R, C]
        return _mean_ratio(hits, totals)
    of_findings = [_pairs_won(y, p, weights) for y, p in zip(labels.T, probabilities.T, strict=True)]
    won, pairs = np.stack(of_findings, axis=2)  # [R, findings] each
    return _mean_ratio(won, pairs)


def _mean_ratio(parts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return the mean [R] of parts / totals [R, C] over the totals that are not 0; NaN where all are."""
    with np.errstate(invalid="ignore"):
        return np.divide(parts, totals, out=np.zeros(parts.shape), where=totals > 0).sum(1) / (totals > 0).sum(1)


def _pairs_won(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many pairs of a positive and a negative image are in order under weights [R, M], and of how many.

    Their ratio is the AUROC (Mann and Whitney 1947); a pair of equal scores counts half. labels [M] are 1, 0 or NaN.
    """
    rows = np.flatnonzero(~np.isnan(labels))
    rows = rows[np.argsort(scores[rows], kind="stable")]
    weights, positive = weights[:, rows].astype(np.float64), labels[rows] == 1
    starts = np.flatnonzero(np.diff(scores[rows], prepend=np.nan))  # of each run of equal scores
    if not len(starts):
        return np.zeros(len(weights)), np.zeros(len(weights))
    up, down = (np.add.reduceat(weights * kind, starts, axis=1) for kind in (positive, ~positive))  # [R, scores]
    below = down.cumsum(1) - down / 2
    return (up * below).sum(1), up.sum(1) * down.sum(1)


def prediction_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return scores in 0..1 of probabilities [M, C] for classes [M], or for findings [M, C] (1, 0, NaN where unknown).

    accuracy, balanced_accuracy (mean recall) and macro_f1 are of the likeliest class, and not of findings. auroc and
    auprc (average precision) are of each class against the rest, or of each finding. All but accuracy average over the
    classes that occur, or the findings with known images of both kinds; NaN without any.
    """
    auroc, auprc = map(_mean, per_class_scores(labels, probabilities)[:, 2:].T)
    scores = {"auroc": auroc, "auprc": auprc}
    if labels.ndim > 1:
        return scores
    counts = confusion_counts(labels, probabilities)
    right, labelled, called = (a[counts.sum(1) > 0] for a in (counts.diagonal(), counts.sum(1), counts.sum(0)))
    return {
        "accuracy": float(counts.trace() / len(labels)),
        "balanced_accuracy": float((right / labelled).mean()),
        "macro_f1": float((2 * right / (labelled + called)).mean()),
        **scores,
    }


def confusion_counts(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return [C, C] images by label (row) and likeliest class (column) of labels [M] and probabilities [M, C]."""
    c = probabilities.shape[1]
    return np.bincount(labels.astype(int) * c + probabilities.argmax(1), minlength=c * c).reshape(c, c)


def one_against_rest(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return [M, C] of 1, 0 and NaN (unknown): of classes [M] each against the others; findings [M, C] as they are."""
    return labels if labels.ndim > 1 else (labels[:, None] == np.arange(num_classes)).astype(float)


def per_class_scores(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return [C, 4] in 0..1 or NaN: CLASS_SCORES of each class [M], or of each finding [M, C], where it is known.

    Sensitivity and specificity are of the likeliest class; of a finding, at a probability of .5.
    """
    num_classes = probabilities.shape[1]
    truth = one_against_rest(labels, num_classes)  # [M, C]
    known, likeliest = ~np.isnan(truth), probabilities.argmax(1)[:, None] == np.arange(num_classes)
    all_called = probabilities >= 0.5 if labels.ndim > 1 else likeliest
    rows = []
    for c in range(num_classes):
        positive, called = truth[known[:, c], c] == 1, all_called[known[:, c], c]
        rates = [group.mean() if len(group) else np.nan for group in (called[positive], ~called[~positive])]
        rows.append([*rates, *_ranking_scores(positive, probabilities[known[:, c], c])])
    return np.array(rows)


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the ECE of the likeliest class for class labels [M], of all known cells for findings [M, C].

    Of findings it is that of the probability of their presence: for the likelier answer, a finding predicted too often
    and one predicted too rarely would cancel.
    """
    if labels.ndim == 1:
        return expected_calibration_error(probabilities.max(1), probabilities.argmax(1) == labels)
    known = ~np.isnan(labels)
    return expected_calibration_error(probabilities[known], labels[known])


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Return the mean distance, 0..1, of accuracy from confidence over equal bins of confidence [M], by images.

    Guo et al. 2017 (arXiv 1706.04599, section 2): bin m holds ((m - 1) / bins, m / bins]. correct [M] is 0 or 1.
    With few images per bin it is overestimated.
    """
    if len(confidence) == 0:
        return float("nan")
    confidence = np.asarray(confidence, dtype=np.float64)
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = np.bincount(bin_of, np.asarray(correct, dtype=np.float64) - confidence)  # of sums: images x mean gap
    return float(np.abs(gaps).sum() / len(confidence))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T that makes softmax(logits [M, C] / T) likeliest for labels [M] (Guo et al. 2017, section 4.2).

    Labels [M, C] of 0, 1 or NaN (unknown) are findings, by sigmoid(logits / T). The likelihood is concave in 1 / T, so
    T is the root of its slope, or the upper end of TEMPERATURES if it rises towards it. Labels that are separated
    without an error would be likeliest at T = 0: then the mean probability of the M right answers becomes
    (M + 1) / (M + 2), by Laplace's rule of succession. T is 1 if the likelihood does not depend on the labels.
    """
    known = ~np.isnan(labels)
    z, y = logits[known].astype(np.float64), labels[known]
    if labels.ndim == 1:
        z = z - z[np.arange(len(z)), y.astype(int), None]  # [M, C], 0 for the label

    def slope(log_temperature: float) -> float:
        """Return the slope of the negative log-likelihood by 1 / T."""
        beta = np.exp(-log_temperature)
        return float(((softmax(beta * z, axis=1) if labels.ndim == 1 else expit(beta * z) - y) * z).sum())

    def excess(log_temperature: float) -> float:
        """Return by how much the mean probability of the right answers exceeds the rule of succession's."""
        scaled = z * np.exp(-log_temperature)
        right = 1 / np.exp(scaled).sum(1) if labels.ndim == 1 else expit(np.where(y == 1, scaled, -scaled))
        return float(right.mean()) - (len(z) + 1) / (len(z) + 2)

    coldest, hottest = np.log(TEMPERATURES)
    if slope(coldest) <= 0:
        if slope(hottest) >= 0:
            return 1.0
        if excess(coldest) <= 0:
            return TEMPERATURES[0]
        return float(np.exp(root_scalar(excess, bracket=(coldest, hottest)).root))
    if slope(hottest) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(root_scalar(slope, bracket=(coldest, hottest)).root))


def _ranking_scores(positive: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Return AUROC and average precision of score [M] for positive [M] (bool); NaN unless both values occur."""
    total = int(positive.sum())
    if total in (0, len(positive)):
        return float("nan"), float("nan")
    order = np.argsort(-score, kind="stable")
    thresholds = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # the last of equal scores
    hits, called = np.cumsum(positive[order])[thresholds], thresholds + 1
    gained, false = np.diff(hits, prepend=0), np.diff(called - hits, prepend=0)
    area = (false * (hits - gained / 2)).sum() / (total * (len(positive) - total))
    return float(area), float((gained * hits / called).sum() / total)


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN without any."""
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else float("nan")


def fit_plateau(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return a, b, c [R, 3] of the least-squares fits a - b n^-c to scores [R, n], with 0 <= a <= 1 and b >= 0."""
    best, error = np.zeros((len(scores), 3)), np.full(len(scores), np.inf)
    for c in np.geomspace(0.05, 3, 100):
        x = labels**-c
        b = np.maximum(0, -((scores - scores.mean(1, keepdims=True)) @ (x - x.mean())) / ((x - x.mean()) ** 2).sum())
        a = scores.mean(1) + b * x.mean()
        b = np.where(a > 1, (1 - scores) @ x / (x @ x), b)  # the plateau is at 1: one parameter is left
        a = np.minimum(a, 1)
        squares = ((a[:, None] - b[:, None] * x - scores) ** 2).sum(1)
        better = squares < error
        best[better] = np.c_[a, b, np.full(len(a), c)][better]
        error = np.minimum(error, squares)
    return best


def labels_for(target: float, fits: np.ndarray) -> np.ndarray:
    """Return the labels [R] at which fits [R, 3] of a, b, c reach a score; inf where they never do."""
    a, b, c = fits.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(a > target, np.maximum(b / np.maximum(a - target, 1e-12), 1e-12) ** (1 / c), np.inf)
