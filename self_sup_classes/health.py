"""Whether Barlow Twins is learning or collapsing: a few numbers per epoch, and a verdict in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from self_sup_classes.barlow import chance_off_diagonal, random_embedding_terms

# Bounds of the verdict; tests check them on induced failures and a healthy run.
COLLAPSED_RANK = 3.0
DEAD_DEVIATION = 0.01  # of the largest
DEAD_SHARE = 0.5  # of the dimensions
NOT_ALIGNED = 0.9  # on-diagonal divided by that of random embeddings
AT_CHANCE = 1.5  # off-diagonal divided by that of random embeddings


@dataclass(frozen=True)
class Health:
    """The health panel of one epoch.

    on_ratio             the on-diagonal divided by that of random embeddings of the same N, D and number of views:
                         falls from 1 to 0 as the views of an image agree
    off_ratio            the off-diagonal divided by that of independent dimensions whose views agree as much: large
                         while dimensions repeat each other, falls towards 1, which is chance
    off_share            the weighted off-diagonal's share of the loss
                         the diagonals' numbers are NaN for a loss without them
    rank, max_rank       effective rank of the embeddings, and the largest that their number and width allow
    dead, width          embedding dimensions that hardly vary, and all dimensions
    feature_rank, dead_features  the same for the backbone's features
    """

    on_ratio: float
    off_ratio: float
    off_share: float
    rank: float
    max_rank: int
    dead: int
    width: int
    feature_rank: float
    dead_features: int

    def scalars(self) -> dict[str, float]:
        """Return the numbers that there are by their tags in metrics.csv and TensorBoard."""
        numbers = {
            "health/rank": self.rank,
            "health/dead_dimensions": self.dead,
            "health/feature_rank": self.feature_rank,
            "health/dead_features": self.dead_features,
            "health/on_diagonal_vs_random": self.on_ratio,
            "health/off_diagonal_vs_random": self.off_ratio,
        }
        return {tag: number for tag, number in numbers.items() if not math.isnan(number)}

    def verdict(self) -> str:
        """Return "healthy" with the rank, or what is wrong, which number shows it and what to change."""
        if self.rank < COLLAPSED_RANK:
            return f"collapsing: rank {self.rank:.1f} of {self.max_rank}; raise barlow_lambda or lower lr"
        if self.dead > DEAD_SHARE * self.width:
            return f"collapsing: {self.dead} of {self.width} dimensions are dead; lower lr"
        if self.off_share > 0.5 and self.off_ratio < AT_CHANCE:
            return (
                f"lambda too high: the off-diagonal is as small as chance allows ({self.off_ratio:.2f} of random) and "
                f"still {self.off_share:.0%} of the loss; lower barlow_lambda"
            )
        if self.on_ratio > NOT_ALIGNED:
            return f"not learning: on-diagonal {self.on_ratio:.2f} of random; train longer or change lr"
        aligned = "" if math.isnan(self.on_ratio) else f", on-diagonal {self.on_ratio:.2f} of random"
        return f"healthy: rank {self.rank:.0f} of {self.max_rank}{aligned}"


def measure_health(features: Tensor, embeddings: Tensor, terms: Sequence[float], batch_size: int, views: int) -> Health:
    """The health panel from features [n, F] and embeddings [n, D] of a fixed sample, and the training loss.

    terms              an epoch's mean loss, on_diagonal and off_diagonal; NaN for a loss without diagonals
    batch_size, views  those of training, over which the loss correlates
    """
    n, d = embeddings.shape
    loss, on_diagonal, off_diagonal = terms
    return Health(
        on_ratio=on_diagonal / random_embedding_terms(batch_size, d, views)[0],
        off_ratio=off_diagonal / chance_off_diagonal(batch_size, d, views, on_diagonal),
        off_share=1 - on_diagonal / loss,
        rank=effective_rank(embeddings),
        max_rank=min(n - 1, d),
        dead=dead_dimensions(embeddings),
        width=d,
        feature_rank=effective_rank(features),
        dead_features=dead_dimensions(features),
    )


def effective_rank(z: Tensor) -> float:
    """Return RankMe of embeddings z [N, D]: the exponential of the entropy of their singular values, 1 to min(N, D).

    Garrido et al. 2023 (arXiv 2210.02885, section 3.1), on centred embeddings, since neither the Barlow Twins
    loss nor a linear probe depends on the mean. Embeddings that are all equal have rank 0.
    """
    z = z.double() - z.double().mean(0)
    singular_values = torch.linalg.svdvals(z)
    if singular_values[0] <= 1e-12 * max(1.0, z.abs().max().item()):
        return 0.0
    p = singular_values / singular_values.sum()
    return torch.exp(-torch.special.xlogy(p, p).sum()).item()


def dead_dimensions(z: Tensor) -> int:
    """Return how many dimensions of z [N, D] hardly vary: standard deviation at most 1% of the largest."""
    deviation = z.double().std(0, correction=0)
    return int((deviation <= DEAD_DEVIATION * deviation.max()).sum().item())
