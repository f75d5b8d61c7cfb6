"""Logistic regression on features that are computed once: as a probe, and as the last layer of a classifier."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from augmentations.transform_utils import plain_view
from dataset_loader.xrays import XRays

# Inverse L2 strengths C of every logistic regression. The head of a classifier takes the likeliest one by
# cross-validation (fit_linear_head); a probe that monitors a backbone, on a fifth of its own training images.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
DEFAULT_STRENGTH = 1e-2  # where there are too few images to choose by
MIN_IMAGES = 5  # of a class or a finding to learn from, each of another group: one for each fifth
MIN_TESTED = 2  # of a class or a finding to be tested on
BATCH = 128  # images


class InputFormat(NamedTuple):
    """How a network sees X-rays: pixels per side, channels (1 or 3), and the precision in which it computes."""

    size: int
    in_channels: int
    dtype: torch.dtype = torch.float32


@torch.no_grad()
def forward(
    network: nn.Module, pixels: Tensor, seen: InputFormat, part: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return the output of a network, or a `part` of it, for pixels uint8 [B, 1, S, S] on its device, in eval mode.

    float32 [B, ...] on the CPU: features [B, F] of a backbone, logits [B, C] of a classifier.
    """
    was_training = network.training
    network.eval()
    y = plain_view(pixels, seen.size, seen.in_channels)
    with torch.autocast(pixels.device.type, seen.dtype, enabled=seen.dtype != torch.float32):
        output = (part or network)(y).float().cpu()
    network.train(was_training)
    return output


def forward_all(
    network: nn.Module,
    xrays: XRays,
    indices: np.ndarray,
    seen: InputFormat,
    part: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return what `forward` does for the X-rays at `indices` [n], without augmentation: float32 [n, ...] on the CPU."""
    batches = torch.from_numpy(indices).split(BATCH)
    return torch.cat([forward(network, xrays.batch(rows), seen, part) for rows in batches])


def linear_probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return class probabilities [M, C] of test features [M, F], by logistic regression at its optimum.

    The features are standardised and the classes weigh the same. The strength is the likeliest one on a fifth of the
    training images, held out by class; then all of them are fitted. Each class needs five images.
    """
    scaler = StandardScaler().fit(train)
    train, test = np.asarray(scaler.transform(train)), np.asarray(scaler.transform(test))
    return logistic_regression(likeliest_strength(train, labels), train, labels).predict_proba(test)


def likeliest_strength(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None, class_weights: bool = True, folds: int = 1
) -> float:
    """Return the one of STRENGTHS under which held-out features x [N, F] have the likeliest classes y [N].

    Each of the first `folds` fifths, stratified and of whole groups [N] (by default, of images), is held out in turn.
    DEFAULT_STRENGTH where a class has fewer than MIN_IMAGES groups.
    """
    groups = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if min(len(np.unique(groups[y == c])) for c in np.unique(y)) < MIN_IMAGES:
        return DEFAULT_STRENGTH
    losses = np.zeros(len(STRENGTHS))
    splits = StratifiedGroupKFold(MIN_IMAGES, shuffle=True, random_state=0).split(x, y, groups)
    for rows, held_out in itertools.islice(splits, folds):
        if len(np.unique(y[rows])) < len(np.unique(y)):
            return DEFAULT_STRENGTH  # a few groups hold most images of a class
        weight = compute_sample_weight("balanced", y[held_out]) if class_weights else None
        models = [logistic_regression(c, x[rows], y[rows], class_weights) for c in STRENGTHS]
        losses += [
            log_loss(y[held_out], model.predict_proba(x[held_out]), sample_weight=weight, labels=model.classes_)
            for model in models
        ]
    return STRENGTHS[int(np.argmin(losses))]


def logistic_regression(
    c: float, x: np.ndarray, y: np.ndarray, class_weights: bool = True, weights: np.ndarray | None = None
) -> LogisticRegression:
    """Fit features x [N, F] to classes y [N] at inverse L2 strength c, images by `weights` [N] or all alike.

    It takes one thread, and half the time of several.
    """
    with threadpool_limits(1):  # products are small here: threads spend their time waiting for each other
        model = LogisticRegression(C=c, max_iter=2000, class_weight="balanced" if class_weights else None)
        return model.fit(x, y, sample_weight=weights)


def probed_classes(train_labels: np.ndarray, test_labels: np.ndarray) -> np.ndarray:
    """The classes with MIN_IMAGES images to learn from and MIN_TESTED to be tested on; rarer ones are left out."""
    enough = [
        (train_labels == c).sum() >= MIN_IMAGES and (test_labels == c).sum() >= MIN_TESTED
        for c in np.unique(train_labels)
    ]
    return np.unique(train_labels)[enough]


@dataclass(frozen=True)
class LinearHead:
    """weight float32 [C, F] and bias [C] on raw features; the inverse L2 strengths that were chosen."""

    weight: np.ndarray
    bias: np.ndarray
    regularisation: list[float]

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32 [n, C] of features [n, F]."""
        return features @ self.weight.T + self.bias


def fit_linear_head(
    train: np.ndarray, targets: np.ndarray, groups: np.ndarray, class_weights: bool = True
) -> LinearHead:
    """Fit logistic regression on standardised features [N, F]; with class_weights, classes weigh the same.

    targets are classes [N], each present, or findings [N, C] of 1, 0 and NaN (not counted), one regression each. Of
    STRENGTHS, the likeliest one by five-fold cross-validation within these images, by group [N], is taken.
    """
    scaler = StandardScaler().fit(train)
    x = np.asarray(scaler.transform(train))
    strengths, models = [], []
    for known, y in regressions(targets):
        strengths.append(likeliest_strength(x[known], y, groups[known], class_weights, folds=5))
        models.append(logistic_regression(strengths[-1], x[known], y, class_weights))
    return head_of(models, scaler, targets.ndim > 1, strengths)


def regressions(targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield which images [N] are known, and their classes [n]: once for classes [N], or of each of findings [N, C]."""
    for column in targets.T if targets.ndim > 1 else [targets]:
        known = np.isfinite(column)
        yield known, column[known].astype(int)


def head_of(
    models: list[LogisticRegression], scaler: StandardScaler, multilabel: bool, strengths: list[float]
) -> LinearHead:
    """Return as one head on raw features the regression of classes, or those of each finding, on standardised ones."""
    weight = np.concatenate([model.coef_ for model in models])
    bias = np.concatenate([model.intercept_ for model in models])
    if not multilabel and len(bias) == 1:  # scikit-learn gives one row for two classes
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / np.asarray(scaler.scale_)
    bias = bias - weight @ np.asarray(scaler.mean_)
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32), strengths)
