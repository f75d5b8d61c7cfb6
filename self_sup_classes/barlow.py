"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): the loss, of two views or more, and the network it trains."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

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
    return F.batch_norm(z, None, None, training=True, eps=EPS)


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """The cross-correlation matrix [D, D] of two views' embeddings [N, D] (equation 2), float32."""
    return standardise(z1.float()).T @ standardise(z2.float()) / len(z1)


def barlow_twins_loss(z1: Tensor, z2: Tensor, lambd: float) -> BarlowTwinsLoss:
    """Equation 1 of the paper: on_diagonal = sum_i (1 - C_ii)^2 and off_diagonal = sum_{i != j} C_ij^2.

    The off-diagonal sum is ||C||_F^2 minus the squared diagonal. For D of 2 N and more the norm comes from the N x N
    Gram matrices, ||Z1^T Z2||_F^2 = <Z1 Z1^T, Z2 Z2^T>, so that neither memory nor time grows with D^2. Forward and
    backward that takes 6 N^2 D multiplications instead of 3 N D^2.

    z1, z2  [N, D] embeddings of the two views of N images, N >= 2, any floating type; computed in float32
            even inside autocast (in bfloat16 the small off-diagonal terms are lost)
    """
    n, d = z1.shape
    with torch.autocast(z1.device.type, enabled=False):
        precision = torch.promote_types(z1.dtype, torch.float32)
        z1, z2 = standardise(z1.to(precision)), standardise(z2.to(precision))
        diagonal = (z1 * z2).mean(0)  # [D]
        by_gram = d >= 2 * n
        squared_norm = ((z1 @ z1.T) * (z2 @ z2.T)).sum() / n**2 if by_gram else (z1.T @ z2 / n).square().sum()
        on_diagonal = (1 - diagonal).square().sum()
        off_diagonal = squared_norm - diagonal.square().sum()
        return BarlowTwinsLoss(on_diagonal + lambd * off_diagonal, on_diagonal, off_diagonal)


def mean_view_loss(z: Tensor, lambd: float) -> BarlowTwinsLoss:
    """The loss of several views (Agrawal et al. 2023, arXiv 2312.10725), each held against the mean of all.

    The embeddings are standardised over all views together, and z_mean is their mean over the views. Then
    on_diagonal = mean over v of sum_d (1 - <z_v,d, z_mean,d> / N)^2, and off_diagonal = sum_{i != j} C_ij^2 with
    C = z_mean^T z_mean / N. C is symmetric, so its norm is that of the Gram matrix z_mean z_mean^T / N, whichever
    is smaller. At two views on_diagonal is a quarter of the paper's.

    z  [V, N, D] embeddings of V views of N images, N >= 2, any floating type; computed in float32, or in float64
    """
    _, n, d = z.shape
    with torch.autocast(z.device.type, enabled=False):
        z = standardise(z.to(torch.promote_types(z.dtype, torch.float32)).flatten(0, 1)).view_as(z)
        z_mean = z.mean(0)  # [N, D]
        on_diagonal = (1 - (z * z_mean).mean(1)).square().sum(1).mean()
        products = z_mean @ z_mean.T if d > n else z_mean.T @ z_mean  # [N, N] or [D, D]
        off_diagonal = (products / n).square().sum() - z_mean.square().mean(0).square().sum()
        return BarlowTwinsLoss(on_diagonal + lambd * off_diagonal, on_diagonal, off_diagonal)


def random_embedding_terms(n: int, d: int, views: int) -> tuple[float, float]:
    """Expected (on_diagonal, off_diagonal) of independent Gaussian embeddings [n, d] of each view.

    The scale to read a loss against. Of two views: a correlation of two independent standardised samples has mean 0
    and variance 1 / (n - 1), hence E (1 - C_ii)^2 = 1 + 1 / (n - 1) and E C_ij^2 = 1 / (n - 1).

    Of V > 2 views: standardised together, a dimension is uniform on a sphere of radius sqrt(V n) in the V n - 1
    directions orthogonal to 1. The moments of quadratic forms there, E u^T A u = tr A / k and
    E (u^T A u)^2 = (tr^2 A + 2 tr A^2) / (k (k + 2)), give for c_v = <z_v, z_mean> / n
    E c_v = (n - 1) / (V n - 1), E c_v^2 = (n - 1) (n + V) / (V^2 n^2 - 1) and E C_ij^2 = (n - 1) / (V n - 1)^2.
    For many images these are 1 / V, 1 / V^2 and 1 / (V^2 n).
    """
    if views == 2:
        variance = 1 / (n - 1)
        return d * (1 + variance), d * (d - 1) * variance
    rows = views * n
    on_diagonal = 1 - 2 * (n - 1) / (rows - 1) + (n - 1) * (n + views) / (rows**2 - 1)
    return d * on_diagonal, d * (d - 1) * (n - 1) / (rows - 1) ** 2


def chance_off_diagonal(n: int, d: int, views: int, on_diagonal: float) -> float:
    """The off-diagonal that chance leaves of independent dimensions, embeddings [n, d], at this on_diagonal.

    Of two views d (d - 1) / (n - 1). Of more, C holds the covariances of z_mean, whose variance s grows from 1 / V
    to 1 as the views agree; then on_diagonal is about d (1 - s)^2, and s^2 of that sum is left.
    """
    agreement = 1.0 if views == 2 else max(1 / views, 1 - math.sqrt(on_diagonal / d))
    return agreement**2 * d * (d - 1) / (n - 1)


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
    """backbone -> projector -> loss, for two or more views of one batch.

    Two views have the paper's loss, more the mean-view loss. Under torch.distributed it is that of the global batch:
    embeddings are gathered with gradients.
    The views pass one after the other, so that each has BatchNorm statistics of its own, as in the paper.

    micro_batch_size  images that pass through the network at once; 0 is all. The loss compares the whole batch, and its
        gradient is exact for a network that treats each image by itself (GradCache, Gao et al. 2021, arXiv 2101.06983):
        the first pass keeps the embeddings alone, and each micro-batch passes again, the same, once the gradient of its
        embeddings is known. BatchNorm in training mode does not: it normalises by the micro-batch, which is another
        network. The cosine of its gradient to the whole batch's was .71 for random and .95 for pretrained weights.
        Its running statistics move once for each micro-batch of a view, not once for each view. Memory is that of one
        view of a micro-batch, beside the views and embeddings of the batch; time that of a second forward pass.
    """

    def __init__(self, backbone: Backbone, projector_dims: Sequence[int], lambd: float, micro_batch_size: int = 0):
        super().__init__()
        self.backbone = backbone
        self.projector = build_projector(backbone.num_features, projector_dims)
        self.lambd, self.micro_batch_size = lambd, micro_batch_size

    def embed(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, F] and embeddings [N, D] of views y [N, C, R, R]."""
        h = self.backbone(y)
        return h, self.projector(h)

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        """The loss and its terms, by name, of two or more views [N, C, R, R] of the same images."""
        z = [gather_with_gradient(self._embeddings(y)) for y in views]  # [N, D] each
        loss = barlow_twins_loss(z[0], z[1], self.lambd) if len(z) == 2 else mean_view_loss(torch.stack(z), self.lambd)
        return loss._asdict()

    def _embeddings(self, y: Tensor) -> Tensor:
        """Embeddings [N, D] of a view, for the loss."""
        if not self.micro_batch_size:
            return self.embed(y)[1]
        embedded = [
            checkpoint(
                self.embed, x, use_reentrant=False, context_fn=lambda: (nullcontext(), running_statistics_kept(self))
            )
            for x in y.split(self.micro_batch_size)
        ]
        return torch.cat([z for _, z in embedded])


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of BatchNorm layers as they are; in training mode they normalise by the batch."""
    layers = [one for one in module.modules() if isinstance(one, _BatchNorm)]
    before = [(one, one.momentum, one.num_batches_tracked) for one in layers]
    for one, _, count in before:
        one.momentum, one.num_batches_tracked = 0.0, count if count is None else count.clone()
    try:
        yield
    finally:
        for one, momentum, count in before:
            one.momentum, one.num_batches_tracked = momentum, count
