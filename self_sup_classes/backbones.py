"""torchvision's backbones for one- or three-channel X-rays: build without a head, export with one, load."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

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
        head_name, head = _head(self.net)
        self.name, self.head_name, self.num_features = name, head_name, head.in_features
        _set(self.net, head_name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, F] after global average pooling."""
        return self.net(x)


def torchvision_model(name: str, in_channels: int) -> nn.Module:
    """torchvision's own network, randomly initialised, with a first convolution for `in_channels`.

    Raises UserError for a name that is not in BACKBONES or channels other than 1 and 3.
    """
    check_choice("backbone", name, BACKBONES)
    if in_channels not in (1, 3):
        raise UserError(f"in_channels is {in_channels}; an X-ray has 1, a network for colour images 3.")
    net = models.get_model(name, weights=None)
    if in_channels == 1:
        conv_name, conv = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
        _set(net, conv_name, _with_one_channel(conv))
    return net


def export_state_dict(backbone: Backbone) -> OrderedDict[str, Tensor]:
    """A copy of the weights that plain torchvision loads with strict=True; no projector.

    The 1000-class head that torchvision expects is there and all zeros: it was never trained.
    """
    plain = torchvision_model(backbone.name, in_channels=_first_conv(backbone.net).in_channels)
    trained = backbone.net.state_dict()
    return OrderedDict(
        (key, trained[key].detach().cpu().contiguous().clone() if key in trained else torch.zeros_like(value))
        for key, value in plain.state_dict().items()
    )


def save_backbone(path: Path, backbone: Backbone) -> None:
    """Write `export_state_dict(backbone)` atomically."""
    write_atomically(path, lambda file: torch.save(export_state_dict(backbone), file))


def load_backbone(path: Path, name: str, in_channels: int) -> Backbone:
    """The backbone that `save_backbone` wrote.

    Raises UserError if the file is missing or unreadable, or its weights belong to another architecture or
    channel count.
    """
    backbone = Backbone(name, in_channels)
    state = read_state_dict(path)
    expected = {key: value.shape for key, value in backbone.net.state_dict().items()}
    found = {k: v.shape for k, v in state.items() if not k.startswith(backbone.head_name.split(".")[0] + ".")}
    wrong = [
        f"{key}: found {_shape(found.get(key))}, expected {_shape(expected.get(key))}"
        for key in [*expected, *(k for k in found if k not in expected)]
        if found.get(key) != expected.get(key)
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit a {name} with {in_channels} input channel(s): {len(wrong)} of "
            f"{len(expected)} tensors differ, first {'; '.join(wrong[:3])}. "
            "Name the backbone and channels that it was saved with."
        )
    backbone.net.load_state_dict({key: state[key] for key in expected}, strict=True)
    return backbone


def read_state_dict(path: Path) -> dict[str, Any]:
    """A dict of tensors from a file, without unpickling code; UserError if it is missing or something else."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of a *_state_dict.pt under runs/.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for the many ways in which a file can be broken
        raise UserError(f"{path} is not a state_dict that torch can read ({str(error).splitlines()[0]}).") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state_dict: expected a dict of tensors by name.")
    return state


def _head(net: nn.Module) -> tuple[str, nn.Linear]:
    name, head = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    return name, head


def _first_conv(net: nn.Module) -> nn.Conv2d:
    return next(module for module in net.modules() if isinstance(module, nn.Conv2d))


def _with_one_channel(conv: nn.Conv2d) -> nn.Conv2d:
    """A freshly initialised convolution like `conv`, for one input channel, initialised as torchvision does."""
    one = nn.Conv2d(
        1,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(one.weight, mode="fan_out", nonlinearity="relu")
    return one


def _set(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def _shape(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else str(tuple(shape))
