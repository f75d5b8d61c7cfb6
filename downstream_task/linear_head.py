"""A linear probe as a head: logistic regression at its optimum on frozen features, as weights of a last layer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from downstream_task.probes import STRENGTHS, class_votes, logistic_regression
from downstream_task.targets import Targets
from utils.metrics import auroc, balanced_accuracy, knn_scores


@dataclass(frozen=True)
class LinearHead:
    """weight float32 [C, F] and bias [C] on raw features; the inverse L2 strengths that validation chose."""

    weight: np.ndarray
    bias: np.ndarray
    regularisation: list[float]


def fit_linear_head(
    train: np.ndarray, targets: np.ndarray, val: np.ndarray, val_targets: np.ndarray, class_weights: bool = True
) -> LinearHead:
    """Fit logistic regression on standardised features [N, F]; with class_weights, classes weigh the same.

    targets are classes [N], each present, or findings [N, C] of 1, 0 and NaN (not counted), one regression each. Of
    STRENGTHS, the one with the best balanced accuracy (classes) or AUROC (findings) on [M, F] is taken, the strongest
    of equals.
    """
    scaler = StandardScaler().fit(train)
    x, val_x = np.asarray(scaler.transform(train)), np.asarray(scaler.transform(val))
    if targets.ndim == 1:
        weight, bias, strength = _best_fit(x, targets, val_x, val_targets, class_weights, balanced_accuracy)
        strengths = [strength]
    else:
        fits = []
        for y, val_y in zip(targets.T, val_targets.T, strict=True):
            known, val_known = np.isfinite(y), np.isfinite(val_y)
            y, val_y = y[known].astype(int), val_y[val_known].astype(int)
            fits.append(_best_fit(x[known], y, val_x[val_known], val_y, class_weights, auroc))
        # a sigmoid's logit is the difference of the two classes' logits
        weight, bias = np.stack([w[1] - w[0] for w, _, _ in fits]), np.array([b[1] - b[0] for _, b, _ in fits])
        strengths = [strength for _, _, strength in fits]
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


def _best_fit(
    x: np.ndarray,
    y: np.ndarray,
    val_x: np.ndarray,
    val_y: np.ndarray,
    class_weights: bool,
    score: Callable[[np.ndarray, np.ndarray], float],
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return weight [C, F], bias [C] and strength of the fit with the best score on validation."""
    fits = [_fitted(c, x, y, class_weights) for c in STRENGTHS]
    best = int(np.argmax([score(val_y, val_x @ weight.T + bias) for weight, bias in fits]))
    return *fits[best], STRENGTHS[best]


def _fitted(c: float, x: np.ndarray, y: np.ndarray, class_weights: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias with one row per class; scikit-learn gives a single one for two classes."""
    model = logistic_regression(c, x, y, class_weights)
    weight, bias = model.coef_, np.asarray(model.intercept_)
    if len(model.classes_) == 2:
        return np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
