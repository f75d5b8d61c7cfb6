"""Where in an image is the evidence for a class? Grad-CAM, integrated gradients and occlusion, by captum."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from torch import Tensor, nn

from utils.config import UserError, check_choice

FEWEST_CELLS = 4  # a side of a Grad-CAM map: fewer tell a lung from nothing else
IMAGES_AT_ONCE = 64
PATH_STEPS = 32  # of integrated gradients
PATCHES = 8  # a side of the image, of occlusion


class Settings(NamedTuple):
    """What single methods take.

    layer          of Grad-CAM, by its dotted name; "" is that of `default_layer`
    patch, stride  of occlusion, in pixels; 0 is an eighth of the image, and half a patch
    """

    layer: str = ""
    patch: int = 0
    stride: int = 0


DEFAULTS = Settings()


def saliency_maps(
    network: nn.Module, images: Tensor, classes: Tensor, method: str = "grad_cam", settings: Settings = DEFAULTS
) -> Tensor:
    """Maps [N, h, w] >= 0, float32, of the evidence for class `classes` [N] in images [N, C, R, R].

    network  images -> logits; works on a copy of it in float32 and eval mode, so that frozen layers, bfloat16 weights
             and dropout do not matter, and its weights, gradients, mode and hooks stay as they are
    method   a key of METHODS. "grad_cam" gives the resolution of its layer, the others R x R
    Evidence against the class is left out. Raises UserError for a method or layer that does not exist.
    """
    check_choice("method", method, list(METHODS))
    net = plain_copy(network)
    maps = [
        METHODS[method](net, x.detach().float().requires_grad_(), c, settings)
        for x, c in zip(images.split(IMAGES_AT_ONCE), classes.split(IMAGES_AT_ONCE), strict=True)
    ]
    return torch.cat(maps).detach()


def plain_copy(network: nn.Module) -> nn.Module:
    """A float32 copy in eval mode whose weights take no gradients."""
    return copy.deepcopy(network).float().eval().requires_grad_(False)


def grad_cam(net: nn.Module, images: Tensor, classes: Tensor, settings: Settings = DEFAULTS) -> Tensor:
    """[N, h, w]: Selvaraju et al. 2017 (arXiv 1610.02391, section 3, equations 1 and 2)."""
    layer = settings.layer or default_layer(net, images)
    module = _layer(net, layer)
    maps = LayerGradCam(net, module).attribute(images, classes, relu_attributions=True)
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise UserError(f"layer {layer!r} gives no map [N, C, h, w] to look at; name a convolutional one.")
    return maps[:, 0]


def integrated_gradients(net: nn.Module, images: Tensor, classes: Tensor, settings: Settings = DEFAULTS) -> Tensor:
    """[N, R, R]: Sundararajan et al. 2017 (arXiv 1703.01365, section 3), from an even image of the same mean."""
    maps = IntegratedGradients(net).attribute(
        images, _mean_image(images), classes, n_steps=PATH_STEPS, internal_batch_size=IMAGES_AT_ONCE
    )
    return maps.sum(1).clamp(min=0).float()


def occlusion(net: nn.Module, images: Tensor, classes: Tensor, settings: Settings = DEFAULTS) -> Tensor:
    """[N, R, R]: how much of the logit is lost where a patch of the image's mean covers it (arXiv 1311.2901)."""
    channels, size = images.shape[1], images.shape[-1]
    patch = settings.patch or max(1, size // PATCHES)
    stride = settings.stride or max(1, patch // 2)
    if stride > patch or patch > size:
        raise UserError(f"patch {patch} and stride {stride} leave gaps in an image of {size} px; lower them.")
    with torch.no_grad():
        maps = Occlusion(net).attribute(
            images,
            sliding_window_shapes=(channels, patch, patch),
            strides=(channels, stride, stride),
            baselines=_mean_image(images),
            target=classes,
            perturbations_per_eval=max(1, IMAGES_AT_ONCE // len(images)),
        )
    return maps.sum(1).clamp(min=0).float()


METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor, Settings], Tensor]] = {
    "grad_cam": grad_cam,
    "integrated_gradients": integrated_gradients,
    "occlusion": occlusion,
}


def blocks(net: nn.Module) -> list[str]:
    """Dotted names of a network's blocks from the input to the head: its children, and those of `features`."""
    names = []
    for name, child in net.named_children():
        inside = [f"{name}.{part}" for part, _ in child.named_children()] if name == "features" else [name]
        names += inside
    return names


def default_layer(net: nn.Module, images: Tensor) -> str:
    """The last block of a convolutional network whose output on such images has FEWEST_CELLS or more a side.

    At 224 pixels that is the very last one. Small images leave it a single cell, which says nothing.
    """
    sizes = _output_sizes(net, images)
    fine = [name for name in blocks(net) if min(sizes.get(name, (0, 0))) >= FEWEST_CELLS]
    if not fine:
        raise UserError(
            f"no block of the network has a map of {FEWEST_CELLS} x {FEWEST_CELLS} cells or more on images of "
            f"{images.shape[-1]} pixels; name a layer, or train on larger images."
        )
    return fine[-1]


def _output_sizes(net: nn.Module, images: Tensor) -> dict[str, tuple[int, int]]:
    """Height and width of each block's output, where it is a map."""
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            if output.ndim == 4:
                sizes[name] = (output.shape[2], output.shape[3])

        return hook

    handles = [net.get_submodule(name).register_forward_hook(note(name)) for name in blocks(net)]
    try:
        with torch.no_grad():
            net(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _layer(net: nn.Module, name: str) -> nn.Module:
    check_choice("layer", name, [known for known, _ in net.named_modules() if known])
    return net.get_submodule(name)


def _mean_image(images: Tensor) -> Tensor:
    """Each image's mean in all of its places: what neither adds an edge nor changes the exposure."""
    return images.detach().mean((1, 2, 3), keepdim=True).expand_as(images)
