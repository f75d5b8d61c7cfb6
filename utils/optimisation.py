"""Optimisers and schedules, and the step that they take."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from utils.config import Config, Count, Natural, NotNegative, UserError, at_least, one_of
from utils.hardware import Precision

OPTIMIZERS = ["adam", "adamw", "sgd", "lars"]
SCHEDULERS = ["cosine", "constant", "multiplicative"]
Optimizer = Annotated[str, one_of(OPTIMIZERS)]
BatchSize = Annotated[int, at_least(2)]


@dataclass(frozen=True, kw_only=True)
class FitConfig(Config):
    """How weights are updated: the keys that `fit` reads; the scripts' config dicts say what they mean."""

    num_epochs: Count
    optimizer: Optimizer
    lr: NotNegative
    optimizer_weight_decay: NotNegative
    scheduler: Annotated[str, one_of(SCHEDULERS)]
    warmup_epochs: int
    random_seed: Natural
    batch_size: BatchSize
    gradient_clip: NotNegative
    precision: Precision
    checkpoint_minutes: NotNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup_epochs < (self.num_epochs or math.inf):
            raise UserError(
                f"warmup_epochs is {self.warmup_epochs} of {self.num_epochs} epochs; it must be at least 0 and less "
                "than num_epochs; set warmup_epochs to 0 for a single one."
            )


class LARS(torch.optim.Optimizer):
    """SGD with momentum 0.9, in which each layer's weights move in proportion to their norm: for large batches.

    The rate of a layer's weights w with gradient g is lr * 0.001 |w| / (|g| + decay |w|), as in You et al. 2017
    (arXiv 1708.03888, algorithm 1); biases and BatchNorm have lr. Momentum is of these, without lr, as torch's.
    """

    def __init__(self, params: list[dict[str, Any]]):
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # without a closure
        """Take one step."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                direction, decay = p.grad, group["weight_decay"]
                if p.ndim > 1:
                    own, other = p.norm(), p.grad.norm()
                    trust = torch.where((own > 0) & (other > 0), 1e-3 * own / (other + decay * own), 1.0)
                    direction = (p.grad + decay * p) * trust
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum_buffer"]
                p.sub_(momentum.mul_(0.9).add_(direction), alpha=group["lr"])


def build_optimizer(
    module: nn.Module, config: FitConfig, lr_factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer over the parameters that require gradients, fused where torch supports it.

    Biases and BatchNorm parameters are not decayed, and with LARS have 0.024 of the rate (Barlow Twins, section 2.2:
    0.0048 and 0.2). `lr_factors` maps the start of a parameter's name to the factor of its learning rate, kept as
    group["lr_factor"]; the default is 1.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            factor = next((f for prefix, f in (lr_factors or {}).items() if name.startswith(prefix)), 1.0)
            decay = config.optimizer_weight_decay if parameter.ndim > 1 else 0.0
            factor *= 0.024 if parameter.ndim <= 1 and config.optimizer == "lars" else 1.0
            groups.setdefault((factor, decay), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": parameters, "lr_factor": factor, "lr": config.lr * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if config.optimizer == "lars":
        return LARS(settings)
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
    """Take one step at learning rate `lr` on the "loss" of `forward()`, under autocast to `dtype`; return its result.

    The gradient's norm is clipped to gradient_clip; 0 is off.
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


def lr_multiplier(global_step: int, steps_per_epoch: int, config: FitConfig) -> float:
    """Return the factor of `lr` at an optimiser step.

    After a linear warmup over warmup_epochs: "constant" 1; "cosine" half a cosine from 1 to 0; "multiplicative"
    the same factor each epoch, from 1 to 0.01 over the run (0.63 per epoch for 10 epochs).
    """
    assert config.num_epochs > 0, "the length of the training is not chosen yet"
    warmup = config.warmup_epochs * steps_per_epoch
    if global_step < warmup:
        return (global_step + 1) / warmup
    if config.scheduler == "constant":
        return 1.0
    if config.scheduler == "multiplicative":
        return 0.01 ** (global_step // steps_per_epoch / config.num_epochs)
    total = config.num_epochs * steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * (global_step - warmup) / (total - warmup)))


def largest_weight(module: nn.Module) -> float:
    """Return the largest absolute value of a parameter, NaN if one is not a number; this waits for the device."""
    return torch.stack([one.detach().abs().amax().float() for one in module.parameters()]).amax().item()
