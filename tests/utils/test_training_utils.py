"""The engine: resuming to the bit, the order of an epoch, schedules, refusals."""

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from utils import signals, tensor_files, training_utils
from utils.config import UserError
from utils.logging_utils import Run
from utils.optimisation import FitConfig, build_optimizer, lr_multiplier
from utils.signals import Stopped
from utils.training_utils import fit

CONFIG = FitConfig(
    random_seed=3,
    num_epochs=3,
    batch_size=8,
    optimizer="adamw",
    lr=1e-2,
    optimizer_weight_decay=1e-2,
    scheduler="cosine",
    warmup_epochs=1,
    gradient_clip=1.0,
    precision="float32",
    checkpoint_minutes=0,  # after each step
)
X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


class Killed(Exception):
    pass


@dataclass
class Task:
    """Regression by a network with dropout and BatchNorm, that can be killed before a given step."""

    folder: Path
    config: FitConfig
    kill_at: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 1))
        self.seen: list[list[int]] = []
        self.modes: set[bool] = set()

    def step(self, batch: Tensor, epoch: int, step: int) -> Mapping[str, Tensor]:
        if (epoch, step) == self.kill_at:
            raise Killed
        assert self.module.training
        self.seen.append(batch.tolist())
        loss = (self.module(X[batch]) - Y[batch]).square().mean()
        return {"loss": loss, "twice": 2 * loss}

    def end_of_epoch(self, epoch: int, step: int, means: Mapping[str, float]) -> Mapping[str, float]:
        assert not self.module.training
        return {"val/error": (self.module(X) - Y).square().mean().item()}

    def fit(self) -> Run:
        self.run = run = Run("run", self.config, "pretraining", self.folder)
        run.start()
        fit(self.module, self.step, self.end_of_epoch, np.arange(60), self.config, run)
        return run


def assert_same(one: Task, other: Task) -> None:
    """Their weights and numbers are the same, bit by bit."""
    for mine, theirs in zip(one.module.state_dict().values(), other.module.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    rows, others = (pd.read_csv(task.run.folder / "metrics.csv") for task in (one, other))
    timeless = [column for column in rows if column != "time/images_per_second"]
    pd.testing.assert_frame_equal(rows.filter(timeless), others.filter(timeless), check_exact=True)


@pytest.mark.parametrize("kill_at", [(0, 1), (0, 5), (1, 0), (1, 3), (2, 6)])
def test_a_killed_run_resumes_to_the_bit(tmp_path: Path, kill_at: tuple[int, int]) -> None:
    undisturbed, resumed = Task(tmp_path / "a", CONFIG), Task(tmp_path / "b", CONFIG)
    undisturbed.fit()
    with pytest.raises(Killed):
        Task(tmp_path / "b", CONFIG, kill_at).fit()
    resumed.fit()
    assert_same(undisturbed, resumed)


@pytest.mark.parametrize(("stop_at", "resumes_at"), [("step", (1, 3)), ("evaluation", (0, 7))])
def test_a_signal_finishes_the_step_and_writes_a_checkpoint(
    tmp_path: Path, stop_at: str, resumes_at: tuple[int, int], signals_here: None
) -> None:
    undisturbed, stopped, resumed = (Task(tmp_path / name, CONFIG) for name in "abb")
    undisturbed.fit()
    step, end_of_epoch = stopped.step, stopped.end_of_epoch

    def signalled_step(batch: Tensor, epoch: int, number: int) -> Mapping[str, Tensor]:
        if (stop_at, epoch, number) == ("step", 1, 2):
            signal.raise_signal(signal.SIGTERM)
        return step(batch, epoch, number)

    def signalled_evaluation(epoch: int, number: int, means: Mapping[str, float]) -> Mapping[str, float]:
        if stop_at == "evaluation":
            signal.raise_signal(signal.SIGTERM)
        return end_of_epoch(epoch, number, means)

    stopped.step, stopped.end_of_epoch = signalled_step, signalled_evaluation  # type: ignore[method-assign]
    with pytest.raises(Stopped) as caught:
        stopped.fit()
    assert caught.value.code == 128 + signal.SIGTERM
    state = Run("run", CONFIG, "pretraining", tmp_path / "b").checkpoint()
    assert state is not None and (state["epoch"], state["step"]) == resumes_at
    signals._signals.number = 0
    stopped.run.unlock()
    resumed.fit()
    assert_same(undisturbed, resumed)


def test_checkpoints_are_written_by_the_clock_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a minute, an evaluation none: checkpoints after steps 5, 10, 15 of 21, in epochs of 7."""
    config, minutes, saved = replace(CONFIG, checkpoint_minutes=5), iter(range(0, 10**6, 60)), []
    now = [next(minutes)]
    monkeypatch.setattr(training_utils.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Run, "save_checkpoint", lambda run, state: saved.append((state["epoch"], state["step"])))
    task = Task(tmp_path, config)
    step = task.step

    def minute(batch: Tensor, epoch: int, number: int) -> Mapping[str, Tensor]:
        now[0] = next(minutes)
        return step(batch, epoch, number)

    task.step = minute  # type: ignore[method-assign]
    task.fit()
    assert saved == [(0, 5), (1, 3), (2, 1), (2, 6)]


@pytest.mark.parametrize("damage", ["one bit", "truncated", "empty"])
def test_a_damaged_checkpoint_is_one_sentence_and_not_overwritten(tmp_path: Path, damage: str) -> None:
    with pytest.raises(Killed):
        Task(tmp_path, CONFIG, kill_at=(0, 1)).fit()
    path = tmp_path / "run" / "checkpoint.pt"
    content, middle = path.read_bytes(), path.stat().st_size // 2
    flipped = content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]
    path.write_bytes({"one bit": flipped, "truncated": content[:middle], "empty": b""}[damage])
    left = path.read_bytes()
    with pytest.raises(UserError, match=r"checkpoint.pt is damaged \(.*\); restore it, or delete the run's folder"):
        Task(tmp_path, CONFIG).fit()
    assert path.read_bytes() == left


def test_an_epoch_visits_each_image_once_but_the_last_short_batch(tmp_path: Path) -> None:
    task = Task(tmp_path, CONFIG)
    run = task.fit()
    steps = 60 // 8
    assert len(task.seen) == 3 * steps
    for start in range(0, 3 * steps, steps):
        seen = np.concatenate(task.seen[start : start + steps]).tolist()
        assert len(seen) == len(set(seen)) == steps * 8
    assert [row["step"] for row in run.rows] == [7, 14, 21]
    assert run.rows[0]["train/twice"] == pytest.approx(2 * run.rows[0]["train/loss"])
    assert run.rows[-1]["val/error"] < run.rows[0]["val/error"]


def test_schedules() -> None:
    def curve(**changes: object) -> list[float]:
        config = replace(CONFIG, num_epochs=10, **changes)  # type: ignore[arg-type]
        return [lr_multiplier(step, 4, config) for step in range(40)]

    assert curve(scheduler="constant", warmup_epochs=0) == [1.0] * 40
    assert curve(scheduler="constant", warmup_epochs=1)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for value in curve(scheduler="cosine", warmup_epochs=0):
        assert value == pytest.approx(torchs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        torchs.step()
    multiplicative = curve(scheduler="multiplicative", warmup_epochs=0)
    assert multiplicative[4] / multiplicative[0] == pytest.approx(0.631, abs=1e-3)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_weight_decay_leaves_biases_and_batchnorm_alone(name: str) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    decayed, rest = build_optimizer(module, replace(CONFIG, optimizer=name)).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (1e-2, 0)
    assert rest["lr_factor"] == (0.024 if name == "lars" else 1)
    assert [p.ndim for p in decayed["params"]] == [2]
    assert len(rest["params"]) == 3


@pytest.mark.parametrize(
    ("at", "kept"), [((1, 4), "keeps the last good checkpoint"), ((0, 0), "has no checkpoint yet")]
)
@pytest.mark.parametrize("what", ["loss", "weight"])
def test_what_diverges_is_never_saved_and_its_step_is_written_down(
    tmp_path: Path, what: str, at: tuple[int, int], kept: str
) -> None:
    task = Task(tmp_path, CONFIG)
    original, batches = task.step, []

    def poisoned(batch: Tensor, epoch: int, step: int) -> Mapping[str, Tensor]:
        metrics = dict(original(batch, epoch, step))
        if (epoch, step) == at:
            batches.append(batch.tolist())
            if what == "weight":
                task.module[3].weight.data.mul_(1e15)  # type: ignore[operator, union-attr]
        return {**metrics, "loss": metrics["loss"] * (float("inf") if (epoch, step) == at and what == "loss" else 1)}

    task.step = poisoned  # type: ignore[method-assign]
    said = {
        "loss": f"the loss is not finite at epoch {at[0] + 1}, step {at[1] + 1}",
        "weight": r"a weight has reached \d",
    }
    with pytest.raises(UserError, match=f"{said[what]}.*{kept}"):
        task.fit()
    state = Run("run", CONFIG, "pretraining", tmp_path).checkpoint()
    assert (state is None) == (at[0] == 0)
    if state is not None:
        assert max(value.abs().max() for value in state["module"].values()) < 100
    record = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert record["largest_weight"] is None or what == "weight"
    if what == "loss":
        assert (record["epoch"], record["step"], record["batch"]) == (at[0] + 1, at[1] + 1, batches[0])
        assert {"lr", "loss", "twice"} <= set(record)


def test_settings_and_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 61 but there are 60 training images"):
        Task(tmp_path, replace(CONFIG, batch_size=61)).fit()
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        replace(CONFIG, scheduler="cosin")
    with pytest.raises(UserError, match="warmup_epochs is 3 of 3"):
        replace(CONFIG, warmup_epochs=3)
    with pytest.raises(Killed):
        Task(tmp_path / "killed", CONFIG, kill_at=(1, 0)).fit()
    other = Task(tmp_path / "killed", CONFIG)
    other.module = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1))
    with pytest.raises(UserError, match="does not fit this model"):
        other.fit()


def test_a_checkpoint_that_memory_does_not_hold_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        Task(tmp_path, CONFIG, kill_at=(0, 1)).fit()

    def refused(path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(tensor_files, "read_tensors", refused)
    with pytest.raises(MemoryError):
        Task(tmp_path, CONFIG).fit()
