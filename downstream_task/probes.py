"""Judging a backbone by few labels: its features, computed once, and probes on them."""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from augmentations.transform_utils import plain_view
from dataset_loader.xrays import XRays
from downstream_task.targets import apply_policy
from utils.metrics import auroc, balanced_accuracy, knn_scores

REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths C that the linear probe chooses from
FEWEST = 5  # images to learn a class or a finding from: one for each fold of the linear probe
FEWEST_TESTED = 2  # images to be tested on


@torch.no_grad()
def forward_all(
    network: nn.Module,
    xrays: XRays,
    indices: np.ndarray,
    out_size: int,
    in_channels: int,
    dtype: torch.dtype,
    part: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """What a network, or a `part` of it, gives for the X-rays at `indices` without augmentation, in eval mode.

    float32 [n, ...] on the CPU: features [n, F] of a backbone, logits [n, C] of a classifier.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    outputs = []
    for batch in torch.from_numpy(indices).split(128):
        y = plain_view(xrays.batch(batch), out_size, in_channels)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            outputs.append((part or network)(y).float().cpu())
    network.train(was_training)
    return torch.cat(outputs)


def linear_probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Class probabilities [M, C] of test features [M, F], by logistic regression at its optimum.

    The features are standardised and the classes weigh the same. The L2 strength is the most likely of
    REGULARISATION on a fifth of the training images, held out by class; then all of them are fitted.
    """
    scaler = StandardScaler().fit(train)
    train, test = np.asarray(scaler.transform(train)), np.asarray(scaler.transform(test))
    fit_part, held_out = next(StratifiedKFold(5, shuffle=True, random_state=0).split(train, labels))

    def fitted(c: float, rows: np.ndarray) -> LogisticRegression:
        return logistic_regression(c, train[rows], labels[rows])

    weight = compute_sample_weight("balanced", labels[held_out])
    losses = [
        log_loss(labels[held_out], fitted(c, fit_part).predict_proba(train[held_out]), sample_weight=weight)
        for c in REGULARISATION
    ]
    return fitted(REGULARISATION[int(np.argmin(losses))], np.arange(len(train))).predict_proba(test)


def logistic_regression(c: float, x: np.ndarray, y: np.ndarray, class_weights: bool = True) -> LogisticRegression:
    """Fitted at its optimum to features [N, F], inverse L2 strength c; by one thread, in half the time."""
    with threadpool_limits(1):  # products are small here: threads spend their time waiting for each other
        return LogisticRegression(C=c, max_iter=2000, class_weight="balanced" if class_weights else None).fit(x, y)


def probe(train: Tensor, train_labels: np.ndarray, test: Tensor, test_labels: np.ndarray) -> dict[str, float]:
    """Scores of a linear and a kNN probe on frozen features [N, F], [M, F]; empty if nothing can be probed.

    Class labels [N] give balanced accuracy over `probed_classes`; chance is 1 / their number. Findings [N, C], NaN
    where unknown, give the mean AUROC over those with enough images with and without them; chance is 0.5.
    """
    if train_labels.ndim == 1:
        classes = probed_classes(train_labels, test_labels)
        if len(classes) < 2:
            return {}
        known, test_known = np.isin(train_labels, classes), np.isin(test_labels, classes)
        y, test_y = (np.searchsorted(classes, a) for a in (train_labels[known], test_labels[test_known]))
        return _probe_one(_rows(train, known), y, _rows(test, test_known), test_y, balanced_accuracy)
    scores = []
    for c in range(train_labels.shape[1]):
        known, test_known = np.isfinite(train_labels[:, c]), np.isfinite(test_labels[:, c])
        y, test_y = train_labels[known, c].astype(int), test_labels[test_known, c].astype(int)
        if min(y.sum(), (1 - y).sum()) >= FEWEST and min(test_y.sum(), (1 - test_y).sum()) >= FEWEST_TESTED:
            scores.append(_probe_one(_rows(train, known), y, _rows(test, test_known), test_y, auroc))
    return {name: float(np.mean([score[name] for score in scores])) for name in (scores[0] if scores else {})}


def probed_classes(train_labels: np.ndarray, test_labels: np.ndarray) -> np.ndarray:
    """The classes with FEWEST images to learn from and FEWEST_TESTED to be tested on; rarer ones are left out."""
    enough = [
        (train_labels == c).sum() >= FEWEST and (test_labels == c).sum() >= FEWEST_TESTED
        for c in np.unique(train_labels)
    ]
    return np.unique(train_labels)[enough]


def probe_labels(labels: np.ndarray) -> np.ndarray:
    """Labels as probes take them: classes as they are; findings 0, 1 or NaN where the label is uncertain."""
    if labels.ndim == 1:
        return labels
    return apply_policy(labels, uncertain="ignore", blank="zero")


def class_votes(labels: np.ndarray, num_classes: int = -1) -> Tensor:
    """Soft targets [N, C] of classes [N] for kNN: a frequent class has more neighbours, so each of its has less say."""
    votes = F.one_hot(torch.from_numpy(labels), num_classes).float()
    return votes / votes.sum(0)


def _rows(features: Tensor, chosen: np.ndarray) -> Tensor:
    return features[torch.from_numpy(chosen)]


def _probe_one(
    train: Tensor,
    labels: np.ndarray,
    test: Tensor,
    test_labels: np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], float],
) -> dict[str, float]:
    return {
        "probe/linear": score(test_labels, linear_probe(train.numpy(), labels, test.numpy())),
        "probe/knn": score(test_labels, knn_scores(train, class_votes(labels), test).numpy()),
    }
