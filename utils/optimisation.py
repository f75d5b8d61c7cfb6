"""Optimizers and learning-rate schedules, by the names that configs use."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from utils.config import Config, UserError, check_at_least, check_choice

OPTIMIZERS = ["adam", "adamw", "sgd"]
SCHEDULERS = ["cosine", "constant", "multiplicative"]


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig(Config):
    """How weights are updated: the keys that `build_optimizer` and `lr_multiplier` read."""

    num_epochs: int
    optimizer: str
    lr: float
    optimizer_weight_decay: float
    scheduler: str
    warmup_epochs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        check_at_least("num_epochs", self.num_epochs, 1)
        for key in ("lr", "optimizer_weight_decay"):
            check_at_least(key, getattr(self, key), 0)
        if not 0 <= self.warmup_epochs < self.num_epochs:
            raise UserError(
                f"warmup_epochs is {self.warmup_epochs} of {self.num_epochs} epochs; it must be at least 0 and less "
                "than num_epochs; set warmup_epochs to 0 for a single one."
            )


def build_optimizer(
    module: nn.Module, config: OptimiserConfig, lr_factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer over the parameters that require gradients, fused where torch can.

    Biases and BatchNorm parameters are not decayed (Barlow Twins, section 2.2). `lr_factors` maps the beginning of
    a parameter's name to what its group's learning rate is multiplied with, kept as group["lr_factor"]; else 1.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            factor = next((f for prefix, f in (lr_factors or {}).items() if name.startswith(prefix)), 1.0)
            decay = config.optimizer_weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": parameters, "lr_factor": factor, "lr": config.lr * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    fused = next(module.parameters()).device.type in ("cuda", "cpu")
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, momentum=0.9, fused=fused)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(settings, fused=fused)


def gradient_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[], Mapping[str, Tensor]],
    lr: float,
    gradient_clip: float,
    dtype: torch.dtype,
) -> Mapping[str, Tensor]:
    """One step at learning rate `lr` down the "loss" of what `forward` gives under autocast to `dtype`; all it gives.

    The gradient's norm is clipped to gradient_clip, 0 for never.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    with torch.autocast(next(module.parameters()).device.type, dtype, enabled=dtype != torch.float32):
        metrics = forward()
    optimizer.zero_grad(set_to_none=True)
    metrics["loss"].backward()
    if gradient_clip > 0:
        nn.utils.clip_grad_norm_(module.parameters(), gradient_clip)
    optimizer.step()
    return metrics


def lr_multiplier(global_step: int, steps_per_epoch: int, config: OptimiserConfig) -> float:
    """What `lr` is multiplied with at an optimiser step.

    After a linear warmup over warmup_epochs: "constant" 1; "cosine" half a cosine from 1 to 0; "multiplicative"
    the same factor each epoch, from 1 to 0.01 over the run (0.63 an epoch for 10 epochs).
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if global_step < warmup:
        return (global_step + 1) / warmup
    if config.scheduler == "constant":
        return 1.0
    if config.scheduler == "multiplicative":
        return 0.01 ** (global_step // steps_per_epoch / config.num_epochs)
    total = config.num_epochs * steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * (global_step - warmup) / (total - warmup)))
