"""Orders are functions of (seed, epoch); frozen weights and BatchNorm statistics stay as they are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from utils.freezing import assert_unchanged, frozen_tensors, train_mode
from utils.optimisation import LARS
from utils.seeds import endless_order, epoch_order, fixed_order, mixed_seed


def test_purposes_and_numbers_all_matter_to_a_seed() -> None:
    keys = [(), (0,), (0, 0), (0, 0, 0), (1,), (0, 1), (1, 0), (10,), (2**32,), (2**32 + 1,), (1, 1)]
    seeds = {mixed_seed(purpose, *numbers) for purpose in ("views", "dropout", "views, 0") for numbers in keys}
    assert len(seeds) == 3 * len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    assert mixed_seed("views", 3) == 5311697709753562135  # on every machine
    assert fixed_order("views", np.arange(50)).tolist() != fixed_order("dropout", np.arange(50)).tolist()


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 3))
def test_an_endless_order_is_whole_passes_wherever_it_is_cut(images: int, cut: int, seed: int) -> None:
    indices = np.arange(10, 10 + images)
    passes = np.concatenate([epoch_order(indices, seed, epoch) for epoch in range(120)])
    pieces = [endless_order(indices, seed, first, cut) for first in range(0, 3 * cut, cut)]
    assert np.concatenate(pieces).tolist() == passes[: 3 * cut].tolist()


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), nn.Flatten(), nn.LazyLinear(2))
    net(torch.randn(3, 1, 6, 6))
    net[0].requires_grad_(False)
    return net


def test_training_leaves_frozen_bits_as_they_are() -> None:
    net = network()
    before = frozen_tensors(net)
    assert set(before) == {
        *(f"0.0.{name}" for name in ("weight", "bias")),
        *(f"0.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], weight_decay=0.1)
    for _ in range(3):
        train_mode(net)
        assert not net.get_submodule("0.1").training and net[2].training
        net(torch.randn(5, 1, 6, 6)).square().sum().backward()
        optimizer.step()
    assert_unchanged(net, before)


def test_statistics_that_move_and_weights_that_are_set_are_noticed() -> None:
    net = network()
    before = frozen_tensors(net)
    net.train()  # what train_mode is there to avoid
    net(torch.randn(5, 1, 6, 6))
    with pytest.raises(AssertionError, match=r"0\.1\.running_mean"):
        assert_unchanged(net, before)
    net = network()
    before = frozen_tensors(net)
    with torch.no_grad():
        net.get_parameter("0.0.weight").add_(1)
    with pytest.raises(AssertionError, match=r"0\.0\.weight"):
        assert_unchanged(net, before)


def test_lars_takes_the_steps_of_its_formula_in_float64() -> None:
    dice, decay, lr = np.random.default_rng(0), 0.1, 0.7
    weight, bias, still = dice.normal(size=(4, 3)), dice.normal(size=4), np.zeros((2, 2))
    parameters = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in (weight, bias, still)]
    groups = [{"params": parameters[::2], "lr": lr, "weight_decay": decay}, {"params": [parameters[1]], "lr": lr}]
    optimizer, momenta = LARS(groups), [0.0, 0.0, 0.0]
    for _ in range(3):
        gradients = [dice.normal(size=value.shape) for value in (weight, bias, still)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        norm = np.linalg.norm
        rate = 1e-3 * norm(weight) / (norm(gradients[0]) + decay * norm(weight))
        first = not still.any()  # weights of zero have no norm to move in proportion to
        small = 1.0 if first else 1e-3 * norm(still) / (norm(gradients[2]) + decay * norm(still))
        steps = [rate * (gradients[0] + decay * weight), gradients[1], small * (gradients[2] + decay * still)]
        momenta = [0.9 * old + step for old, step in zip(momenta, steps, strict=True)]
        weight, bias, still = (
            value - lr * momentum for value, momentum in zip((weight, bias, still), momenta, strict=True)
        )
    for parameter, expected in zip(parameters, (weight, bias, still), strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)
