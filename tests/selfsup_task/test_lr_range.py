"""The learning-rate range test: what it leaves untouched, and what it finds where the answer is known."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from selfsup_task.scan_optimal_lr import lr_range_test, suggest
from utils.config import UserError
from utils.optimisation import FitConfig

CONFIG = FitConfig(
    random_seed=0,
    num_epochs=1,
    batch_size=100,
    optimizer="sgd",
    lr=1.0,
    optimizer_weight_decay=0.0,
    scheduler="constant",
    warmup_epochs=0,
    gradient_clip=0.0,
    precision="float32",
    checkpoint_minutes=0,
)


def run(module: nn.Module, x: Tensor, y: Tensor, steps: int = 60, lr_to: float = 1e3) -> pd.DataFrame:
    def step(batch: Tensor, epoch: int, number: int) -> dict[str, Tensor]:
        return {"loss": (module(x[batch]) - y[batch]).square().mean()}

    return lr_range_test(module, step, np.arange(len(x)), CONFIG, np.geomspace(1e-5, lr_to, steps))


def regression() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 4, generator=generator)
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1)), x, x.sum(1, keepdim=True)


def test_the_callers_model_is_untouched() -> None:
    module, x, y = regression()
    module.eval()
    before = copy.deepcopy(module.state_dict())
    table = run(module, x, y)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert len(table) > 10


def test_a_loss_that_is_never_finite_is_one_sentence() -> None:
    module, x, y = regression()
    with pytest.raises(UserError, match="not finite at the first learning rate"):
        run(module, x * math.nan, y)


def test_learning_rates_grow_by_the_same_factor_until_the_loss_diverges() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 1)
    table = run(nn.Linear(1, 1), x, 3 * x + torch.randn(100, 1))
    factors = table["lr"].to_numpy()[1:] / table["lr"].to_numpy()[:-1]
    assert factors == pytest.approx(np.full(len(factors), factors[0]))
    found = suggest(table)
    # far below, 60 steps cannot reach the bottom; with momentum 0.9, a quadratic of curvature 2 is unstable above 1.9
    steepest, lowest, diverged = (found[name] or math.inf for name in ("steepest", "lowest", "diverged"))
    assert 1e-3 < steepest < lowest < diverged < 1.9
    assert len(table) < 60


def test_a_loss_that_only_falls_never_diverges() -> None:
    table = pd.DataFrame({"lr": np.geomspace(1e-4, 1, 30), "loss": 1.0, "smoothed": np.linspace(2, 1, 30)})
    assert suggest(table)["diverged"] is None
    assert suggest(table)["lowest"] == pytest.approx(1.0)


def test_the_steepest_fall_is_not_the_noise_of_the_first_steps() -> None:
    smoothed = np.concatenate([[3.0, 2.9], np.full(18, 2.9), np.linspace(2.9, 1, 10), np.linspace(1, 1.5, 10)])
    table = pd.DataFrame({"lr": np.geomspace(1e-4, 1, 40), "loss": smoothed, "smoothed": smoothed})
    lrs = table["lr"].tolist()
    assert lrs[19] < (suggest(table)["steepest"] or 0) < lrs[30]
