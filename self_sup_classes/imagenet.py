"""ImageNet's weights of torchvision and timm, and how a network that expects colours is made to take X-rays."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from augmentations.transform_utils import GRAY_MEAN, GRAY_STD
from self_sup_classes.backbones import TIMM, Backbone
from utils.config import UserError

HUB = "https://huggingface.co"  # where timm keeps its weights


def imagenet_file(name: str) -> Path:
    """Return the file of the library's ImageNet weights of a network in torch's cache, downloaded if it is not there.

    Raises UserError if it cannot be had, saying where it is and how to give it.
    """
    url, file = _url(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    hash_in_name = re.search(r"-([0-9a-f]{8})\.pth$", file)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_in_name and hash_in_name[1])
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"ImageNet's weights of {name} could not be downloaded ({error}), and are a better start than random ones. "
            f"Run the same command once there is a network; or download {url} on another machine and give the file as "
            "imagenet:FILE under a --run-name of its own; or give random."
        ) from error
    return path


def for_xrays(backbone: Backbone, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return ImageNet's weights of `backbone`, changed to see X-rays normalised by GRAY_MEAN and GRAY_STD.

    The colour network sees (g - mean) / std in each channel, of a gray value g, and this one x = (g - GRAY_MEAN) /
    GRAY_STD, of which that is a linear function. Its slope goes into the first convolution, whose channels are summed
    for gray images, and its constant into the bias or the running mean of the BatchNorm behind. What the first
    convolution sees is the same but for the border, where a zero stands for GRAY_MEAN instead of the mean.
    Raises UserError for weights that are gray already, or a network in which there is no place for this.
    """
    mean, std = _input_scale(backbone.name)
    slope, constant = GRAY_STD / std, (GRAY_MEAN - mean) / std  # [3]
    changed = dict(weights)
    for conv, norm in backbone.structure.first_convs:
        kernel, bias, running_mean = f"{conv}.weight", f"{conv}.bias", f"{norm}.running_mean"
        if kernel not in changed:  # another network, which load_strictly refuses
            continue
        colour = changed[kernel].float()  # [O, 3, K, K]
        if colour.shape[1] != 3:
            raise UserError(f"{source} is for gray images, and ImageNet's are in colour; name it without imagenet:.")
        offset = colour.sum((2, 3)) @ constant  # [O]
        kernels = colour * slope[:, None, None]
        changed[kernel] = kernels.sum(1, keepdim=True) if backbone.in_channels == 1 else kernels
        if bias in changed:
            changed[bias] = changed[bias].float() + offset
        elif running_mean in changed:
            changed[running_mean] = changed[running_mean].float() - offset
        _check_linear(backbone, conv, bias in changed or running_mean in changed)
    if not backbone.structure.first_convs:
        _check_linear(backbone, "", False)
    return changed


def _check_linear(backbone: Backbone, conv: str, has_place: bool) -> None:
    """Raise UserError unless a first convolution multiplies by its weights as they are, and a constant has a place."""
    layer = copy.deepcopy(backbone.net.get_submodule(conv))
    if has_place and isinstance(layer, nn.Conv2d):
        side = 4 * max(layer.kernel_size)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0, 1, layer.weight.numel()).view_as(layer.weight))
            before = layer(torch.zeros(1, layer.in_channels, side, side))  # the bias
            seen = (layer(torch.ones(1, layer.in_channels, side, side)) - before)[0]
            if torch.allclose(seen[:, seen.shape[1] // 2, seen.shape[2] // 2], layer.weight.sum((1, 2, 3)), rtol=1e-3):
                return
    raise UserError(
        f"the first convolution of {backbone.name} normalises its weights, or has neither a bias nor a BatchNorm "
        "behind it, so that ImageNet's weights cannot be made to see X-rays; choose another backbone."
    )


def _input_scale(name: str) -> tuple[Tensor, Tensor]:
    """Return mean and std [3] by which images were normalised, from 0 to 1, when the library's weights were trained."""
    timms = name.startswith(TIMM)
    scale = _timms_weights(name) if timms else next(iter(models.get_model_weights(name))).transforms()
    return torch.tensor(scale.mean), torch.tensor(scale.std)


def _url(name: str) -> tuple[str, str]:
    """Return where the library's weights are, and the name of the file; UserError if it has none."""
    if not name.startswith(TIMM):
        url = next(iter(models.get_model_weights(name))).url
        return url, url.rpartition("/")[2]
    known = _timms_weights(name)
    file = known.hf_hub_filename or "model.safetensors"
    return f"{HUB}/{known.hf_hub_id}/resolve/main/{file}", f"{known.hf_hub_id.rpartition('/')[2]}_{file}"


def _timms_weights(name: str) -> Any:
    """Return what timm knows of a network's weights: hf_hub_id, mean, std; UserError if there are none."""
    import timm

    known = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    if known is None or not known.hf_hub_id:
        raise UserError(f"timm has no weights of {name}; choose another backbone, or start from random ones.")
    return known
