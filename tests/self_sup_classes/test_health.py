"""The verdict of the health panel, on networks that really collapse and one that really learns."""

import pytest
import torch
from torch import Tensor, nn

from self_sup_classes.barlow import barlow_twins_loss, mean_view_loss
from self_sup_classes.health import Health, measure_health

BATCH, FACTORS, WIDTH = 64, 12, 24


def views(n: int, generator: torch.Generator, noise: float, count: int) -> list[Tensor]:
    """Noisy views [n, FACTORS] of the same hidden factors."""
    factors = torch.randn(n, FACTORS, generator=generator)
    return [factors + noise * torch.randn(n, FACTORS, generator=generator) for _ in range(count)]


def trained_health(steps: int, lambd: float, noise: float, count: int) -> Health:
    """Train a small network with Barlow Twins on `count` views and measure it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(FACTORS, 64), nn.ReLU(), nn.Linear(64, WIDTH))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    epoch: list[list[float]] = []
    for _ in range(steps):
        z = [network(y) for y in views(BATCH, generator, noise, count)]
        parts = barlow_twins_loss(z[0], z[1], lambd) if count == 2 else mean_view_loss(torch.stack(z), lambd)
        optimizer.zero_grad()
        parts.loss.backward()
        optimizer.step()
        epoch.append([part.item() for part in parts])
    with torch.no_grad():
        h = network[:2](views(512, generator, 0.0, 1)[0])
        z = network[2](h)
    return measure_health(h, z, torch.tensor(epoch[-20:]).mean(0).tolist(), BATCH, count)


@pytest.mark.parametrize("count", [2, 4])
def test_a_network_that_learns_is_healthy(count: int) -> None:
    health = trained_health(400, lambd=5e-3, noise=0.2, count=count)
    assert health.verdict().startswith("healthy")
    assert health.on_ratio < 0.3
    assert health.rank > FACTORS / 2
    assert health.max_rank == WIDTH


@pytest.mark.parametrize("count", [2, 4])
def test_too_large_a_lambda_is_named(count: int) -> None:
    health = trained_health(300, lambd=100.0, noise=1.0, count=count)
    assert health.verdict().startswith("lambda too high")


def panel(**changes: float) -> Health:
    healthy = {
        "on_ratio": 0.2,
        "off_ratio": 2.0,
        "off_share": 0.1,
        "rank": 80.0,
        "max_rank": 512,
        "dead": 0,
        "width": 512,
    }
    return Health(**{**healthy, "feature_rank": 50.0, "dead_features": 0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "healthy: rank 80 of 512"),
        ({"rank": 1.4}, "collapsing: rank 1.4 of 512"),
        ({"dead": 300}, "collapsing: 300 of 512 dimensions are dead"),
        ({"on_ratio": 0.97, "off_ratio": 30.0}, "not learning: on-diagonal 0.97"),
        ({"off_share": 0.8, "off_ratio": 1.1}, "lambda too high"),
    ],
)
def test_verdicts(changes: dict[str, float], verdict: str) -> None:
    assert panel(**changes).verdict().startswith(verdict)


def test_a_collapsed_network_is_named() -> None:
    """All embeddings on one line, as when the redundancy term is missing and one direction takes over."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(WIDTH, generator=generator)
    z = torch.randn(512, 1, generator=generator) * direction + 1e-3 * torch.randn(512, WIDTH, generator=generator)
    parts = barlow_twins_loss(z[:BATCH], z[:BATCH], 5e-3)
    health = measure_health(z, z, [part.item() for part in parts], BATCH, views=2)
    assert health.verdict().startswith("collapsing: rank 1.")
    assert health.off_ratio > 20
