"""Frozen is frozen: weights and BatchNorm statistics, and the proof notices when they are not."""

import pytest
import torch
from torch import nn

from utils.optimisation import assert_unchanged, frozen_tensors, train_mode


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
