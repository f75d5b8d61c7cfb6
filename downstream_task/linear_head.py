"""A linear probe as a head: logistic regression at its optimum on frozen features, as weights of a last layer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from downstream_task.probes import STRENGTHS, class_votes, likeliest_strength, logistic_regression
from downstream_task.targets import Targets
from utils.metrics import auroc, balanced_accuracy, knn_scores


@dataclass(frozen=True)
class LinearHead:
    """weight float32 [C, F] and bias [C] on raw features; the inverse L2 strengths that were chosen."""

    weight: np.ndarray
    bias: np.ndarray
    regularisation: list[float]


def fit_linear_head(
    train: np.ndarray,
    targets: np.ndarray,
    val: np.ndarray | None,
    val_targets: np.ndarray | None,
    class_weights: bool = True,
) -> LinearHead:
    """Fit logistic regression on standardised features [N, F]; with class_weights, classes weigh the same.

    targets are classes [N], each present, or findings [N, C] of 1, 0 and NaN (not counted), one regression each. Of
    STRENGTHS, the one with the best balanced accuracy (classes) or AUROC (findings) on val [M, F] is taken, the
    strongest of equals; without val, the likeliest one by five-fold cross-validation within the training images.
    """
    scaler = StandardScaler().fit(train)
    x = np.asarray(scaler.transform(train))
    val_x = None if val is None else np.asarray(scaler.transform(val))
    if targets.ndim == 1:
        strengths = [_strength(x, targets, val_x, val_targets, class_weights, balanced_accuracy)]
        weight, bias = _fitted(strengths[0], x, targets, class_weights)
    else:
        strengths, fits = [], []
        for c, y in enumerate(targets.T):
            known = np.isfinite(y)
            column = None if val_targets is None else val_targets[:, c]
            strengths.append(_strength(x[known], y[known].astype(int), val_x, column, class_weights, auroc))
            fits.append(_fitted(strengths[-1], x[known], y[known].astype(int), class_weights))
        # a sigmoid's logit is the difference of the two classes' logits
        weight, bias = np.stack([w[1] - w[0] for w, _ in fits]), np.array([b[1] - b[0] for _, b in fits])
    weight = weight / np.asarray(scaler.scale_)
    bias = bias - weight @ np.asarray(scaler.mean_)
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32), strengths)


def knn_probabilities(train: np.ndarray, targets: np.ndarray, val: np.ndarray, what: Targets) -> np.ndarray:
    """Return [M, C] by the 20 nearest of the training features [N, F] by cosine; classes weigh the same."""
    if what.multilabel:
        votes = torch.from_numpy(np.nan_to_num(targets, nan=0.5))
    else:
        votes = class_votes(targets, len(what.names))
    scores = knn_scores(torch.from_numpy(train), votes, torch.from_numpy(val)).double().numpy()
    return scores if what.multilabel else scores / scores.sum(1, keepdims=True)


def _strength(
    x: np.ndarray,
    y: np.ndarray,
    val_x: np.ndarray | None,
    val_y: np.ndarray | None,
    class_weights: bool,
    score: Callable[[np.ndarray, np.ndarray], float],
) -> float:
    """Return the strength with the best score on validation (NaN labels are left out), or else by cross-validation."""
    if val_x is None or val_y is None:
        return likeliest_strength(x, y, class_weights, folds=5)
    known = np.isfinite(val_y)
    labels, features = val_y[known].astype(int), val_x[known]
    fits = [_fitted(c, x, y, class_weights) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax([score(labels, features @ weight.T + bias) for weight, bias in fits]))]


def _fitted(c: float, x: np.ndarray, y: np.ndarray, class_weights: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias with one row per class; scikit-learn gives a single one for two classes."""
    model = logistic_regression(c, x, y, class_weights)
    weight, bias = model.coef_, np.asarray(model.intercept_)
    if len(model.classes_) == 2:
        return np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
