"""Where a network starts from: random weights, ImageNet's, the encoder that comes with this repo, or a file."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from self_sup_classes.backbones import TIMM, Backbone
from self_sup_classes.imagenet import for_xrays, imagenet_file
from self_sup_classes.provenance import NOTHING_SEEN, Provenance, provenance_of
from self_sup_classes.weights import choose, load_strictly, read_state_dict
from utils.config import UserError, nearest, repo_path
from utils.distributed import note_once
from utils.files import content_hash, read_json
from utils.seeds import mixed_seed

SHARED = "shared"  # the start that this repo brings along, in a folder that selfsup_task/share_weights.py makes
SHARED_FOLDER = Path(__file__).parent / "shared_encoder"
SHARED_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Start:
    """A backbone, and where its weights come from.

    provenance  the chest X-rays that it has seen; None if its file does not say
    note        what of a file was taken and left out, "" if it holds nothing else
    """

    backbone: Backbone
    provenance: Provenance | None
    note: str = ""


def start_from(encoder: str, name: str, in_channels: int, seed: int) -> Start:
    """Return the backbone `name` with the weights that `encoder` names.

    encoder  "random" (a function of the seed) | "imagenet" (the library's weights, downloaded) | "imagenet:FILE" (the
             same from a local file) | "shared" (the encoder that comes with this repo) | a file that
             self_sup_classes/weights.py reads, from this repo or elsewhere

    A head or projector is left out, which is said on stderr. Raises UserError if the file is missing or its weights
    belong to another architecture or channel count.
    """
    if encoder == SHARED:
        _check_shared(name, in_channels)
    backbone = random_backbone(name, in_channels, seed)
    if encoder == "random":
        return Start(backbone, NOTHING_SEEN)
    of_imagenet = encoder.partition(":")[0] == "imagenet"
    path = imagenet_file(name) if encoder == "imagenet" else _existing(encoder)
    tensors = read_state_dict(path)
    provenance = provenance_of(tensors)
    if of_imagenet and provenance is not None:
        raise UserError(f"{path} is an encoder of X-rays, not ImageNet's weights; name it without imagenet:.")
    note = _load(backbone, tensors, str(path), of_imagenet)
    if note and encoder != "imagenet":  # everybody knows of its 1,000 classes
        note_once(note)
    return Start(backbone, NOTHING_SEEN if of_imagenet else provenance, note)


def seen_by(encoder: str) -> Provenance | None:
    """Return what the weights that `encoder` names were trained on, without building the network.

    None if the file does not say. Raises UserError if it is missing.
    """
    if encoder == "random" or encoder.partition(":")[0] == "imagenet":
        return NOTHING_SEEN
    return provenance_of(read_state_dict(_existing(encoder)))


def weights_hashes(encoders: Iterable[str]) -> dict[str, str]:
    """Return the hash of the content of each encoder, or table of features, that is a file, and is there."""
    paths = {encoder: _file_of(encoder) for encoder in encoders}
    return {encoder: content_hash(path) for encoder, path in paths.items() if path.is_file()}


def random_backbone(name: str, in_channels: int, seed: int) -> Backbone:
    """Return a backbone whose weights are a function of the seed; torch's global generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed("backbone", seed))
        return Backbone(name, in_channels)


def _file_of(encoder: str) -> Path:
    """Return the file that an encoder's or a table's name in a config stands for."""
    if encoder == SHARED:
        return SHARED_FOLDER / SHARED_WEIGHTS
    return repo_path(re.sub("^(imagenet|features):", "", encoder))


def _existing(encoder: str) -> Path:
    """Return the file of an encoder. Raises UserError if it is not there, naming what may have been meant."""
    path = _file_of(encoder)
    if path.is_dir():
        held = ", ".join(str(file) for file in sorted(path.glob("*_state_dict.pt")))
        raise UserError(
            f"{path} is a folder; name a file of weights{f': {held}' if held else ', of which it has none'}."
        )
    if not path.is_file():
        known = nearest(encoder.lower(), ["random", "imagenet", SHARED])
        raise UserError(f"there is no file {path}; give the path of a file of weights, or a start: {known}")
    return path


def _check_shared(name: str, in_channels: int) -> None:
    """Raise UserError unless this repo's encoder is there, and is a `name` with `in_channels`."""
    known = read_json(SHARED_FOLDER / "config.json")
    if known is None or not (SHARED_FOLDER / SHARED_WEIGHTS).is_file():
        raise UserError(
            f"shared is the encoder in {SHARED_FOLDER}, where there is none; start from imagenet or a file of weights, "
            "or make the folder of a pretraining of yours with selfsup_task/share_weights.py --output."
        )
    backbone = f"{TIMM if known['library'] == 'timm' else ''}{known['architecture']}"
    channels = known["pretrained_cfg"]["input_size"][0]
    if (name, in_channels) != (backbone, channels):
        raise UserError(
            f"shared is a {backbone} with {channels} input channel(s), not a {name} with {in_channels}; give "
            f"--backbone {backbone} --in-channels {channels}, or another start."
        )


def _load(backbone: Backbone, tensors: Mapping[str, Tensor], source: str, of_imagenet: bool) -> str:
    """Copy the weights, without head or projector, into the backbone; return a note on what else there is."""
    found = choose(backbone.net, tensors, backbone.structure.head, has_head=False)
    weights = for_xrays(backbone, found.weights, source) if of_imagenet else found.weights
    load_strictly(backbone.net, weights, source, f"{backbone.name} with {backbone.in_channels} input channel(s)")
    return found.note(source)
