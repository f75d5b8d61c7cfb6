"""The engine: `fit` trains any module with any step function; a resumed run is bit-identical to an undisturbed one."""

import functools
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils import distributed
from utils.config import UserError
from utils.freezing import assert_unchanged, frozen_tensors, train_mode
from utils.hardware import choose_precision, memory_for
from utils.logging_utils import Run
from utils.optimisation import FitConfig, build_optimizer, gradient_step, largest_weight, lr_multiplier
from utils.scripts import progress_bar
from utils.seeds import endless_order, epoch_order, mixed_seed
from utils.signals import Stopped, signals_wait, stop_requested

MAX_WEIGHT = 1e10  # no training that converges comes near it; the loss may stay finite behind a BatchNorm
LOG_EVERY = 10  # steps between TensorBoard points and checks that the loss is finite

# (indices of the local batch, epoch, step in the epoch) -> {"loss": ..., other scalars to log}
StepFunction = Callable[[Tensor, int, int], Mapping[str, Tensor]]
# (epochs done, global step, the epoch's mean metrics) -> more columns of the epoch's row in metrics.csv
EpochFunction = Callable[[int, int, Mapping[str, float]], Mapping[str, float]]


def fit(
    module: nn.Module,
    step: StepFunction,
    end_of_epoch: EpochFunction,
    indices: np.ndarray,
    config: FitConfig,
    run: Run,
    lr_factors: Mapping[str, float] | None = None,
    steps_per_epoch: int | None = None,
    show_progress: bool = True,
    until: int | None = None,
) -> None:
    """Train `module`, which is on its device, on the images `indices` for `config.num_epochs` epochs.

    The order of an epoch and every random number inside a step are functions of (seed, epoch, step), so a run
    resumed from `run.checkpoint()`, even in the middle of an epoch, is bit-identical to an undisturbed one.
    The last incomplete batch of an epoch is left out, since the loss depends on the size of the batch.
    `end_of_epoch` runs in eval mode, on every process. `lr_factors`: see `build_optimizer`. Frozen parts stay
    in eval mode, and are asserted to be bit-identical afterwards.
    `until` ends the training after so many epochs of the whole schedule, with a checkpoint: the next call continues.
    With `steps_per_epoch`, an epoch is that many steps of an endless sequence of shuffled passes, however few images
    there are; otherwise it is one pass.
    A checkpoint is written every `checkpoint_minutes`, after a step or an evaluation, and when a signal asks the script
    to end (utils.scripts), which it then does.

    Raises UserError for a batch larger than the data, a setting that does not exist, a checkpoint that does not
    fit, or a loss or weight that is not finite (the last good checkpoint stays; diverged.json has the step).
    """
    if steps_per_epoch is None:  # an endless sequence of passes has enough images for any batch
        check_batch_size(config.batch_size, len(indices))
    show = show_progress and run.is_writer
    loop = _Loop(module, step, indices, config, run, lr_factors, steps_per_epoch, show)
    frozen = frozen_tensors(module)
    loop.resume()
    with signals_wait():
        while loop.progress.epoch < (until or config.num_epochs):
            images_per_second = loop.run_epoch()
            loop.finish_epoch(end_of_epoch, images_per_second)
        if loop.progress.epoch < config.num_epochs:
            loop.save()
    loop.bar.close()
    assert_unchanged(module, frozen)


def check_batch_size(batch_size: int, num_images: int) -> None:
    """Raise UserError for a batch larger than the data, or one that the processes cannot share evenly."""
    if num_images < batch_size:
        raise UserError(
            f"batch_size is {batch_size} but there are {num_images} training images; "
            "lower batch_size or use more images."
        )
    distributed.local_batch_size(batch_size)


@dataclass(frozen=True)
class Step:
    """A step that was taken: its epoch and place there from 0, learning rate, indices of the batch, and metrics."""

    epoch: int
    step: int
    lr: float
    batch: Tensor
    metrics: Mapping[str, Tensor]

    def facts(self) -> dict[str, Any]:
        """Return it as plain values, epoch and step counted from 1; this waits for the device."""
        metrics = {name: value.item() for name, value in self.metrics.items()}
        return {"epoch": self.epoch + 1, "step": self.step + 1, "lr": self.lr, **metrics, "batch": self.batch.tolist()}


@dataclass
class Progress:
    """Epochs done, steps done in the current epoch, and the sums of its metrics so far."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Count a step."""
        for name, value in metrics.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.step += 1

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the epoch's steps; this waits for the device."""
        return {f"train/{name}": (total / self.step).item() for name, total in self.sums.items()}


class _Loop:
    def __init__(
        self,
        module: nn.Module,
        step: StepFunction,
        indices: np.ndarray,
        config: FitConfig,
        run: Run,
        lr_factors: Mapping[str, float] | None,
        steps_per_epoch: int | None,
        show_progress: bool,
    ):
        self.module, self.step, self.indices, self.config, self.run = module, step, indices, config, run
        self.device = next(module.parameters()).device
        self.dtype = choose_precision(config.precision, self.device)
        self.local_batch_size = distributed.local_batch_size(config.batch_size)
        self.endless = steps_per_epoch is not None
        self.steps_per_epoch = steps_per_epoch or len(indices) // config.batch_size
        self.optimizer = build_optimizer(module, config, lr_factors)
        self.progress = Progress()
        self.recent: list[Step] = []  # since the last check of the loss
        self.show, self.saved = show_progress, time.monotonic()

    @property
    def global_step(self) -> int:
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def resume(self) -> None:
        """Continue from the run's checkpoint, if there is one, and open the progress bar there."""
        state = self.run.checkpoint()
        if state is not None:
            self.load(state)
            self.say(f"resuming {self.run} at epoch {self.progress.epoch + 1}, step {self.progress.step + 1}")
        batch_size, steps = self.config.batch_size, self.config.num_epochs * self.steps_per_epoch
        done = self.global_step * batch_size
        self.bar = progress_bar(steps * batch_size, "training", done, show=self.show)

    def load(self, state: Mapping[str, Any]) -> None:
        """Load a checkpoint; UserError if it belongs to another model."""
        try:
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            sums = {name: value.to(self.device) for name, value in state["sums"].items()}
            self.progress = Progress(state["epoch"], state["step"], sums)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the checkpoint in {self.run} does not fit this model ({str(error).splitlines()[0]}); "
                "choose another run_name or delete that folder."
            ) from error

    def run_epoch(self) -> float:
        """Run the remaining steps of this epoch; return images per second."""
        progress, config = self.progress, self.config
        order = self.order()
        train_mode(self.module)
        start, first_step = time.perf_counter(), progress.step
        while progress.step < self.steps_per_epoch:
            self.take_step(order)
            stopping = self.is_stopping()
            if stopping or (self.is_due() and progress.step < self.steps_per_epoch):
                self.save()
            if stopping:
                raise Stopped
        images = (progress.step - first_step) * config.batch_size
        return images / (time.perf_counter() - start)

    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough for another one."""
        return time.monotonic() >= self.saved + 60 * self.config.checkpoint_minutes

    def is_stopping(self) -> bool:
        """Whether a signal has asked this process to end; of several processes, which stop together, any of them."""
        if distributed.world_size() == 1:
            return stop_requested()
        asked = self.progress.step % LOG_EVERY == 0
        return asked and distributed.any_process(stop_requested(), self.device)

    def order(self) -> np.ndarray:
        """Return the images of the current epoch in their order."""
        seed, epoch = self.config.random_seed, self.progress.epoch
        if not self.endless:
            return epoch_order(self.indices, seed, epoch)
        images = self.steps_per_epoch * self.config.batch_size
        return endless_order(self.indices, seed, epoch * images, images)

    def take_step(self, order: np.ndarray) -> None:
        """Take one optimiser step with this process's share of the batch."""
        progress, config = self.progress, self.config
        lr = config.lr * lr_multiplier(self.global_step, self.steps_per_epoch, config)
        # dropout and stochastic depth draw from torch's global generator
        torch.manual_seed(mixed_seed("dropout", config.random_seed, progress.epoch, progress.step, distributed.rank()))
        first = progress.step * config.batch_size + distributed.rank() * self.local_batch_size
        batch = torch.from_numpy(order[first : first + self.local_batch_size])
        forward = functools.partial(self.step, batch, progress.epoch, progress.step)
        with memory_for(config.batch_size):
            metrics = gradient_step(self.module, self.optimizer, forward, lr, config.gradient_clip, self.dtype)
        self.recent.append(Step(progress.epoch, progress.step, lr, batch, metrics))
        progress.add(metrics)
        self.bar.update(config.batch_size)
        if progress.step % LOG_EVERY == 0 or progress.step == self.steps_per_epoch:
            self.report(metrics, lr)

    def report(self, metrics: Mapping[str, Tensor], lr: float) -> None:
        """Check the loss and log it; reading it waits for the device, so this is not done in every step."""
        self.check_finite()
        scalars = {f"train/{name}": value.item() for name, value in metrics.items()}
        self.run.log(self.global_step, {**scalars, "lr": lr})
        self.bar.set_postfix(loss=f"{scalars['train/loss']:.4g}", refresh=False)

    def check_finite(self) -> None:
        """Raise UserError if a loss since the last check was not finite, or a weight is not or is enormous."""
        finite = [math.isfinite(step.metrics["loss"].item()) for step in self.recent]
        largest = largest_weight(self.module)
        if all(finite) and largest <= MAX_WEIGHT:
            self.recent.clear()
            return
        at = self.recent[finite.index(False)] if not all(finite) else self.recent[-1]
        self.run.save_json("diverged", {**at.facts(), "largest_weight": largest})
        what = "the loss is not finite" if not all(finite) else f"a weight has reached {largest:.2g}"
        kept = "keeps the last good checkpoint" if self.run.checkpoint() else "has no checkpoint yet"
        raise UserError(
            f"{what} at epoch {at.epoch + 1}, step {at.step + 1}; {self.run} {kept}, and diverged.json the step's "
            'numbers and images (rows of split.csv). Lower lr, set gradient_clip, or use precision "float32", under '
            "another run_name."
        )

    def finish_epoch(self, end_of_epoch: EpochFunction, images_per_second: float) -> None:
        """Evaluate, write the epoch's row, save."""
        means, trained = self.progress.means(), self.progress
        self.progress = Progress(epoch=trained.epoch + 1)
        self.module.eval()
        try:
            with torch.no_grad(), signals_wait(False), memory_for(self.config.batch_size):
                extra = dict(end_of_epoch(self.progress.epoch, self.global_step, means))
        except Stopped:
            self.progress = trained
            self.save()
            raise
        extra["time/images_per_second"] = images_per_second
        self.run.log(self.global_step, extra)
        self.run.add_row({"epoch": self.progress.epoch, "step": self.global_step, **means, **extra})
        self.say(_line(self.run.rows[-1], self.config.num_epochs))
        self.check_finite()
        if self.is_due() or self.is_stopping():
            self.save()

    def save(self) -> None:
        self.check_finite()
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        progress = {"epoch": self.progress.epoch, "step": self.progress.step, "sums": self.progress.sums}
        self.run.save_checkpoint({**state, **progress})
        self.saved = time.monotonic()

    def say(self, line: str) -> None:
        if self.show:
            tqdm.write(line, file=sys.stderr)


def _line(row: Mapping[str, float], num_epochs: int) -> str:
    shown = {
        "loss": "train/loss",
        "rank": "health/rank",
        "linear probe": "probe/linear",
        "kNN": "probe/knn",
        "images/s": "time/images_per_second",
    }
    values = [f"{label} {row[key]:.4g}" for label, key in shown.items() if key in row]
    return f"epoch {row['epoch']}/{num_epochs}: {', '.join(values)}"
