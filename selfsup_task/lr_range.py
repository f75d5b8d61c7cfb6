"""The learning-rate range test: the loss while the learning rate rises from far too small to far too large."""

import copy
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from utils.config import UserError
from utils.hardware import choose_precision
from utils.optimisation import FitConfig, build_optimizer, gradient_step
from utils.scripts import progress_bar
from utils.seeds import endless_order, mixed_seed
from utils.training_utils import StepFunction

SMOOTHING = 0.8  # of the exponential mean over steps
DIVERGED = 3.0  # times its lowest, the smoothed loss ends the test
SETTLING = 0.1  # of the steps, in which too few losses have been seen for that


class Suggestion(NamedTuple):
    """Learning rates of the steepest fall, the lowest loss and the end; None if the loss never diverged."""

    steepest: float
    lowest: float
    diverged: float | None


def lr_range_test(
    module: nn.Module,
    step: StepFunction,
    indices: np.ndarray,
    config: FitConfig,
    lrs: np.ndarray,
    lr_factors: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Take a step at each of the growing learning rates `lrs` (Smith 2017, arXiv 1506.01186, section 3.3).

    Returns one row per step with lr, loss and smoothed, up to where the smoothed loss is DIVERGED times its lowest or
    the loss is not finite. Afterwards the module is as it was, without gradients, however the test ends.
    Raises UserError if the first loss is not finite.
    """
    before, was_training = copy.deepcopy(module.state_dict()), module.training
    optimizer = build_optimizer(module, config, lr_factors)
    num_steps = len(lrs)
    dtype = choose_precision(config.precision, next(module.parameters()).device)
    order = torch.from_numpy(endless_order(indices, config.random_seed, 0, num_steps * config.batch_size))
    rows: list[dict[str, float]] = []
    try:
        module.train()
        with progress_bar(num_steps, "learning rates", unit="step") as bar:
            for n, (lr, batch) in enumerate(zip(lrs, order.chunk(num_steps), strict=True)):
                torch.manual_seed(mixed_seed("dropout of a range test", config.random_seed, n))
                forward = functools.partial(step, batch, 0, n)
                metrics = gradient_step(module, optimizer, forward, float(lr), config.gradient_clip, dtype)
                loss = metrics["loss"].item()
                rows.append({"lr": float(lr), "loss": loss, "smoothed": _smoothed([*(r["loss"] for r in rows), loss])})
                bar.update()
                too_large = rows[-1]["smoothed"] > DIVERGED * min(row["smoothed"] for row in rows)
                if not math.isfinite(loss) or (too_large and n >= SETTLING * num_steps):
                    break
    finally:
        module.load_state_dict(before)
        module.train(was_training)
        module.zero_grad(set_to_none=True)
    if not math.isfinite(rows[0]["loss"]):
        raise UserError(f"the loss is not finite at the first learning rate, {lrs[0]:.2g}; lower lr_from.")
    return pd.DataFrame(rows)


def suggest(table: pd.DataFrame) -> Suggestion:
    """Return what a range test's table suggests; the steepest fall is that of the smoothed loss over log(lr)."""
    lrs, smoothed = table[["lr", "smoothed"]].to_numpy().T
    lrs, smoothed = lrs[np.isfinite(smoothed)], smoothed[np.isfinite(smoothed)]
    bottom = int(smoothed.argmin())
    window = max(2, len(table) // 15)  # steps each side: the slope between neighbours is noise
    middles = np.arange(window, max(window + 1, bottom - window + 1)).clip(max=len(smoothed) - 1)
    ahead, behind = (middles + window).clip(max=len(smoothed) - 1), (middles - window).clip(min=0)
    steepest = middles[(smoothed[ahead] - smoothed[behind]).argmin()]
    ended = smoothed[-1] > DIVERGED * smoothed.min() or len(smoothed) < len(table)
    return Suggestion(float(lrs[steepest]), float(lrs[bottom]), float(table["lr"].iloc[-1]) if ended else None)


def _smoothed(losses: list[float]) -> float:
    """The exponential mean over the losses, without the bias of its start."""
    weights = SMOOTHING ** np.arange(len(losses))[::-1]
    return float((weights * losses).sum() / weights.sum())
