"""torchvision's and timm's backbones for X-rays of one or three channels, and their files."""

import copy
import difflib
import functools
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn
from torchvision import models

from self_sup_classes.provenance import Provenance
from self_sup_classes.structure import structure_of
from utils.config import UserError, bound
from utils.tensor_files import write_tensors

TIMM = "timm/"  # before the names of timm's networks


class Backbone(nn.Module):
    """A network of torchvision or timm whose classification head is nn.Identity: [N, C, R, R] -> features [N, F].

    `net` keeps the library's parameter names, so its state_dict is the library's without the head.
    """

    def __init__(self, name: str, in_channels: int):
        super().__init__()
        self.net = library_network(name, in_channels)
        for conv in self.net.modules():
            if isinstance(conv, nn.Conv2d):
                conv.__class__ = in_float32_where_better(type(conv))  # keeps parameters, hooks and names
        self.name, self.in_channels = name, in_channels
        self.structure = structure_of(self.net, name, in_channels)
        head = self.net.get_submodule(self.structure.head)
        assert isinstance(head, nn.Linear)
        self.num_features = head.in_features
        self.untrained_head = {f"{self.structure.head}.{key}": value.shape for key, value in head.state_dict().items()}
        self.net.set_submodule(self.structure.head, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return features [N, F] after global average pooling."""
        return self.net(x)


class Float32Where(nn.Conv2d):
    """A convolution that autocast on a CPU computes in float32 where that is better.

    On inputs of one pixel a side, PyTorch 2.14's gradient of a kernel in bfloat16 reads uninitialised memory, and
    weights become NaN. Of depthwise convolutions it is several times slower than that in float32.
    """

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """Return [N, O, H', W'] for [N, C, H, W]."""
        better = self.groups > 1 or min(input.shape[-2:]) == 1
        if not better or input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.to(self.weight.dtype))


@functools.cache
def in_float32_where_better(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """Return that kind of convolution as a Float32Where; a library may have kinds of its own."""
    return type(kind.__name__, (Float32Where, kind), {})


def check_backbone(key: str, name: str) -> None:
    """Raise UserError for a name that neither library knows."""
    library = "timm" if name.startswith(TIMM) else "torchvision"
    known = _timms_names() if library == "timm" else models.list_models(module=models)  # those that classify
    if name.removeprefix(TIMM) not in known:
        near = difflib.get_close_matches(name.removeprefix(TIMM), known, cutoff=0)
        raise UserError(
            f"{key} is {name!r}, which {library} does not have; did you mean {', '.join(map(repr, near))}? "
            f"Names are torchvision's, such as 'densenet121', or timm's with {TIMM} before them."
        )


check_channels = bound((1, 3).__contains__, "an X-ray has 1, a network for colour images 3")
BackboneName = Annotated[str, check_backbone]
Channels = Annotated[int, check_channels]


@functools.cache
def _timms_names() -> list[str]:
    """Return the names of networks, and of those with the weights that a tag names."""
    import timm  # takes a second

    return timm.list_models() + timm.list_pretrained()


def library_network(name: str, in_channels: int) -> nn.Module:
    """Return torchvision's or timm's network, randomly initialised, with a first convolution for 1 or 3 channels."""
    if name.startswith(TIMM):
        import timm

        return timm.create_model(name.removeprefix(TIMM), pretrained=False, in_chans=in_channels)
    net = models.get_model(name, weights=None)
    if in_channels == 1:
        conv_name, conv = next((name, part) for name, part in net.named_modules() if isinstance(part, nn.Conv2d))
        net.set_submodule(conv_name, _with_one_channel(conv))
    return net


def weights_file(name: str, kind: str = "final") -> str:
    """Return the name of the file in a run's folder with the weights of the backbone `name`."""
    return f"{name.removeprefix(TIMM)}_{kind}_state_dict.pt"


def save_backbone(path: Path, backbone: Backbone, provenance: Provenance | None) -> None:
    """Write the weights as the library loads them with strict=True: the head, never trained, is all zeros."""
    state = backbone.net.state_dict()
    state.update({key: torch.zeros(shape) for key, shape in backbone.untrained_head.items()})
    save_state_dict(path, state, provenance)


def save_state_dict(path: Path, tensors: Mapping[str, Tensor], provenance: Provenance | None) -> None:
    """Write the tensors as a state_dict for the CPU, with what the network has seen if it is known, atomically."""
    state = OrderedDict((key, value.detach().cpu().contiguous()) for key, value in tensors.items())
    state._metadata = getattr(tensors, "_metadata", {})  # type: ignore[attr-defined]  # versions of modules
    if provenance is not None:
        provenance.attach(state)
    write_tensors(path, state)


def _with_one_channel(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution like `conv` for one input channel, initialised as torchvision's ResNets are."""
    one = copy.deepcopy(conv)
    one.in_channels, one.weight = 1, nn.Parameter(conv.weight.detach()[:, :1].clone())
    one.reset_parameters()  # the bias
    nn.init.kaiming_normal_(one.weight, mode="fan_out", nonlinearity="relu")
    return one
