"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): the loss, and the network that it trains."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from self_sup_classes.backbones import Backbone
from utils.distributed import gather_with_gradient

# The paper's code standardises embeddings with BatchNorm1d(affine=False), whose eps this is.
EPS = 1e-5


class BarlowTwinsLoss(NamedTuple):
    """loss = on_diagonal + lambd * off_diagonal; scalars, float32 (float64 for float64 embeddings)."""

    loss: Tensor
    on_diagonal: Tensor
    off_diagonal: Tensor


def standardise(z: Tensor) -> Tensor:
    """Each dimension of z [N, D] with mean 0 and biased variance 1 over the batch (section 2.1)."""
    z = z - z.mean(0)
    return z * (z.square().mean(0) + EPS).rsqrt()


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """The cross-correlation matrix [D, D] of two views' embeddings [N, D] (equation 2), float32."""
    return standardise(z1.float()).T @ standardise(z2.float()) / len(z1)


def barlow_twins_loss(z1: Tensor, z2: Tensor, lambd: float) -> BarlowTwinsLoss:
    """Equation 1 of the paper: on_diagonal = sum_i (1 - C_ii)^2 and off_diagonal = sum_{i != j} C_ij^2.

    The off-diagonal sum is ||C||_F^2 minus the squared diagonal. For embeddings much wider than the batch the
    norm comes from the N x N Gram matrices, ||Z1^T Z2||_F^2 = <Z1 Z1^T, Z2 Z2^T>, so that neither
    memory nor time grows with D^2.

    z1, z2  [N, D] embeddings of the two views of N images, N >= 2, any floating type; computed in float32
            even inside autocast (in bfloat16 the small off-diagonal terms are lost)
    """
    n, d = z1.shape
    if n < 2:
        raise ValueError(f"Barlow Twins needs at least 2 images in a batch to correlate over, got {n}.")
    with torch.autocast(z1.device.type, enabled=False):
        precision = torch.promote_types(z1.dtype, torch.float32)
        z1, z2 = standardise(z1.to(precision)), standardise(z2.to(precision))
        diagonal = (z1 * z2).mean(0)  # [D]
        squared_norm = _gram_norm(z1, z2) if d >= 4 * n else (z1.T @ z2 / n).square().sum()
        on_diagonal = (1 - diagonal).square().sum()
        off_diagonal = squared_norm - diagonal.square().sum()
        return BarlowTwinsLoss(on_diagonal + lambd * off_diagonal, on_diagonal, off_diagonal)


def _gram_norm(z1: Tensor, z2: Tensor) -> Tensor:
    return ((z1 @ z1.T) * (z2 @ z2.T)).sum() / len(z1) ** 2


def random_embedding_loss(n: int, d: int, lambd: float) -> tuple[float, float, float]:
    """Expected (loss, on_diagonal, off_diagonal) of independent Gaussian embeddings [n, d].

    A correlation of two independent standardised samples has mean 0 and variance 1 / (n - 1), hence
    E (1 - C_ii)^2 = 1 + 1 / (n - 1) and E C_ij^2 = 1 / (n - 1). The scale to read a loss against.
    """
    variance = 1 / (n - 1)
    on_diagonal, off_diagonal = d * (1 + variance), d * (d - 1) * variance
    return on_diagonal + lambd * off_diagonal, on_diagonal, off_diagonal


def build_projector(in_features: int, dims: Sequence[int]) -> nn.Sequential:
    """The paper's projector: Linear (no bias), BatchNorm, ReLU for each width but the last, then one Linear.

    A single width gives a single linear layer. The hidden layers need no bias, the BatchNorm after them has one;
    the last needs none, because the loss subtracts the mean.
    """
    widths = [in_features, *dims]
    layers: list[nn.Module] = []
    for wide_in, wide_out in pairwise(widths[:-1]):
        layers += [nn.Linear(wide_in, wide_out, bias=False), nn.BatchNorm1d(wide_out), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
    return nn.Sequential(*layers)


class BarlowTwins(nn.Module):
    """backbone -> projector -> loss, for two views of one batch.

    Under torch.distributed the loss is that of the global batch: embeddings are gathered with gradients.
    The views pass one after the other, so that each has BatchNorm statistics of its own, as in the paper.
    """

    def __init__(self, backbone: Backbone, projector_dims: Sequence[int], lambd: float):
        super().__init__()
        self.backbone = backbone
        self.projector = build_projector(backbone.num_features, projector_dims)
        self.lambd = lambd

    def embed(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, F] and embeddings [N, D] of views y [N, C, R, R]."""
        h = self.backbone(y)
        return h, self.projector(h)

    def forward(self, y1: Tensor, y2: Tensor) -> BarlowTwinsLoss:
        """The loss of two views [N, C, R, R] of the same images."""
        z1, z2 = self.embed(y1)[1], self.embed(y2)[1]
        return barlow_twins_loss(gather_with_gradient(z1), gather_with_gradient(z2), self.lambd)
