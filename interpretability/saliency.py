"""Where in an image is the evidence for a class? Grad-CAM, integrated gradients and occlusion, by captum."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from torch import Tensor, nn

from self_sup_classes.structure import map_layers
from utils.config import UserError, check_choice

MIN_CELLS = 4  # per side of a Grad-CAM map; a coarser map cannot separate the lungs from the rest
IMAGES_AT_ONCE = 64
PATH_STEPS = 32  # of integrated gradients
PATCHES = 8  # per side of the image, for occlusion


class Settings(NamedTuple):
    """A saliency method and its parameters.

    method         key of METHODS
    layer          of Grad-CAM: dotted name; "" is `default_layer`
    patch, stride  of occlusion: pixels; 0 is an eighth of the image, and half a patch
    """

    method: str = "grad_cam"
    layer: str = ""
    patch: int = 0
    stride: int = 0


DEFAULTS = Settings()


def saliency_maps(network: nn.Module, images: Tensor, classes: Tensor, settings: Settings = DEFAULTS) -> Tensor:
    """Return maps [N, h, w] >= 0, float32, of the evidence for class `classes` [N] in images [N, C, R, R].

    Grad-CAM maps have the resolution of their layer, the others R x R. Evidence against the class is left out.
    `network` (images -> logits) is copied to float32 and eval mode: frozen layers, bfloat16 weights and dropout make no
    difference, and its weights, gradients, mode and hooks do not change.
    Raises UserError for a layer that does not exist.
    """
    net = plain_copy(network)
    maps = [  # each detached from what it was computed with, which would stay in memory for all images
        METHODS[settings.method](net, x.detach().float().requires_grad_(), c, settings).detach()
        for x, c in zip(images.split(IMAGES_AT_ONCE), classes.split(IMAGES_AT_ONCE), strict=True)
    ]
    return torch.cat(maps)


def plain_copy(network: nn.Module) -> nn.Module:
    """Return a float32 copy in eval mode whose weights take no gradients."""
    return copy.deepcopy(network).float().eval().requires_grad_(False)


def grad_cam(net: nn.Module, images: Tensor, classes: Tensor, settings: Settings) -> Tensor:
    """Return [N, h, w]: Selvaraju et al. 2017 (arXiv 1610.02391, section 3, equations 1 and 2)."""
    layer = settings.layer or default_layer(net, images)
    check_choice("layer", layer, [name for name, _ in net.named_modules() if name])
    maps = LayerGradCam(net, net.get_submodule(layer)).attribute(images, classes, relu_attributions=True)
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise UserError(f"layer {layer!r} has no output of shape [N, C, h, w]; name a convolutional layer.")
    return maps[:, 0]


def integrated_gradients(net: nn.Module, images: Tensor, classes: Tensor, settings: Settings) -> Tensor:
    """Return [N, R, R]: Sundararajan et al. 2017 (arXiv 1703.01365, section 3), from each image's mean."""
    maps = IntegratedGradients(net).attribute(
        images, _mean_image(images), classes, n_steps=PATH_STEPS, internal_batch_size=IMAGES_AT_ONCE
    )
    return maps.sum(1).clamp(min=0).float()


def occlusion(net: nn.Module, images: Tensor, classes: Tensor, settings: Settings) -> Tensor:
    """Return [N, R, R]: drop of the logit where a patch of the image's mean covers it (arXiv 1311.2901)."""
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


def default_layer(net: nn.Module, images: Tensor) -> str:
    """Return the last layer whose map of such images has MIN_CELLS or more cells per side.

    At 224 pixels that is the last one. On small images its output is a single cell, which has no place.
    """
    fine = [name for name, side in map_layers(net, images[:1]).items() if side >= MIN_CELLS]
    if fine:
        return fine[-1]
    raise UserError(
        f"no layer of the network has a map of {MIN_CELLS} x {MIN_CELLS} cells or more on images of "
        f"{images.shape[-1]} pixels; name a layer, or train on larger images."
    )


def _mean_image(images: Tensor) -> Tensor:
    """Return each image's mean at every pixel: it adds no edge and keeps the exposure."""
    return images.detach().mean((1, 2, 3), keepdim=True).expand_as(images)
