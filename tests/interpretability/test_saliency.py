"""Maps against captum, the formula, and a network that is known to look at one region alone."""

import copy
import weakref
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from torch import Tensor, nn
from torch.nn import functional as F

from downstream_task.classifier import Classifier
from interpretability import saliency
from interpretability.faithfulness import mass_inside
from interpretability.saliency import METHODS, PATH_STEPS, Settings, default_layer, grad_cam, saliency_maps
from self_sup_classes.backbones import Backbone
from utils.config import UserError

SIZE = 32
IMAGES = torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 2, 1])


class Region(nn.Module):
    """The image inside one square, nothing outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        self.inside[3:19, 8:30] = True

    def forward(self, x: Tensor) -> Tensor:
        return x * self.inside


class LooksAtRegion(nn.Module):
    """Logit 0 is the mean of one region, logit 1 nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.region = Region()

    def forward(self, x: Tensor) -> Tensor:
        score = self.region(x).sum((1, 2, 3)) / self.region.inside.sum()
        return torch.stack([score, torch.zeros_like(score)], 1)


def classifier(trainable: str = "all", name: str = "resnet18") -> Classifier:
    torch.manual_seed(0)
    made = Classifier(Backbone(name, 1), 3, trainable)
    nn.init.normal_(made.head.weight)  # a new head is all zeros
    return made.eval()


def settings_of(method: str) -> Settings:
    return Settings(method, layer="layer3")


def test_maps_of_one_batch_do_not_keep_its_activations_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """630 X-rays of 128 px took 17 GB."""
    held: list[weakref.ref[Tensor]] = []

    def watched(*args: Any) -> Tensor:
        assert not any(one() is not None for one in held)
        maps = grad_cam(*args)
        assert maps.grad_fn is not None  # and behind it all activations
        held.append(weakref.ref(maps))
        return maps

    monkeypatch.setattr(saliency, "IMAGES_AT_ONCE", 1)
    monkeypatch.setitem(METHODS, "grad_cam", watched)
    assert len(saliency_maps(classifier().net, IMAGES, CLASSES, settings_of("grad_cam"))) == len(held) == 3


@pytest.mark.parametrize("method", METHODS)
def test_the_mass_lies_where_the_network_looks(method: str) -> None:
    net = LooksAtRegion()
    settings = Settings(method, layer="region", patch=1, stride=1)
    maps = saliency_maps(net, IMAGES, torch.zeros(3, dtype=torch.long), settings)
    assert (mass_inside(maps, net.region.inside.expand(3, -1, -1)) > 0.9).all()


def test_maps_are_captums() -> None:
    net = classifier().net
    cam = LayerGradCam(net, net.get_submodule("layer3")).attribute(IMAGES, CLASSES, relu_attributions=True)
    mean = IMAGES.mean((1, 2, 3), keepdim=True).expand_as(IMAGES)
    path = IntegratedGradients(net).attribute(IMAGES, mean, CLASSES, n_steps=PATH_STEPS)
    gone = Occlusion(net).attribute(IMAGES, (1, 4, 4), (1, 2, 2), mean, CLASSES)
    expected = {"grad_cam": cam, "integrated_gradients": path.clamp(min=0), "occlusion": gone.clamp(min=0)}
    for method, theirs in expected.items():
        ours = saliency_maps(net, IMAGES, CLASSES, settings_of(method))
        assert isinstance(theirs, Tensor)
        torch.testing.assert_close(ours, theirs[:, 0].detach().float(), atol=1e-5, rtol=1e-4)


def test_grad_cam_is_the_formula_of_the_paper() -> None:
    net = classifier().net
    kept: list[Tensor] = []
    handle = net.get_submodule("layer2").register_forward_hook(lambda *passed: kept.append(passed[2]))  # type: ignore[func-returns-value]  # a hook may return None
    score = net(IMAGES).gather(1, CLASSES[:, None]).sum()
    handle.remove()
    (slopes,) = torch.autograd.grad(score, kept[0])
    expected = F.relu((slopes.mean((2, 3), keepdim=True) * kept[0]).sum(1))
    ours = saliency_maps(net, IMAGES, CLASSES, Settings(layer="layer2"))
    torch.testing.assert_close(ours, expected.detach(), atol=1e-5, rtol=1e-4)


def test_weights_in_bfloat16_are_looked_at_in_float32() -> None:
    rounded = classifier().bfloat16()
    maps = saliency_maps(rounded.net, IMAGES, CLASSES)
    torch.testing.assert_close(maps, saliency_maps(copy.deepcopy(rounded).float().net, IMAGES, CLASSES))
    assert maps.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_network_in_train_mode_gives_the_same_maps_and_is_left_as_it_was(method: str) -> None:
    expected = saliency_maps(classifier().net, IMAGES, CLASSES, settings_of(method))
    net = classifier("layer4+fc").net
    net.train()
    net.get_submodule("layer1").eval()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    needs = [parameter.requires_grad for parameter in net.parameters()]
    maps = saliency_maps(net, IMAGES, CLASSES, settings_of(method))
    assert expected.amax() > 0
    torch.testing.assert_close(maps, expected, atol=0, rtol=0)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == needs
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [("resnet18", 224, "layer4"), ("resnet18", 32, "layer2"), ("efficientnet_b0", 224, "features.8")],
)
def test_the_default_layer_is_the_last_with_enough_cells(name: str, size: int, layer: str) -> None:
    assert default_layer(classifier(name=name).net, torch.rand(1, 1, size, size)) == layer


def test_what_does_not_exist_is_named() -> None:
    net = classifier().net
    cases = [
        (IMAGES, Settings(layer="layer5"), "layer4"),
        (IMAGES, Settings(layer="fc"), "no output"),
        (IMAGES, Settings("occlusion", patch=4, stride=5), "gaps"),
        (IMAGES[..., :4, :4], Settings(), "larger images"),
    ]
    for images, settings, said in cases:
        with pytest.raises(UserError, match=said):
            saliency_maps(net, images, CLASSES, settings)
