"""How well few labels are learned from a backbone's features: what monitors a pretraining."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from downstream_task.probes import MIN_IMAGES, MIN_TESTED, linear_probe, probed_classes
from downstream_task.targets import apply_policy
from utils.metrics import auroc, balanced_accuracy


def probe(train: Tensor, train_labels: np.ndarray, test: Tensor, test_labels: np.ndarray) -> dict[str, float]:
    """Return the scores of a linear and a kNN probe on frozen features [N, F], [M, F]; {} if nothing can be probed.

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
        if min(y.sum(), (1 - y).sum()) >= MIN_IMAGES and min(test_y.sum(), (1 - test_y).sum()) >= MIN_TESTED:
            scores.append(_probe_one(_rows(train, known), y, _rows(test, test_known), test_y, auroc))
    return {name: float(np.mean([score[name] for score in scores])) for name in (scores[0] if scores else {})}


def probe_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels for probes: classes unchanged; findings 0, 1 or NaN where the label is uncertain."""
    if labels.ndim == 1:
        return labels
    return apply_policy(labels, uncertain="ignore", blank="zero")


def class_votes(labels: np.ndarray, num_classes: int = -1) -> Tensor:
    """Return kNN's soft targets [N, C] of classes [N]; each class has one vote, shared by its images."""
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


def knn_scores(train: Tensor, train_targets: Tensor, test: Tensor, k: int = 20) -> Tensor:
    """Return soft targets [M, C] of test features [M, F] from the k nearest train features [N, F] by cosine.

    Each neighbour votes with weight exp(cosine / 0.07) (Wu et al. 2018, arXiv 1805.01978, section 3.4);
    train_targets [N, C] are one-hot classes or findings in 0..1.
    """
    train, test = F.normalize(train.float()), F.normalize(test.float())
    similarity, neighbours = (test @ train.T).topk(min(k, len(train)))  # [M, k]
    weights = torch.softmax(similarity / 0.07, dim=1)
    return (weights[..., None] * train_targets.float()[neighbours]).sum(1)
