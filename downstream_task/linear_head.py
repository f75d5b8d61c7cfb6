"""A linear probe as a head: logistic regression at its optimum on frozen features, as weights of a last layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from downstream_task.probes import class_votes, logistic_regression
from downstream_task.targets import Targets
from utils.metrics import auroc, balanced_accuracy, knn_scores

REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse strengths C to choose from


@dataclass(frozen=True)
class LinearHead:
    """weight float32 [C, F] and bias [C] on raw features; the inverse L2 strengths that validation chose."""

    weight: np.ndarray
    bias: np.ndarray
    regularisation: list[float]


def fit_linear_head(
    train: np.ndarray,
    targets: np.ndarray,
    val: np.ndarray,
    val_targets: np.ndarray,
    class_weights: bool = True,
    strengths: Sequence[float] = REGULARISATION,
) -> LinearHead:
    """Logistic regression on standardised features [N, F], at its optimum; classes may weigh the same.

    targets are classes [N], each present, or findings [N, C] of 1, 0 and NaN (not counted), one regression each. Of
    `strengths` that with the best balanced accuracy (classes) or AUROC (findings) on [M, F] is taken, the strongest
    of equals.
    """
    scaler = StandardScaler().fit(train)
    x, val_x = np.asarray(scaler.transform(train)), np.asarray(scaler.transform(val))
    if targets.ndim == 1:
        fits = [_fitted(c, x, targets, class_weights) for c in strengths]
        best = int(np.argmax([balanced_accuracy(val_targets, fit.decision_scores(val_x)) for fit in fits]))
        weight, bias, chosen = fits[best].weight, fits[best].bias, [strengths[best]]
    else:
        weight, bias, chosen = _fit_findings(x, targets, val_x, val_targets, class_weights, strengths)
    scale, mean = np.asarray(scaler.scale_), np.asarray(scaler.mean_)
    weight = weight / scale
    return LinearHead(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), chosen)


def knn_probabilities(train: np.ndarray, targets: np.ndarray, val: np.ndarray, what: Targets) -> np.ndarray:
    """[M, C] by the 20 nearest of the training features [N, F] by cosine; classes weigh the same."""
    if targets.ndim > 1:
        votes = torch.from_numpy(np.nan_to_num(targets, nan=0.5))
    else:
        votes = class_votes(targets, len(what.names))
    scores = knn_scores(torch.from_numpy(train), votes, torch.from_numpy(val)).double().numpy()
    return scores if targets.ndim > 1 else scores / scores.sum(1, keepdims=True)


@dataclass(frozen=True)
class _Fit:
    weight: np.ndarray
    bias: np.ndarray

    def decision_scores(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T + self.bias


def _fitted(c: float, x: np.ndarray, y: np.ndarray, class_weights: bool) -> _Fit:
    """One row of weights a class; scikit-learn gives a single one for two classes."""
    model = logistic_regression(c, x, y, class_weights)
    if len(model.classes_) == 2:
        return _Fit(
            np.vstack([-model.coef_, model.coef_]) / 2, np.concatenate([-model.intercept_, model.intercept_]) / 2
        )
    return _Fit(model.coef_, np.asarray(model.intercept_))


def _fit_findings(
    x: np.ndarray,
    targets: np.ndarray,
    val_x: np.ndarray,
    val_targets: np.ndarray,
    class_weights: bool,
    strengths: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    weights, biases, chosen = [], [], []
    for column in range(targets.shape[1]):
        known, val_known = np.isfinite(targets[:, column]), np.isfinite(val_targets[:, column])
        y, val_y = targets[known, column].astype(int), val_targets[val_known, column].astype(int)
        fits = [_fitted(c, x[known], y, class_weights) for c in strengths]
        best = int(np.argmax([auroc(val_y, fit.decision_scores(val_x[val_known])) for fit in fits]))
        weights.append(2 * fits[best].weight[1])  # the logit of a sigmoid is the difference of the two rows
        biases.append(2 * fits[best].bias[1])
        chosen.append(strengths[best])
    return np.stack(weights), np.array(biases), chosen
