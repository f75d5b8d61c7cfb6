"""The loss against an independent float64 reference, and the network's parts."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from self_sup_classes.backbones import Backbone
from self_sup_classes.barlow import (
    BarlowTwins,
    BarlowTwinsLoss,
    barlow_twins_loss,
    build_projector,
    chance_off_diagonal,
    cross_correlation,
    mean_view_loss,
    random_embedding_terms,
    standardise,
)

LAMBDA = 5e-3
# N above D, below D and so far below that the Gram matrices take over (D >= 2 N)
SHAPES = [(256, 32), (64, 96), (64, 128), (16, 2048)]


def standardised(z: torch.Tensor) -> torch.Tensor:
    """Section 2.1 of the paper, with the eps of its code."""
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()


def reference(z1: torch.Tensor, z2: torch.Tensor, lambd: float) -> torch.Tensor:
    """The paper's algorithm 1, entry by entry, in float64."""
    n, d = z1.shape
    z1, z2 = standardised(z1.double()), standardised(z2.double())
    c = torch.einsum("ni,nj->ij", z1, z2) / n
    weight = torch.full((d, d), lambd, dtype=torch.float64).fill_diagonal_(1.0)
    return ((c - torch.eye(d, dtype=torch.float64)).square() * weight).sum()


def embeddings(n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views that partly agree and whose dimensions are partly redundant, with odd means and scales."""
    generator = torch.Generator().manual_seed(n * d)
    shared = torch.randn(n, max(d // 3, 1), generator=generator) @ torch.randn(max(d // 3, 1), d, generator=generator)
    views = (shared + torch.randn(n, d, generator=generator) for _ in range(2))
    z1, z2 = ((view * torch.linspace(0.5, 4, d) + 3).to(dtype).requires_grad_() for view in views)
    return z1, z2


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_value_and_gradient_agree_with_the_paper_in_float64(n: int, d: int) -> None:
    z1, z2 = embeddings(n, d)
    loss = barlow_twins_loss(z1, z2, LAMBDA).loss
    expected = reference(z1, z2, LAMBDA)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    ours = torch.autograd.grad(loss, (z1, z2))
    theirs = torch.autograd.grad(expected, (z1, z2))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.double() - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_parts_add_up(n: int, d: int) -> None:
    z1, z2 = embeddings(n, d, torch.float64)
    loss, on_diagonal, off_diagonal = barlow_twins_loss(z1, z2, LAMBDA)
    c = cross_correlation(z1, z2).double()
    assert on_diagonal.item() == pytest.approx((1 - c.diagonal()).square().sum().item(), rel=1e-4)
    off = c.square().sum() - c.diagonal().square().sum()
    assert off_diagonal.item() == pytest.approx(off.item(), rel=1e-4)
    assert loss.item() == pytest.approx((on_diagonal + LAMBDA * off_diagonal).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [lambda z: barlow_twins_loss(z[0], z[1], LAMBDA), lambda z: mean_view_loss(z, LAMBDA)])
def test_losses_are_float32_inside_autocast(loss: Callable[[torch.Tensor], BarlowTwinsLoss]) -> None:
    z = torch.stack(embeddings(64, 32))
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(z).loss
    assert half.dtype == torch.float32
    assert half.item() == loss(z).loss.item()


def test_identical_decorrelated_views_cost_nothing() -> None:
    z = torch.linalg.qr(torch.cat([torch.ones(64, 1), torch.randn(64, 15)], 1).double())[0][:, 1:] * 1e3
    assert barlow_twins_loss(z, z, LAMBDA).loss.item() < 1e-6


def mean_view_reference(z: torch.Tensor, lambd: float) -> torch.Tensor:
    """arXiv 2312.10725, entry by entry, in float64."""
    v, n, d = z.shape
    z = standardised(z.double().reshape(v * n, d)).reshape(v, n, d)
    z_mean = sum(z) / v
    loss = torch.zeros((), dtype=torch.float64)
    for view in z:
        loss = loss + (1 - torch.einsum("nd,nd->d", view, z_mean) / n).square().sum() / v
    c = torch.einsum("ni,nj->ij", z_mean, z_mean) / n
    return loss + lambd * (c - c.diagonal().diag()).square().sum()


@pytest.mark.parametrize("views", [3, 4])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_the_mean_view_loss_and_its_gradient_agree_with_the_formula_in_float64(n: int, d: int, views: int) -> None:
    z = torch.stack([*embeddings(n, d), *embeddings(n, d)][:views]).detach()
    z = (z + torch.randn(z.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss, on_diagonal, off_diagonal = mean_view_loss(z, LAMBDA)
    expected = mean_view_reference(z, LAMBDA)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx((on_diagonal + LAMBDA * off_diagonal).item(), rel=1e-6)
    (mine,), (other,) = torch.autograd.grad(loss, z), torch.autograd.grad(expected, z)
    assert (mine.double() - other).norm() <= 1e-5 * other.norm()


def test_at_two_views_the_mean_view_loss_has_a_quarter_of_the_papers_on_diagonal() -> None:
    z = torch.stack([standardise(torch.randn(64, 16, dtype=torch.float64)) for _ in range(2)])
    paper = barlow_twins_loss(z[0], z[1], LAMBDA).on_diagonal.item()
    assert mean_view_loss(z, LAMBDA).on_diagonal.item() == pytest.approx(paper / 4, rel=1e-3)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_random_embedding_parts_are_the_mean_over_random_embeddings(views: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1000, views, 32, 64, generator=generator)
    losses = [barlow_twins_loss(z[0], z[1], LAMBDA) if views == 2 else mean_view_loss(z, LAMBDA) for z in drawn]
    expected = torch.tensor(random_embedding_terms(32, 64, views))
    torch.testing.assert_close(torch.tensor(losses).mean(0)[1:], expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_chance_is_what_independent_dimensions_have_however_much_the_views_agree(views: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(50):
        z = torch.randn(64, 32, generator=generator) + noise * torch.randn(views, 64, 32, generator=generator)
        parts = barlow_twins_loss(z[0], z[1], LAMBDA) if views == 2 else mean_view_loss(z, LAMBDA)
        chance = chance_off_diagonal(64, 32, views, parts.on_diagonal.item())
        ratios.append(parts.off_diagonal.item() / chance)
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dims", [[8], [32, 8], [32, 16, 8]])
def test_projector_is_the_papers(dims: list[int]) -> None:
    projector = build_projector(12, dims)
    assert projector(torch.randn(4, 12)).shape == (4, dims[-1])
    kinds = [type(layer) for layer in projector]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * (len(dims) - 1) + [nn.Linear]


def test_two_views_have_the_papers_loss_to_the_bit_and_more_the_mean_view_loss() -> None:
    torch.manual_seed(0)
    twins = BarlowTwins(Backbone("resnet18", 1), [16], LAMBDA)
    y = torch.randn(4, 8, 1, 32, 32)
    z = torch.stack([twins.embed(view)[1] for view in y])
    assert torch.equal(twins(y[0], y[1])["loss"], barlow_twins_loss(z[0], z[1], LAMBDA).loss)
    for views in (3, 4):
        assert torch.equal(twins(*y[:views])["loss"], mean_view_loss(z[:views], LAMBDA).loss)


def test_views_have_batch_statistics_of_their_own() -> None:
    """One concatenated forward would mix them, and move the loss."""
    torch.manual_seed(0)
    twins = BarlowTwins(Backbone("resnet18", 1), [16], LAMBDA)
    y1, y2 = torch.randn(8, 1, 32, 32), 3 * torch.randn(8, 1, 32, 32) + 1
    apart = twins(y1, y2)["loss"]
    z1, z2 = twins.embed(y1)[1], twins.embed(y2)[1]
    mixed1, mixed2 = twins.embed(torch.cat([y1, y2]))[1].split(8)
    torch.testing.assert_close(apart, barlow_twins_loss(z1, z2, LAMBDA).loss)
    assert abs(apart.item() - barlow_twins_loss(mixed1, mixed2, LAMBDA).loss.item()) > 1e-3
