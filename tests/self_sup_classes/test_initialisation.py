"""Where a network starts from: files of this repo and of ImageNet; all others refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from self_sup_classes.backbones import Backbone, save_backbone
from self_sup_classes.initialisation import random_backbone, start_from
from self_sup_classes.provenance import NOTHING_SEEN, Provenance
from utils.config import UserError


def assert_equal_weights(first: Backbone, second: Backbone) -> None:
    for mine, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_random_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(5)
    first = start_from("random", "resnet18", 1, seed=3).backbone
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.rand(()) == after  # the global generator was left alone
    assert_equal_weights(first, random_backbone("resnet18", 1, seed=3))
    other = random_backbone("resnet18", 1, seed=4)
    assert not torch.equal(first.get_parameter("net.conv1.weight"), other.get_parameter("net.conv1.weight"))


def test_a_saved_encoder_comes_back_with_what_it_has_seen(tmp_path: Path) -> None:
    backbone = Backbone("efficientnet_b0", 1)
    seen = Provenance("abc", np.array([[7] * 49, [3] * 49, [5] * 49], dtype=np.uint8))
    save_backbone(tmp_path / "weights.pt", backbone, seen)
    start = start_from(str(tmp_path / "weights.pt"), "efficientnet_b0", 1, seed=0)
    assert_equal_weights(start.backbone, backbone)
    assert start.provenance is not None
    assert start.provenance.split_hash == "abc"
    assert start.provenance.seen[:, 0].tolist() == [3, 5, 7]
    assert start.provenance.list_hash == seen.list_hash


def test_a_chest_x_ray_encoder_does_not_pass_for_imagenet(tmp_path: Path) -> None:
    save_backbone(tmp_path / "gray.pt", Backbone("resnet18", 1), NOTHING_SEEN)
    save_backbone(tmp_path / "colour.pt", Backbone("resnet18", 3), NOTHING_SEEN)
    for name, channels in (("gray.pt", 1), ("colour.pt", 3)):
        with pytest.raises(UserError, match="an encoder of X-rays, not ImageNet's weights"):
            start_from(f"imagenet:{tmp_path / name}", "resnet18", channels, seed=0)


def test_weights_of_another_network_are_refused_with_key_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    save_backbone(path, Backbone("resnet18", 1), NOTHING_SEEN)
    with pytest.raises(UserError, match=r"conv1.weight: found \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)"):
        start_from(str(path), "resnet18", 3, seed=0)
    with pytest.raises(UserError, match="resnet50"):
        start_from(str(path), "resnet50", 1, seed=0)
