"""Backbones: saved weights load into plain torchvision, and other files are refused."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from self_sup_classes.backbones import BACKBONES, Backbone, Conv2d, save_backbone
from self_sup_classes.provenance import NOTHING_SEEN
from self_sup_classes.weights import read_state_dict
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


def test_unknown_names_and_channels_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        Backbone("resnet-18", 1)
    with pytest.raises(UserError, match="in_channels is 2"):
        Backbone("resnet18", 2)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (7, 3)])
def test_gradients_in_bfloat16_at_one_pixel_never_read_uninitialised_memory(
    kernel: int, padding: int, channels_last: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    conv = Conv2d(64, 128, kernel, 2, padding).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    x = torch.randn(8, 64, 1, 1).to(memory_format=layout)
    for _ in range(20):
        dirty = [torch.full((n,), torch.nan) for n in (64, 1024, 16384, 262144) for _ in range(12)]
        del dirty  # what the next allocations may get
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        assert torch.autograd.grad(y.float().square().sum(), conv.weight)[0].isfinite().all()


def test_every_convolution_of_a_backbone_has_that_guard() -> None:
    convolutions = [one for one in Backbone("efficientnet_b0", 1).modules() if isinstance(one, nn.Conv2d)]
    assert {type(one) for one in convolutions} == {Conv2d}
