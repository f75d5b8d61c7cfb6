"""torchvision's backbones for X-rays of one or three channels, and their files."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from self_sup_classes.provenance import Provenance
from utils.config import UserError, check_choice
from utils.tensor_files import write_tensors

BACKBONES = ["resnet18", "resnet34", "resnet50", "resnet101"] + [f"efficientnet_b{i}" for i in range(5)]
IMAGENET_CLASSES = 1000  # of the head that torchvision expects in a file


class Backbone(nn.Module):
    """A torchvision network whose classification head is nn.Identity: [N, C, R, R] -> features [N, F].

    `net` keeps torchvision's parameter names, so its state_dict is torchvision's without the head.
    """

    def __init__(self, name: str, in_channels: int):
        super().__init__()
        self.net = torchvision_model(name, in_channels)
        for conv in self.net.modules():
            if type(conv) is nn.Conv2d:
                conv.__class__ = Conv2d  # keeps parameters, hooks and names
        head_name, head = head_of(self.net)
        self.name, self.head_name, self.num_features = name, head_name, head.in_features
        set_module(self.net, head_name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return features [N, F] after global average pooling."""
        return self.net(x)


class Conv2d(nn.Conv2d):
    """torch's convolution, in float32 where autocast on a CPU would see an input of one pixel a side.

    There PyTorch 2.14's gradient of a kernel in bfloat16 reads uninitialised memory, and weights become NaN.
    """

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """Return [N, O, H', W'] for [N, C, H, W]."""
        if not torch.is_autocast_enabled("cpu") or input.device.type != "cpu" or min(input.shape[-2:]) > 1:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.to(self.weight.dtype))


def check_backbone(name: str, in_channels: int) -> None:
    """Raise UserError for a name that is not in BACKBONES or channels other than 1 and 3."""
    check_choice("backbone", name, BACKBONES)
    if in_channels not in (1, 3):
        raise UserError(f"in_channels is {in_channels}; an X-ray has 1, a network for colour images 3.")


def torchvision_model(name: str, in_channels: int) -> nn.Module:
    """Return torchvision's network, randomly initialised, with a first convolution for `in_channels`.

    Raises UserError for a name that is not in BACKBONES or channels other than 1 and 3.
    """
    check_backbone(name, in_channels)
    net = models.get_model(name, weights=None)
    if in_channels == 1:
        conv_name, conv = first_conv(net)
        set_module(net, conv_name, _with_one_channel(conv))
    return net


def save_backbone(path: Path, backbone: Backbone, provenance: Provenance | None) -> None:
    """Write the weights as plain torchvision loads them with strict=True: the head, never trained, is all zeros."""
    weights = {
        f"{backbone.head_name}.weight": torch.zeros(IMAGENET_CLASSES, backbone.num_features),
        f"{backbone.head_name}.bias": torch.zeros(IMAGENET_CLASSES),
    }
    save_state_dict(path, {**backbone.net.state_dict(), **weights}, provenance)


def save_state_dict(path: Path, tensors: Mapping[str, Tensor], provenance: Provenance | None) -> None:
    """Write the tensors as a state_dict for the CPU, with what the network has seen if it is known, atomically."""
    state = OrderedDict((key, value.detach().cpu().contiguous()) for key, value in tensors.items())
    if provenance is not None:
        provenance.attach(state)
    write_tensors(path, state)


def head_of(net: nn.Module) -> tuple[str, nn.Linear]:
    """Return name and module of the classification head."""
    name, head = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    return name, head


def first_conv(net: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return name and module of the first convolution."""
    return next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))


def _with_one_channel(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution like `conv` for one input channel, initialised as torchvision does."""
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
