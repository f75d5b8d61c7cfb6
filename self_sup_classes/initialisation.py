"""Where a network starts from: random weights, ImageNet's, or an encoder's file."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision import models

from self_sup_classes.backbones import Backbone, first_conv, load_strictly, read_state_dict
from self_sup_classes.provenance import NOTHING_SEEN, Provenance, provenance_of
from utils.config import UserError, repo_path
from utils.optimisation import mixed_seed

_ORIGINAL_PREFIX = "backbone.net."  # in the original project's checkpoints, which also hold a projector


@dataclass(frozen=True)
class Start:
    """A backbone and the chest X-rays that it has seen; None if its file does not say."""

    backbone: Backbone
    provenance: Provenance | None


def start_from(encoder: str, name: str, in_channels: int, seed: int) -> Start:
    """Return the backbone `name` with the weights that `encoder` names.

    encoder  "random" (a function of the seed) | "imagenet" (torchvision's weights, downloaded) | "imagenet:FILE" (the
             same from a local file) | a *_state_dict.pt of this repo, of torchvision, or of the original project

    Raises UserError if the file is missing or its weights belong to another architecture or channel count.
    """
    if encoder == "random":
        return Start(random_backbone(name, in_channels, seed), NOTHING_SEEN)
    backbone = random_backbone(name, in_channels, seed)
    if encoder == "imagenet":
        _load(backbone, _download_imagenet(name), "torchvision's ImageNet weights", imagenet=True)
        return Start(backbone, NOTHING_SEEN)
    is_imagenet = encoder.startswith("imagenet:")
    path = repo_path(encoder.removeprefix("imagenet:"))
    state = read_state_dict(path)
    provenance = provenance_of(state)
    if is_imagenet and (provenance is not None or not _is_torchvisions(state, backbone)):
        raise UserError(f"{path} is not a file of torchvision's ImageNet weights; name an encoder without imagenet:.")
    _load(backbone, state, str(path), is_imagenet)
    return Start(backbone, NOTHING_SEEN if is_imagenet else provenance)


def seen_by(encoder: str) -> Provenance | None:
    """Return what the weights that `encoder` names were trained on, without building the network.

    None if the file does not say. Raises UserError if it is missing.
    """
    if encoder == "random" or encoder.partition(":")[0] == "imagenet":
        return NOTHING_SEEN
    return provenance_of(read_state_dict(repo_path(encoder)))


def random_backbone(name: str, in_channels: int, seed: int) -> Backbone:
    """Return a backbone whose weights are a function of the seed; torch's global generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(seed, 0))
        return Backbone(name, in_channels)


def _download_imagenet(name: str) -> Mapping[str, Tensor]:
    weights = models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's ImageNet weights for {name} could not be downloaded ({error}). Download {weights.url} "
            "on another machine and give the file as imagenet:FILE; the other initialisations need no network."
        ) from error


def _is_torchvisions(state: Mapping[str, Tensor], backbone: Backbone) -> bool:
    """Return whether these may be weights for colour images, unlike those of X-rays with one channel."""
    key = f"{first_conv(backbone.net)[0]}.weight"
    return key not in state or state[key].shape[1] == 3


def _load(backbone: Backbone, state: Mapping[str, Tensor], source: str, imagenet: bool) -> None:
    """Copy the weights, without head or projector, into the backbone."""
    found = _backbone_part(state, backbone.head_name)
    conv_name, conv = first_conv(backbone.net)
    key = f"{conv_name}.weight"
    if imagenet and conv.in_channels == 1 and key in found and found[key].shape[1] == 3:
        found[key] = found[key].sum(1, keepdim=True)  # what a gray image in all three channels would give
    description = f"{backbone.name} with {conv.in_channels} input channel(s)"
    load_strictly(backbone.net, found, source, description)


def _backbone_part(state: Mapping[str, Tensor], head_name: str) -> dict[str, Tensor]:
    """Return the tensors by torchvision's names, without the head and, in the original's files, the projector."""
    if any(key.startswith(_ORIGINAL_PREFIX) for key in state):
        state = {
            key.removeprefix(_ORIGINAL_PREFIX): value
            for key, value in state.items()
            if key.startswith(_ORIGINAL_PREFIX)
        }
    head = head_name.split(".")[0] + "."
    return {key: value for key, value in state.items() if not key.startswith(head)}
