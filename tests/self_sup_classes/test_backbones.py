"""Backbones: saved weights load into plain torchvision, and other files are refused."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from self_sup_classes.backbones import BACKBONES, Backbone, read_state_dict, save_backbone
from self_sup_classes.provenance import NOTHING_SEEN
from utils.config import UserError


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b0"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_features_have_the_width_that_the_backbone_says(name: str, in_channels: int) -> None:
    backbone = Backbone(name, in_channels).eval()
    assert backbone(torch.randn(2, in_channels, 64, 64)).shape == (2, backbone.num_features)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_saved_under_torchvisions_keys(tmp_path: Path, name: str) -> None:
    save_backbone(tmp_path / "weights.pt", Backbone(name, 3), NOTHING_SEEN)
    saved, expected = read_state_dict(tmp_path / "weights.pt"), models.get_model(name).state_dict()
    assert [(key, value.shape) for key, value in saved.items()] == [(k, v.shape) for k, v in expected.items()]


def test_export_loads_strictly_into_plain_torchvision_and_gives_the_same_features(tmp_path: Path) -> None:
    backbone = Backbone("resnet18", 1)
    backbone(torch.randn(8, 1, 64, 64))  # so that the BatchNorm statistics are not the initial ones
    save_backbone(tmp_path / "weights.pt", backbone, NOTHING_SEEN)
    plain = models.resnet18()
    plain.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    assert not plain.fc.weight.any()
    plain.fc = nn.Identity()  # type: ignore[assignment]
    x = torch.randn(4, 1, 64, 64)
    torch.testing.assert_close(plain.eval()(x), backbone.eval()(x))


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_state_dict(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(UserError, match="not a state_dict that torch can read"):
        read_state_dict(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="does not hold a state_dict"):
        read_state_dict(tmp_path / "list.pt")


def test_unknown_names_and_channels_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        Backbone("resnet-18", 1)
    with pytest.raises(UserError, match="in_channels is 2"):
        Backbone("resnet18", 2)


def test_checkpoints_of_the_usual_kinds_are_read(tmp_path: Path) -> None:
    state = Backbone("resnet18", 1).net.state_dict()
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "a.pt")
    read = read_state_dict(tmp_path / "a.pt")
    assert list(read) == list(state) and all(torch.equal(read[name], value) for name, value in state.items())


def test_weights_that_are_not_numbers_or_have_no_names_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"not finite, first in conv1\.weight"):
        read_state_dict(tmp_path / "nan.pt")
    torch.save({0: torch.zeros(2)}, tmp_path / "numbers.pt")
    with pytest.raises(UserError, match="does not hold a state_dict"):
        read_state_dict(tmp_path / "numbers.pt")
