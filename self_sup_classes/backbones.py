"""torchvision's backbones for one- or three-channel X-rays: build without a head, export with one, read files."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from self_sup_classes.convolution import with_fast_convolutions
from self_sup_classes.provenance import Provenance
from utils.config import UserError, check_choice
from utils.files import write_atomically

BACKBONES = ["resnet18", "resnet34", "resnet50", "resnet101"] + [f"efficientnet_b{i}" for i in range(5)]


class Backbone(nn.Module):
    """A torchvision network whose classification head is nn.Identity: [N, C, R, R] -> features [N, F].

    `net` keeps torchvision's own parameter names, so that its state_dict is torchvision's less the head.
    """

    def __init__(self, name: str, in_channels: int):
        super().__init__()
        self.net = torchvision_model(name, in_channels)
        head_name, head = head_of(self.net)
        self.name, self.head_name, self.num_features = name, head_name, head.in_features
        set_module(self.net, head_name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, F] after global average pooling."""
        return self.net(x)


def check_backbone(name: str, in_channels: int) -> None:
    """Raise UserError for a name that is not in BACKBONES or channels other than 1 and 3."""
    check_choice("backbone", name, BACKBONES)
    if in_channels not in (1, 3):
        raise UserError(f"in_channels is {in_channels}; an X-ray has 1, a network for colour images 3.")


def torchvision_model(name: str, in_channels: int) -> nn.Module:
    """torchvision's own network, randomly initialised, with a first convolution for `in_channels`.

    Its convolutions are those of self_sup_classes.convolution: same weights, same values to rounding.
    Raises UserError for a name that is not in BACKBONES or channels other than 1 and 3.
    """
    check_backbone(name, in_channels)
    net = models.get_model(name, weights=None)
    if in_channels == 1:
        conv_name, conv = first_conv(net)
        set_module(net, conv_name, _with_one_channel(conv))
    return with_fast_convolutions(net)


def export_state_dict(backbone: Backbone) -> dict[str, Tensor]:
    """Return the weights that plain torchvision loads with strict=True; no projector.

    The 1000-class head that torchvision expects is there and all zeros: it was never trained.
    """
    plain = torchvision_model(backbone.name, in_channels=first_conv(backbone.net)[1].in_channels)
    trained = backbone.net.state_dict()
    return {key: trained.get(key, torch.zeros_like(value)) for key, value in plain.state_dict().items()}


def save_backbone(path: Path, backbone: Backbone, provenance: Provenance) -> None:
    """Write `export_state_dict(backbone)` with what the backbone has seen, atomically."""
    save_state_dict(path, export_state_dict(backbone), provenance)


def save_state_dict(path: Path, state: Mapping[str, Tensor], provenance: Provenance | None) -> None:
    """Write tensors by name, atomically, with what their network has seen; None if it is not known."""
    plain = OrderedDict((key, value.detach().cpu().contiguous().clone()) for key, value in state.items())
    if provenance is not None:
        provenance.attach(plain)
    write_atomically(path, lambda file: torch.save(plain, file))


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], problem: str) -> None:
    """Load a state_dict whose names and shapes are the network's own; else UserError: `problem` and the differences."""
    expected = net.state_dict()
    wrong = [
        f"{key}: found {_shape(state, key)}, expected {_shape(expected, key)}"
        for key in dict.fromkeys([*expected, *state])
        if _shape(state, key) != _shape(expected, key)
    ]
    if wrong:
        raise UserError(
            f"{problem}: {len(wrong)} of {len(expected)} tensors differ, first {'; '.join(wrong[:3])}. "
            "Name the backbone, channels and classes that it was saved with."
        )
    net.load_state_dict(state, strict=True)


def read_state_dict(path: Path) -> dict[str, Any]:
    """A dict of tensors from a file, without unpickling code; UserError if it is missing or something else."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of a *_state_dict.pt under runs/.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for the many ways in which a file can be broken
        raise UserError(f"{path} is no state_dict that torch can read; give a *_state_dict.pt.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state_dict: expected a dict of tensors by name.")
    return state


def head_of(net: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the classification head."""
    name, head = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    return name, head


def first_conv(net: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the convolution that sees the image."""
    return next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))


def _with_one_channel(conv: nn.Conv2d) -> nn.Conv2d:
    """A freshly initialised convolution like `conv`, for one input channel, initialised as torchvision does."""
    one = nn.Conv2d(
        1,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        (conv.stride[0], conv.stride[1]),
        (int(conv.padding[0]), int(conv.padding[1])),
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(one.weight, mode="fan_out", nonlinearity="relu")
    return one


def set_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of that dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def _shape(tensors: Mapping[str, Tensor], key: str) -> str:
    return str(tuple(tensors[key].shape)) if key in tensors else "nothing"
