"""Frozen parts of a network: weights and BatchNorm statistics that training must not change."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def is_frozen(module: nn.Module) -> bool:
    """Return whether a module has parameters of which none is trained, submodules included."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def train_mode(module: nn.Module) -> None:
    """Call `module.train()`, but keep frozen parts in eval mode, so that their BatchNorm statistics do not change."""
    module.train()
    for part in module.modules():
        if is_frozen(part):
            part.eval()


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of what must not change: frozen parameters, and the buffers of frozen modules."""
    return {name: tensor.detach().clone() for name, tensor in _frozen(module)}


def assert_unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    """Raise AssertionError unless everything frozen is bit-identical to `before`, from `frozen_tensors`."""
    now = dict(_frozen(module))
    assert now.keys() == before.keys(), "other parts are frozen than before training"
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
