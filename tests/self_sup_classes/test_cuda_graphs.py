"""A network's passes replayed as CUDA graphs compute what the network computes. Needs a GPU."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from self_sup_classes.barlow import BarlowTwins
from self_sup_classes.cuda_graphs import replayed
from self_sup_classes.initialisation import random_backbone
from utils.hardware import choose_algorithms, placed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU, STEPS = torch.device("cuda"), 4


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Multiply in full float32, the same way each time."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    choose_algorithms(deterministic=True)
    yield
    torch.use_deterministic_algorithms(False)


def views(number: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(64, 1, 64, 64, generator=generator).to(GPU) for _ in range(count)]


def network(backbone: str) -> BarlowTwins:
    torch.manual_seed(0)
    return placed(BarlowTwins(random_backbone(backbone, 1, 0), [64, 32], 5e-3), GPU).train()


def one_step(
    twins: BarlowTwins, loss_of: Callable[..., dict[str, Tensor]], number: int, count: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The loss of a step with its terms, and its gradient as one vector."""
    torch.manual_seed(number)  # dropout, stochastic depth
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False):
        terms = loss_of(*views(number, count))
    twins.zero_grad()
    terms["loss"].backward()
    return torch.stack([*terms.values()]), torch.cat(
        [p.grad.flatten() for p in twins.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize(
    ("backbone", "count", "dtype", "tolerance"),
    [
        ("resnet18", 2, torch.float32, 1e-5),
        ("resnet18", 4, torch.float32, 1e-5),
        ("resnet18", 4, torch.bfloat16, 1e-2),
        ("efficientnet_b0", 2, torch.float32, 1e-5),
    ],
)
def test_steps_are_those_of_the_network(backbone: str, count: int, dtype: torch.dtype, tolerance: float) -> None:
    one = network(backbone)
    other, before = copy.deepcopy(one), copy.deepcopy(one.state_dict())
    loss_of = replayed(other, views(0, count), dtype)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), f"capturing has changed {name}"
    optimizer, expected, found = torch.optim.SGD(one.parameters(), lr=1e-3), [], []
    for number in range(STEPS):
        other.load_state_dict(one.state_dict())  # into the same memory: rounding does not add up
        loss, gradient = one_step(one, one, number, count, dtype)
        expected.append(loss)
        loss, by_graphs = one_step(other, loss_of, number, count, dtype)
        found.append(loss)
        assert (gradient - by_graphs).norm() <= (0 if dtype == torch.float32 else 0.03) * gradient.norm()
        for (name, x), y in zip(one.named_buffers(), other.buffers(), strict=True):
            assert torch.allclose(x.float(), y.float(), rtol=10 * tolerance, atol=tolerance), name
        optimizer.step()
    assert len(set(torch.stack(expected)[:, 0].tolist())) == STEPS
    assert torch.allclose(torch.stack(expected), torch.stack(found), rtol=tolerance)  # later steps leave it alone


def test_the_network_itself_is_left_as_it_was() -> None:
    twins = network("resnet18")
    loss_of = replayed(twins, views(0, 2), torch.float32)
    assert "forward" not in vars(twins)
    assert all(p.grad is None for p in twins.parameters())
    twins.eval()
    y = views(1, 2)
    assert loss_of(*y)["loss"] == twins(*y)["loss"]  # with the running statistics
    assert [*loss_of(*y)] == ["loss", "on_diagonal", "off_diagonal"]
