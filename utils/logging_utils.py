"""Run: the only code that writes under runs/."""

import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils import distributed
from utils.config import (
    PACE,
    PLACES,
    REPO_ROOT,
    RUNS_ROOT,
    VERSION,
    Config,
    Gone,
    UserError,
    as_dict,
    check_run_name,
    differences,
    flat,
    repo_path,
    up_to_date,
)
from utils.distributed import exclusive_lock, holder, try_lock
from utils.facts import LISTED, changes_since
from utils.files import (
    plain_json,
    plain_refusals,
    read_json,
    remove_leftovers,
    write_atomically,
    write_json,
    write_table,
    write_text,
)
from utils.hardware import changes, environment
from utils.messages import say
from utils.plots import write_figure
from utils.tensor_files import read_checkpoint, write_tensors

LEFTOVER_AGE = 3600.0  # seconds; a file that another process of a shared run is writing is younger
Look = Callable[[], Mapping[str, Any]]  # see Run
loggers: list[Callable[["Run", int, Mapping[str, float]], None]] = []  # called beside TensorBoard; docs/EXTENDING.md


class Run:
    """One folder under runs/: config, environment, metrics, TensorBoard events, figures, checkpoint, summary.

    Opening it again with the same config resumes it (`checkpoint()`) or, if it is finished, returns the stored
    `summary`. Under torchrun every process opens the run and only the first one writes; the folder must be on a disk
    that all of them see.
    """

    def __init__(
        self,
        name: str,
        config: "Config | Mapping[str, Any]",
        kind: str,
        runs_root: Path = RUNS_ROOT,
        *,
        look: Look | None = None,
        keys_of: type[Config] | None = None,
    ):
        """Open the folder `name`; environment.json records the `kind` of run ("pretraining", "comparison", ...).

        look     returns facts about what the run reads, as `start` gets them, from tables and names alone; a finished
                 run compares them with those that it recorded. It raises Gone if the data are not there any more, and
                 the run says so.
        keys_of  the class whose keys `config` holds, if that is a dict: an older run may lack some of them

        Raises UserError if the folder holds a run with another config, a finished one on other data, or anything else.
        """
        check_run_name(name, runs_root)
        self.name, self.folder, self.kind, self.root = name, runs_root / name, kind, runs_root
        self.is_writer = distributed.rank() == 0
        self.rows: list[dict[str, float]] = []
        self.config, self._typed, self._keys_of = as_dict(config), config, keys_of
        self.summary = read_json(self.folder / "summary.json")
        self._check()
        if self.summary is not None and look is not None:
            self._compare_data(look)
        self._checkpoint = self.folder / "checkpoint.pt"
        self._writer: SummaryWriter | None = None
        self._lock: FileLock | None = None
        self._note = self.folder / ".holder"

    def __str__(self) -> str:
        inside = self.folder.is_relative_to(REPO_ROOT)
        return str(self.folder.relative_to(REPO_ROOT) if inside else self.folder)

    def _check(self) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise UserError(f"{self} is a file, expected a folder; move it, or choose another run_name.")
        stored = read_json(self.folder / "config.json")
        if stored is None and any(path.name[0] != "." for path in self.folder.iterdir()):
            raise UserError(f"{self} has files but no config.json, so it is not a run; choose another run_name.")
        there, now = flat(self._up_to_date(stored or {})), flat(self.config)
        finished = self.summary is not None  # nothing of it is done again
        unknown = {key: there.pop(key) for key in [*there] if finished and key not in now}
        if stored is not None and (different := differences(there, self.config, leave_out=(*PLACES, *PACE))):
            self._refuse(f"holds a run with another config: {', '.join(different)}")
        if unknown:
            self._say(f"has keys that this version does not know, and does not compare: {json.dumps(unknown)}")

    def _up_to_date(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return a stored config as this version would have written it."""
        version, now = stored.get("version", 1), self._typed
        values = {key: value for key, value in stored.items() if key != "version"}
        kind = type(now) if isinstance(now, Config) else self._keys_of
        if kind is not None:
            values = {k: v for k, v in up_to_date(kind, stored).items() if k in stored or k in self.config}
        inner = {} if isinstance(now, Config) else {key: value for key, value in now.items() if key in stored}
        found = {k: up_to_date(type(v), stored[k], version) for k, v in inner.items() if isinstance(v, Config)}
        return values | found

    def _refuse(self, what: str) -> NoReturn:
        way = "choose another run_name or delete" if "run_name" in self.config else "delete"
        raise UserError(f"{self} {what}. Nothing was changed; {way} that folder.")

    def _say(self, text: str) -> None:
        if self.is_writer:
            say(f"note: {self} {text}")

    def _compare_data(self, look: Look) -> None:
        """Raise UserError if a finished run was made from other data or weights; say so if that cannot be known."""
        recorded = read_json(self.folder / "environment.json") or {}
        stored = read_json(self.folder / "config.json") or {}
        elsewhere = [key for key in PLACES if key in stored and key in self.config and self._moved(stored[key], key)]
        try:
            found = look()
        except Gone as error:
            if elsewhere:
                raise
            self._say(f"is finished; whether its data have changed is not known: {error}")
            return
        if changed := changes_since(recorded, found):
            self._refuse(f"was made from other data: {', '.join(changed)}")
        known = set(found) <= set(recorded) and LISTED in recorded.get("data", [LISTED])
        if elsewhere and not known:
            moved = differences(*({key: one[key] for key in elsewhere} for one in (stored, self.config)))
            self._refuse(f"holds a run with another config: {', '.join(moved)}")
        if not known:
            self._say("is of a version that did not record its data, so it is not known whether they have changed")

    def _moved(self, there: Any, key: str) -> bool:
        """Whether paths of a config lead elsewhere, however they are written."""
        now = self.config[key]
        paths = [[repo_path(path) for path in (side if isinstance(side, list) else [side])] for side in (there, now)]
        return paths[0] != paths[1]

    def start(self, alone: bool = True, **facts: Any) -> None:
        """Create the folder with config.json and environment.json; call it once everything else has been checked.

        environment.json holds command, commit, versions, the kind and the caller's `facts` (plain JSON values).
        If a run is resumed with other versions, commit or threads, warns and adds them there as `resumed`.
        `alone` locks the run until it is finished or this process ends. Raises UserError if another process holds the
        lock, if one started the run under another config or finished it since this one opened it, or if the run is
        resumed with other facts: other data, another number of processes.
        """
        if alone and self.is_writer and not self.try_lock():
            raise UserError(f"{holder(self._note)} is running {self}; wait for it, or choose another run_name.")
        shared = self.is_writer and not alone
        with exclusive_lock(self.folder / ".lock", f"starting {self}") if shared else nullcontext():
            if self.is_writer:
                remove_leftovers(self.folder, age=0 if alone else LEFTOVER_AGE)
            self._check()
            self.reread()
            if alone and self.summary is not None:
                raise UserError(f"another process has just finished {self}; the same command shows its summary.")
            self._record({"kind": self.kind, "processes": distributed.world_size(), **facts})

    def _record(self, now: Mapping[str, Any]) -> None:
        """Write config.json and environment.json, or compare `now` with what a resumed run was started with."""
        before = read_json(self.folder / "environment.json")
        if different := changes_since(before or {}, plain_json(dict(now))):
            self._refuse(
                f"was started with other {', '.join(different)} (see its environment.json), so resuming would not "
                "give the same result"
            )
        if not self.is_writer:
            return
        if before is None:
            self._write_config()
            write_json(self.folder / "environment.json", {**environment(), **now})
            return
        resumed, present = before.get("resumed", []), environment()
        if changed := changes([before, *resumed][-1], present):
            say(f"warning: {self} resumes with another {changed}; it may end differently")
            write_json(self.folder / "environment.json", {**before, "resumed": [*resumed, present]})

    def _write_config(self) -> None:
        write_json(self.folder / "config.json", {"version": VERSION, **self.config})

    # --- what happens while training ---

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write TensorBoard scalars at an optimiser step, and tell `loggers`."""
        if self.is_writer:
            for tag, value in scalars.items():
                self._tensorboard(step).add_scalar(tag, value, step)
            for logger in loggers:
                logger(self, step, scalars)

    def add_row(self, row: Mapping[str, float]) -> None:
        """Add a row to metrics.csv; every process keeps `rows`."""
        self.rows.append(dict(row))
        self.save_table("metrics", pd.DataFrame(self.rows))

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Write <name>.csv."""
        if self.is_writer:
            write_table(self.folder / f"{name}.csv", table)

    def save_json(self, name: str, value: Any) -> None:
        """Write <name>.json."""
        if self.is_writer:
            write_json(self.folder / f"{name}.json", value)

    def save_figure(self, name: str, figure: Figure, step: int | None = None) -> None:
        """Write figures/<name>.png and, if a step is given, the same picture to TensorBoard."""
        if self.is_writer:
            png = write_figure(self.folder / "figures" / f"{name}.png", figure)
            if step is not None:
                pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
                self._tensorboard(step).add_image(name, pixels, step, dataformats="HWC")

    def save_picture(self, name: str, pixels: np.ndarray) -> None:
        """Write <name>.png from pixels uint8 [H, W, 3]."""
        if self.is_writer:
            path = self.folder / f"{name}.png"
            write_atomically(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))

    def save_embedding(self, tag: str, features: np.ndarray, labels: list[str], thumbnails: np.ndarray) -> None:
        """Write features [N, F] for TensorBoard's projector, each with a label and a thumbnail [N, 1, H, W] in 0..1."""
        if self.is_writer:
            pictures = torch.from_numpy(thumbnails).float()
            self._tensorboard(0).add_embedding(torch.from_numpy(features), labels, pictures, global_step=0, tag=tag)

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write checkpoint.pt atomically; `state` holds tensors and plain values only."""
        if self.is_writer:
            self._check_there()
            write_tensors(self._checkpoint, {"rows": self.rows, **state})
            if self._writer is not None:
                self._writer.flush()

    def checkpoint(self) -> dict[str, Any] | None:
        """Return what `save_checkpoint` last wrote (CPU tensors), or None; `rows` returns to that state too.

        Raises UserError if the file is damaged.
        """
        state = read_checkpoint(self._checkpoint)
        if state is not None:
            self.rows = state.pop("rows")
        return state

    def drop_checkpoint(self) -> None:
        """Delete the checkpoint, which a finished run does not need; earlier versions kept two."""
        if self.is_writer:
            for path in self.folder.glob("checkpoint*.pt"):
                path.unlink()

    def drop_weights(self) -> None:
        """Delete checkpoint.pt and the state_dicts: a trial of a search needs none once its score is known."""
        self.drop_checkpoint()
        if self.is_writer:
            for path in self.folder.glob("*_state_dict.pt"):
                path.unlink(missing_ok=True)  # another process may share the search

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, which marks the run as finished; add a training to TensorBoard's HParams."""
        self.summary = plain_json(dict(summary))
        if self.is_writer:
            self._check_there()
            if self._writer is not None:
                self._write_hparams(self._writer)
                self._writer.close()
            write_json(self.folder / "summary.json", self.summary)
        self.unlock()

    def _check_there(self) -> None:
        if not (self.folder / "config.json").exists():
            raise UserError(f"{self} was moved or deleted while it was running; delete what is left and start again.")

    # --- a trial of a sweep, which another process may be running, and which may fail ---

    def try_lock(self) -> bool:
        """Lock the run until `unlock` or the end of this process; return whether no other process holds the lock."""
        self._lock = self._lock or try_lock(self.folder / ".lock", self._note)
        return self._lock is not None

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def reread(self) -> None:
        """Read the summary again, which another process may have written."""
        self.summary = read_json(self.folder / "summary.json")

    def fail(self, error: str) -> None:
        """Write error.txt: why the run could not be finished, or even started."""
        if self.is_writer:
            if not (self.folder / "config.json").exists():
                self._write_config()
            write_text(self.folder / "error.txt", error)

    def _write_hparams(self, writer: SummaryWriter) -> None:
        """Add a training's config; TensorBoard ranks by any scalar if no run brings its own list of metrics."""
        if self.rows:
            values = {
                k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in flat(self.config).items()
            }
            _, start, end = hparams(values, {})
            writer._get_file_writer().add_summary(start)
            writer._get_file_writer().add_summary(end)

    def _tensorboard(self, step: int) -> SummaryWriter:
        if self._writer is None:  # drop events after the checkpoint that we resume from, but keep those of a row
            kept = int(self.rows[-1]["step"]) + 1 if self.rows and "step" in self.rows[-1] else 0
            self._writer = SummaryWriter(str(self.folder), purge_step=max(step, kept))
        return self._writer


def same_run(
    name: str,
    config: Mapping[str, Any],
    kind: str,
    files: Sequence[str],
    runs_root: Path = RUNS_ROOT,
    look: Look | None = None,
) -> Run | None:
    """Return the finished run of this config, data and versions among `name`, name-2, name-3, ..., or None.

    It still has its `files`. Run says what `look` is.
    """
    check_run_name(name, runs_root)
    now = environment()
    for each in itertools.takewhile(lambda each: (runs_root / each).exists(), _numbered(name)):
        with suppress(UserError):  # of another config or other data, or no run
            run = Run(each, config, kind, runs_root, look=look)
            before = read_json(run.folder / "environment.json")
            whole = run.summary is not None and all((run.folder / file).exists() for file in files)
            if whole and before is not None and not changes(before, now):
                return run
    return None


def new_run(name: str, config: Mapping[str, Any], kind: str, runs_root: Path = RUNS_ROOT) -> Run:
    """Return a run in a new folder, the first of `name`, name-2, name-3, ... that is not there."""
    for each in _numbered(name):
        with plain_refusals(runs_root / each), suppress(FileExistsError):
            (runs_root / each).mkdir(parents=True)
            return Run(each, config, kind, runs_root)
    raise AssertionError("numbers do not end")


def _numbered(name: str) -> Iterator[str]:
    plain = Path(name).as_posix()
    return itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
