"""Run: the only code that writes under runs/."""

import importlib.metadata
import io
import json
import math
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils import distributed
from utils.config import REPO_ROOT, RUNS_ROOT, Config, UserError, as_dict
from utils.files import write_atomically, write_json, write_text
from utils.locks import try_lock


class Run:
    """One folder under runs/: config, environment, metrics, TensorBoard events, figures, checkpoint, summary.

    Opening it again with the same config resumes (`checkpoint()`) or, when finished, gives the stored
    `summary`. Under torchrun every process opens the run and the first one alone writes; the folder
    must be on a disk that all of them see.
    """

    def __init__(self, name: str, config: "Config | Mapping[str, Any]", kind: str, runs_root: Path = RUNS_ROOT):
        """Open the folder `name`, which `kind` of run ("pretraining", "comparison", ...) is recorded with.

        Raises UserError if the folder holds a run with another config, or something that is not a run.
        """
        config = as_dict(config)
        self.name, self.folder, self.kind, self._root = name, runs_root / name, kind, runs_root
        if not self.folder.resolve().is_relative_to(runs_root.resolve()):
            raise UserError(f"run_name is {name!r}, which lies outside {runs_root}; give a name such as 'covid/first'.")
        self.is_writer = distributed.rank() == 0
        self.rows: list[dict[str, float]] = []
        self._check(config)
        self.config = config
        self.summary = read_json(self.folder / "summary.json")
        self._writer: SummaryWriter | None = None
        self._lock: FileLock | None = None

    def __str__(self) -> str:
        inside = self.folder.is_relative_to(REPO_ROOT)
        return str(self.folder.relative_to(REPO_ROOT) if inside else self.folder)

    def _check(self, config: Mapping[str, Any]) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise UserError(f"{self} is a file, no run's folder; move it, or choose another run_name.")
        stored = read_json(self.folder / "config.json")
        if stored is None and any(path.name[0] != "." for path in self.folder.iterdir()):
            raise UserError(f"{self} holds files but no config.json, so it is no run; choose another run_name.")
        keys: list[str] = sorted({*(stored or {}), *config})
        different = [
            f"{key} ({_value(stored, key)} there, {_value(config, key)} now)"
            for key in keys
            if stored is not None and _value(stored, key) != _value(config, key)
        ]
        if different:
            raise UserError(
                f"{self} holds a run with another config: {', '.join(different)}. "
                "Nothing was changed; choose another run_name or delete that folder."
            )

    def start(self, alone: bool = True, **facts: Any) -> None:
        """Create the folder, once all that can be wrong has been checked: config.json and environment.json.

        `alone` keeps other processes out until the run is finished or this process ends: UserError for the second.
        The latter holds command, commit, versions, and the `facts` that the caller knows (plain JSON values), by
        which a run that is resumed must agree: UserError if the data or the number of processes are others.
        """
        now = {"kind": self.kind, "processes": distributed.world_size(), **facts}
        before = read_json(self.folder / "environment.json")
        different = [key for key in now if before is not None and before.get(key) != now[key]]
        if different:
            raise UserError(
                f"{self} was begun with other {' and '.join(different)} (environment.json there says which), and "
                "cannot be resumed to the same end; restore them, or choose another run_name."
            )
        if alone and self.is_writer and not self.try_lock():
            raise UserError(f"another process is at work on {self}; wait for it, or choose another run_name.")
        if self.is_writer and before is None:
            write_json(self.folder / "config.json", self.config)
            write_json(self.folder / "environment.json", {**_environment(), **now})

    # --- what happens while training ---

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """TensorBoard scalars at an optimiser step."""
        if self.is_writer:
            for tag, value in scalars.items():
                self._tensorboard(step).add_scalar(tag, value, step)

    def add_row(self, row: Mapping[str, float]) -> None:
        """One more row of metrics.csv (the file is rewritten whole); every process keeps `rows`."""
        self.rows.append(dict(row))
        self.save_table("metrics", pd.DataFrame(self.rows))

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """<name>.csv, rewritten whole."""
        if self.is_writer:
            write_text(self.folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))

    def save_json(self, name: str, value: Any) -> None:
        """<name>.json, rewritten whole."""
        if self.is_writer:
            write_json(self.folder / f"{name}.json", _plain(value))

    def save_figure(self, name: str, figure: Figure, step: int | None = None) -> None:
        """figures/<name>.png, and the same picture in TensorBoard when a step is given."""
        if self.is_writer:
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
            write_atomically(self.folder / "figures" / f"{name}.png", lambda file: file.write(picture.getvalue()))
            if step is not None:
                self._tensorboard(step).add_image(name, _pixels(picture), step, dataformats="HWC")

    def save_picture(self, name: str, pixels: np.ndarray) -> None:
        """<name>.png of pixels uint8 [H, W, 3]."""
        if self.is_writer:
            path = self.folder / f"{name}.png"
            write_atomically(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))

    def save_embedding(self, tag: str, features: np.ndarray, labels: list[str], thumbnails: np.ndarray) -> None:
        """TensorBoard's projector: features [N, F] with a label and a thumbnail, [N, 1, H, W] in 0..1, each."""
        if self.is_writer:
            pictures = torch.from_numpy(thumbnails).float()
            self._tensorboard(0).add_embedding(torch.from_numpy(features), labels, pictures, global_step=0, tag=tag)

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """checkpoint.pt, replaced in one rename; `state` holds tensors and plain values only."""
        if self.is_writer:
            whole = {"rows": self.rows, **state}
            write_atomically(self.folder / "checkpoint.pt", lambda file: torch.save(whole, file))
            if self._writer is not None:
                self._writer.flush()

    def checkpoint(self) -> dict[str, Any] | None:
        """What `save_checkpoint` last wrote (CPU tensors), or None; puts `rows` back to that moment."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.rows = state.pop("rows")
        except Exception as error:  # torch raises many types for the many ways in which a file can be broken
            raise UserError(
                f"{path} cannot be read ({str(error).splitlines()[0]}); delete the run's folder to start again."
            ) from error
        return state

    def drop_checkpoint(self) -> None:
        """A finished run needs no checkpoint.pt."""
        if self.is_writer:
            (self.folder / "checkpoint.pt").unlink(missing_ok=True)

    def drop_weights(self) -> None:
        """Delete checkpoint.pt and the state_dicts: a trial of a search needs none once its score is known."""
        self.drop_checkpoint()
        if self.is_writer:
            for path in self.folder.glob("*_state_dict.pt"):
                path.unlink()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """summary.json, the last file: its presence means done. A training goes to TensorBoard's HParams."""
        self.summary = _plain(dict(summary))
        if self.is_writer:
            if self._writer is not None:
                self._write_hparams(self._writer)
                self._writer.close()
            write_json(self.folder / "summary.json", self.summary)
        self.unlock()

    # --- a trial of a sweep, which others may be at work on, and which may fail ---

    def try_lock(self) -> bool:
        """Whether this process alone may work on the run, until `unlock` or its end, however it ends."""
        self._lock = self._lock or try_lock(self.folder / ".lock")
        return self._lock is not None

    def unlock(self) -> None:
        """Let other processes have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def reread(self) -> None:
        """Look again for the summary, which another process may have written."""
        self.summary = read_json(self.folder / "summary.json")

    def inner_runs(self, except_for: Collection[str]) -> dict[str, "Run"]:
        """Return the trials of earlier calls in this folder, by name, `except_for` those named."""
        found = {}
        for path in sorted(self.folder.glob("*/environment.json")):
            name, environment = path.parent.name, read_json(path) or {}
            if name not in except_for and environment.get("kind") == "trial":
                found[name] = Run(
                    f"{self.name}/{name}", read_json(path.with_name("config.json")) or {}, "trial", self._root
                )
        return found

    @property
    def error(self) -> str:
        """What `fail` recorded; "" if it was never called, or the run was finished since."""
        path = self.folder / "error.txt"
        return path.read_text(encoding="utf-8") if path.exists() and self.summary is None else ""

    @property
    def failed_at(self) -> int | None:
        """What tells one failure from the next; None if there is no error.txt."""
        path = self.folder / "error.txt"
        return path.stat().st_mtime_ns if path.exists() else None

    def fail(self, error: str) -> None:
        """error.txt: why the run could not be finished."""
        if self.is_writer:
            write_text(self.folder / "error.txt", error)

    def _write_hparams(self, writer: SummaryWriter) -> None:
        """A training's config; TensorBoard ranks by any scalar, as long as no run brings a list of metrics with it."""
        if self.rows:
            _, start, end = hparams(_flat(self.config), {})
            writer._get_file_writer().add_summary(start)
            writer._get_file_writer().add_summary(end)

    def _tensorboard(self, step: int) -> SummaryWriter:
        if self._writer is None:  # events after the checkpoint that we resume from are struck out, those of a row kept
            kept = int(self.rows[-1]["step"]) + 1 if self.rows and "step" in self.rows[-1] else 0
            self._writer = SummaryWriter(str(self.folder), purge_step=max(step, kept))
        return self._writer


def read_json(path: Path) -> dict[str, Any] | None:
    """A run's JSON file, None if there is none. Raises UserError if it holds no JSON object."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); mend it or delete the run's folder.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; mend it or delete the run's folder.")
    return value


def _value(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key]) if key in config else "absent"


def _plain(value: Any) -> Any:
    """JSON has no NaN: null says that a number is not known."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """A config as HParams takes it: nested keys with a dot, lists as text."""
    flat: dict[str, bool | float | str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat


def _pixels(picture: io.BytesIO) -> np.ndarray:
    return np.asarray(Image.open(picture).convert("RGB"))


def _environment() -> dict[str, Any]:
    packages = ["torch", "torchvision", "numpy", "pandas", "pillow", "scikit-learn"]
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _commit() -> str:
    try:
        arguments = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(
            arguments, cwd=REPO_ROOT, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
