"""Backbones of any library: saved weights load there, stages and maps are found, and other networks are refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from downstream_task.classifier import FROZEN_STAGES, Classifier
from interpretability.saliency import saliency_maps
from self_sup_classes.backbones import (
    TIMM,
    Backbone,
    Float32Where,
    in_float32_where_better,
    library_network,
    save_backbone,
)
from self_sup_classes.barlow import BarlowTwins
from self_sup_classes.initialisation import random_backbone, start_from
from self_sup_classes.provenance import NOTHING_SEEN
from self_sup_classes.structure import map_layers
from utils.config import UserError

# What follows the last map, and the layer whose maps are explained on images of 128 px, read off each library's code.
NETWORKS = {
    "resnet18": ("fc", "layer4"),
    "densenet121": ("classifier", "features.norm5"),
    "convnext_tiny": ("classifier", "features.7"),
    "mobilenet_v3_small": ("classifier", "features.12"),
    "regnet_y_400mf": ("fc", "trunk_output.block4"),
    "efficientnet_b0": ("classifier", "features.8"),
    "shufflenet_v2_x0_5": ("fc", "conv5"),
    "mnasnet0_5": ("classifier", "layers.16"),
    "timm/tf_efficientnet_lite0": ("classifier", "bn2"),
    "timm/convnext_atto": ("head", "norm_pre"),
    "timm/mobilenetv3_small_050": ("conv_head classifier", "blocks.5"),
    "timm/resnet10t": ("fc", "layer4"),
    "timm/regnety_002": ("head", "final_conv"),
    "timm/repvgg_a0": ("head", "final_conv"),
}


def plain(name: str) -> nn.Module:
    """The library's own network for gray images; its first convolution is exchanged if there is no argument for it."""
    if name.startswith(TIMM):
        return timm.create_model(name.removeprefix(TIMM), in_chans=1)
    return library_network(name, 1)


def backbone_of(name: str, in_channels: int = 1) -> Backbone:
    return random_backbone(name, in_channels, seed=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_backbone_of_any_library_goes_all_the_way(tmp_path: Path, name: str) -> None:
    backbone = backbone_of(name)
    twins = BarlowTwins(backbone, [16], lambd=5e-3).train()
    optimizer = torch.optim.SGD(twins.parameters(), lr=1e-3)
    views = torch.randn(2, 4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    twins(*views)["loss"].backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in backbone.parameters())
    optimizer.step()

    save_backbone(tmp_path / "weights.pt", backbone, NOTHING_SEEN)
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    library = plain(name)
    library.load_state_dict(state, strict=True)
    assert [*state] == [*library.state_dict()]
    again = start_from(str(tmp_path / "weights.pt"), name, 1, seed=1)
    assert not again.note  # the head is all zeros
    library.get_submodule(backbone.structure.head).register_forward_pre_hook(lambda head, given: seen.append(given[0]))
    seen: list[Tensor] = []
    library.eval()(views[0])
    torch.testing.assert_close(again.backbone.eval()(views[0]), seen[0])
    assert seen[0].shape == (4, backbone.num_features)

    after_maps, layer = NETWORKS[name]
    assert_freezes_by_stage(again.backbone, set(after_maps.split()))
    assert_maps(Classifier(again.backbone, 3), layer)


def assert_freezes_by_stage(backbone: Backbone, after_maps: set[str]) -> None:
    """More and more is trained; what follows the maps always is; a step leaves what is frozen as it was."""
    x, trained = torch.randn(2, 1, 64, 64), []
    for trainable in FROZEN_STAGES:
        classifier = Classifier(backbone, 3, trainable)
        nn.init.normal_(classifier.head.weight)
        names = {name for name, one in classifier.net.named_parameters() if one.requires_grad}
        tops = {name.partition(".")[0] for name in names}
        assert after_maps <= tops and (trainable != "fc" or tops == after_maps)
        assert not trained or trained[-1] <= names
        trained.append(names)
        assert backbone.structure.in_a_row
        classifier.eval()
        torch.testing.assert_close(classifier.suffix(classifier.prefix(x)), classifier(x))
        torch.testing.assert_close(classifier.head(classifier.features(x)), classifier(x))
        assert not classifier.prefix(x).requires_grad
        for parameter in classifier.net.parameters():
            parameter.requires_grad_(True)
    assert len({*map(len, trained)}) >= len(FROZEN_STAGES) - 1  # ShuffleNet has three resolutions after its stem
    assert trained[-1] == {name for name, _ in backbone.net.named_parameters()}


def assert_maps(classifier: Classifier, layer: str) -> None:
    """Grad-CAM's layer is the last with 4 x 4 cells: not the stem, not what is pooled."""
    nn.init.normal_(classifier.head.weight)
    images = torch.rand(2, 1, 128, 128)
    assert [*map_layers(classifier.net.eval(), images)][-1] == layer
    maps = saliency_maps(classifier.net, images, torch.tensor([0, 2]))
    assert maps.shape == (2, 4, 4) and maps.isfinite().all()


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "efficientnet_b0"])
def test_a_backbone_of_colours_is_saved_as_the_library_has_it(tmp_path: Path, name: str) -> None:
    save_backbone(tmp_path / "weights.pt", Backbone(name, 3), NOTHING_SEEN)
    models.get_model(name).load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)


@pytest.mark.parametrize(("in_channels", "total"), [(1, 0.1231), (3, -4.6743)])
def test_random_weights_of_a_resnet_are_those_of_earlier_versions(in_channels: int, total: float) -> None:
    first = backbone_of("resnet18", in_channels).net.get_parameter("conv1.weight")
    assert first.sum().item() == pytest.approx(total, abs=1e-4)


def test_padding_by_the_size_of_the_input_is_kept() -> None:
    colour, gray = (library_network("timm/tf_efficientnet_lite0", channels).eval() for channels in (3, 1))
    summed = colour.get_parameter("conv_stem.weight").sum(1, keepdim=True)
    gray.load_state_dict({**colour.state_dict(), "conv_stem.weight": summed})
    for size in (63, 64):  # padded on both sides, on one
        x = torch.randn(2, 1, size, size)
        torch.testing.assert_close(gray(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


REFUSED: dict[str, Any] = {
    "vit_b_16": "does not take images of 64 px",
    "swin_t": "does not keep maps of channels, rows and columns",
    "squeezenet1_0": "does not end in a linear layer",
    "inception_v3": "has heads that are used in training alone",
}


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]):
        Backbone(name, 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (7, 3)])
def test_gradients_in_bfloat16_at_one_pixel_never_read_uninitialised_memory(
    kernel: int, padding: int, channels_last: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    conv = in_float32_where_better(nn.Conv2d)(64, 128, kernel, 2, padding).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    x = torch.randn(8, 64, 1, 1).to(memory_format=layout)
    for _ in range(20):
        dirty = [torch.full((n,), torch.nan) for n in (64, 1024, 16384, 262144) for _ in range(12)]
        del dirty  # what the next allocations may get
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        assert torch.autograd.grad(y.float().square().sum(), conv.weight)[0].isfinite().all()


@pytest.mark.parametrize("name", ["efficientnet_b0", "timm/tf_efficientnet_lite0"])
def test_every_convolution_of_a_backbone_has_that_guard(name: str) -> None:
    convolutions = [one for one in Backbone(name, 1).modules() if isinstance(one, nn.Conv2d)]
    assert all(isinstance(one, Float32Where) for one in convolutions)
    with torch.autocast("cpu", torch.bfloat16):
        for one in convolutions:
            found = one(torch.zeros(2, one.in_channels, 8, 8)).dtype
            assert found == (torch.float32 if one.groups > 1 else torch.bfloat16)
