"""Backbones: what is exported loads into plain torchvision, and nothing else is taken for it."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from self_sup_classes.backbones import BACKBONES, Backbone, export_state_dict, load_backbone, save_backbone
from utils.config import UserError


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b0"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_features_have_the_width_that_the_backbone_says(name: str, in_channels: int) -> None:
    backbone = Backbone(name, in_channels).eval()
    assert backbone(torch.randn(2, in_channels, 64, 64)).shape == (2, backbone.num_features)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_exports_torchvisions_keys(name: str) -> None:
    assert list(export_state_dict(Backbone(name, 3))) == list(models.get_model(name).state_dict())


def test_export_loads_strictly_into_plain_torchvision_and_gives_the_same_features(tmp_path: Path) -> None:
    backbone = Backbone("resnet18", 1)
    backbone(torch.randn(8, 1, 64, 64))  # so that the BatchNorm statistics are not the initial ones
    save_backbone(tmp_path / "weights.pt", backbone)
    plain = models.resnet18()
    plain.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    assert not plain.fc.weight.any()
    plain.fc = nn.Identity()  # type: ignore[assignment]
    x = torch.randn(4, 1, 64, 64)
    torch.testing.assert_close(plain.eval()(x), backbone.eval()(x))


def test_load_gives_back_what_was_saved(tmp_path: Path) -> None:
    backbone = Backbone("efficientnet_b0", 1)
    save_backbone(tmp_path / "weights.pt", backbone)
    again = load_backbone(tmp_path / "weights.pt", "efficientnet_b0", 1)
    for mine, other in zip(backbone.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_weights_of_another_network_are_refused_with_key_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    save_backbone(path, Backbone("resnet18", 1))
    with pytest.raises(UserError, match=r"conv1.weight: found \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)"):
        load_backbone(path, "resnet18", 3)
    with pytest.raises(UserError, match="resnet50"):
        load_backbone(path, "resnet50", 1)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load_backbone(tmp_path / "absent.pt", "resnet18", 1)
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(UserError, match="not a state_dict"):
        load_backbone(tmp_path / "text.pt", "resnet18", 1)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no state_dict"):
        load_backbone(tmp_path / "list.pt", "resnet18", 1)


def test_unknown_names_and_channels_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        Backbone("resnet-18", 1)
    with pytest.raises(UserError, match="in_channels is 2"):
        Backbone("resnet18", 2)
