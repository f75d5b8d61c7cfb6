"""How a network is built, as the way of one image through it shows: first convolutions, stages, maps and the head."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.config import UserError

PROBE_SIZE = 64  # pixels a side: the maps of five resolutions differ, and the pass takes milliseconds
LAYERS = 4  # stages between stem and head


@dataclass(frozen=True)
class Structure:
    """What others need to know of a network. Names are those of its modules.

    first_convs  convolutions that see the image, each with the BatchNorm behind it, "" if another module follows
    stages       the modules from the image to the last map, in five groups: the stem, and four layers, of which the
                 last ones differ in resolution; a network of fewer resolutions leaves the first layers empty
    in_a_row     whether each of these modules sees what the one before it returns, and nothing else
    head         the last linear layer
    """

    first_convs: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, ...], ...]
    in_a_row: bool
    head: str


class Call(NamedTuple):
    """One call of a module by one tensor, and what it returned."""

    name: str
    module: nn.Module
    given: Tensor
    result: Tensor

    @property
    def side(self) -> int:
        """Pixels a side of a square map [N, C, h, h]; 0 if it returned no map of 2 x 2 or more."""
        shape = self.result.shape
        return shape[2] if len(shape) == 4 and shape[2] == shape[3] > 1 else 0


def structure_of(net: nn.Module, name: str, in_channels: int) -> Structure:
    """Return the structure of a convolutional network that ends in a linear layer, called `name` in messages.

    Raises UserError for other networks: those that take images of one size only, keep tokens or channels last, have
    several heads, or none.
    """
    other = "choose a convolutional network, such as densenet121, convnext_tiny or timm/tf_efficientnet_lite0."
    if getattr(net, "aux_logits", False):
        raise UserError(f"{name} has heads that are used in training alone; {other}")
    image = torch.zeros(1, in_channels, PROBE_SIZE, PROBE_SIZE)
    try:
        calls, logits = trace(net, image)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} does not take images of {PROBE_SIZE} px ({reason}); {other}") from error
    units = _units(net, calls)
    if any(
        one.result.ndim == 3 or (one.result.ndim == 4 and one.result.shape[2] != one.result.shape[3]) for one in units
    ):
        raise UserError(f"{name} does not keep maps of channels, rows and columns; {other}")
    maps = _maps(units)
    linear = [call for call in calls if isinstance(call.module, nn.Linear)]
    if not maps or not linear or linear[-1].result is not logits:
        raise UserError(f"{name} does not end in a linear layer on pooled maps; {other}")
    return Structure(
        first_convs=tuple(_first_convs(calls, image)),
        stages=_stages(maps),
        in_a_row=maps[0].given is image and all(after.given is before.result for before, after in pairwise(maps)),
        head=linear[-1].name,
    )


def map_layers(net: nn.Module, images: Tensor) -> dict[str, int]:
    """Return the side, in pixels, of the maps [N, C, h, h] of a network's layers, from the image to the last map.

    A layer is the largest module all of whose parts have the same resolution: layer4 rather than layer4.1.
    """
    maps = _maps(_units(net, trace(net, images)[0]))
    sides = {one.name: one.side for one in maps}
    return {_outermost(name, sides): side for name, side in sides.items()}


def blocks(net: nn.Module) -> list[str]:
    """Return the names of a network's layers, those of its maps and what follows them, from the image to the head."""
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    layers = list(map_layers(net, torch.zeros(1, first.in_channels, PROBE_SIZE, PROBE_SIZE).to(first.weight.device)))
    opened = {layer.partition(".")[0] for layer in layers}
    return layers + [name for name, _ in net.named_children() if name not in opened]


@torch.no_grad()
def trace(net: nn.Module, images: Tensor) -> tuple[list[Call], Tensor]:
    """Return the calls of all modules in eval mode, in the order in which they end, and what the network returned."""
    calls: list[Call] = []

    def keep(name: str, module: nn.Module, given: tuple[object, ...], result: object) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(result, Tensor):
            calls.append(Call(name, module, given[0], result))

    modes = [(module, module.training) for module in net.modules()]
    hooks = [
        module.register_forward_hook(lambda *seen, name=name: keep(name, *seen)) for name, module in net.named_modules()
    ]
    net.eval()
    try:
        return calls, net(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode


def _units(net: nn.Module, calls: Sequence[Call]) -> list[Call]:
    """Return the calls of the network's parts that are neither rows of others nor inside one, each called once."""
    count = Counter(call.name for call in calls)

    def parts(module: nn.Module, before: str) -> Iterator[str]:
        for name, child in module.named_children():
            if isinstance(child, nn.Sequential) or not count[before + name]:
                yield from parts(child, f"{before}{name}.")
            elif count[before + name] == 1:
                yield before + name

    names = set(parts(net, ""))
    return [call for call in calls if call.name in names]


def _maps(units: Sequence[Call]) -> list[Call]:
    """Return the units up to the last whose map is no larger than the one before it."""
    side, end = PROBE_SIZE**2, 0
    for place, unit in enumerate(units):
        if 0 < unit.side <= side:
            side, end = unit.side, place + 1
    return [unit for unit in units[:end] if unit.side]


def _stages(maps: Sequence[Call]) -> tuple[tuple[str, ...], ...]:
    """Return names in five groups. The stem ends at the first block of several layers or, without one, of pixels."""
    first = next((n for n, one in enumerate(maps) if n and _is_block(one.module)), None)
    if first is None:
        first = next((n for n, (before, after) in enumerate(pairwise(maps), 1) if after.side < before.side), 1)
    sides = sorted({one.side for one in maps[first:]})  # the last layer's comes first
    layers: list[list[str]] = [[] for _ in range(LAYERS)]
    for one in maps[first:]:
        layers[max(0, LAYERS - 1 - sides.index(one.side))].append(one.name)
    return tuple(one.name for one in maps[:first]), *map(tuple, layers)


def _is_block(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) for part in module.modules() if part is not module)


def _first_convs(calls: Sequence[Call], image: Tensor) -> Iterator[tuple[str, str]]:
    for one in calls:
        if isinstance(one.module, nn.Conv2d) and one.given is image:
            behind = [call for call in calls if call.given is one.result and isinstance(call.module, _BatchNorm)]
            yield one.name, behind[0].name if behind else ""


def _outermost(name: str, sides: dict[str, int]) -> str:
    """Return the outermost module around `name` all of whose parts have maps of one side."""
    parts = name.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next(
        one for one in around if len({side for part, side in sides.items() if f"{part}.".startswith(f"{one}.")}) == 1
    )
