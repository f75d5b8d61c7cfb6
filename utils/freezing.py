"""A frozen part is frozen: no gradients, BatchNorm statistics that stand still, and a proof of it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters and none of them, in it or below it, is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def train_mode(module: nn.Module) -> None:
    """`module.train()`, but frozen parts stay in eval mode, so that their BatchNorm statistics do not move."""
    module.train()
    for part in module.modules():
        if is_frozen(part):
            part.eval()


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all that must not change: frozen parameters, and the buffers of frozen modules."""
    return {name: tensor.detach().clone() for name, tensor in _frozen(module)}


def assert_unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    """Raise AssertionError unless everything frozen is bit-identical to what `frozen_tensors` gave."""
    now = dict(_frozen(module))
    assert now.keys() == before.keys(), "what is frozen has changed during training"
    moved = [name for name, tensor in before.items() if not torch.equal(tensor, now[name])]
    assert not moved, f"frozen but changed by training: {', '.join(moved[:5])}"


def _frozen(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter
    for prefix, part in module.named_modules():
        if is_frozen(part):
            for name, buffer in part.named_buffers(recurse=False):
                yield f"{prefix}.{name}", buffer
