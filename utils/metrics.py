"""Numbers about predictions and embeddings, exact over all samples."""

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor
from torch.nn import functional as F


def effective_rank(z: Tensor) -> float:
    """RankMe of embeddings z [N, D]: the exponential of the entropy of their singular values, 1 to min(N, D).

    Garrido et al. 2023 (arXiv 2210.02885, section 3.1), on centred embeddings, since the mean of an embedding
    carries nothing that the Barlow Twins loss or a linear probe could see. Embeddings that are all equal have rank 0.
    """
    z = z.double() - z.double().mean(0)
    singular_values = torch.linalg.svdvals(z)
    if singular_values[0] <= 1e-12 * max(1.0, z.abs().max().item()):
        return 0.0
    p = singular_values / singular_values.sum()
    return torch.exp(-torch.special.xlogy(p, p).sum()).item()


def dead_dimensions(z: Tensor, share: float = 0.01) -> int:
    """How many dimensions of z [N, D] hardly vary: standard deviation under `share` of the largest one's."""
    deviation = z.double().std(0, correction=0)
    return int((deviation <= share * deviation.max()).sum().item())


def knn_scores(train: Tensor, train_targets: Tensor, test: Tensor, k: int = 20) -> Tensor:
    """Soft targets [M, C] of test features [M, F] from the k nearest train features [N, F] by cosine.

    Each neighbour votes with weight exp(cosine / 0.07) (Wu et al. 2018, arXiv 1805.01978, section 3.4);
    train_targets [N, C] are one-hot classes or findings in 0..1.
    """
    train, test = F.normalize(train.float()), F.normalize(test.float())
    similarity, neighbours = (test @ train.T).topk(min(k, len(train)))  # [M, k]
    weights = torch.softmax(similarity / 0.07, dim=1)
    return (weights[..., None] * train_targets.float()[neighbours]).sum(1)


def balanced_accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean recall over the classes of labels [M], predicted as the largest of scores [M, C]; chance is 1 / C."""
    return float(balanced_accuracy_score(labels, scores.argmax(1)))


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of labels [M] in 0, 1 by the last column of scores [M, 2]; chance is 0.5."""
    return float(roc_auc_score(labels, scores[:, -1]))
