"""What lies under runs/: every run with its kind, and what cannot be shown, with the reason."""

import fnmatch
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from utils.report.blocks import Picture

PRETRAINING, FINETUNING, COMPARISON, TEST_COMPARISON = "pretraining", "fine-tuning", "comparison", "comparison on test"
FROZEN, TEST, RANGE, SCAN, TRIAL = "frozen parts", "test", "range test", "scan", "trial of a scan"
RESOURCES, CELL, SEARCH, EXPLANATION, AUDIT = "resources", "cell of resources", "search", "explanation", "audit"
# of a run without a config.json
TRACES = ("metrics.csv", "summary.json", "environment.json", "events.out.tfevents*", "*.pt", "*.pth")
# columns whose names may look like numbers
NAMES: Any = dict.fromkeys(("arm", "reference", "trial", "trainable", "class"), str)
# what a damaged file leads to
BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, SyntaxError, RecursionError),
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class FoundRun:
    """A run that can be shown.

    name         its folder below the runs
    kind         one of the above
    config, summary, environment  its JSON files; the latter two are {} where a sweep has none
    """

    name: str
    folder: Path
    kind: str
    config: dict[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]

    def table(self, name: str) -> Any:
        """One of its CSVs, by name: a DataFrame, whose cells pandas' stubs take for anything."""
        return pd.read_csv(self.folder / f"{name}.csv", dtype=NAMES)

    def figure(self, name: str) -> Path:
        """Where one of its figures is, if it was drawn."""
        return self.folder / "figures" / f"{name}.png"

    @property
    def synthetic(self) -> bool | None:
        """Whether it is of synthetic X-rays; None where it does not say."""
        for facts in (self.summary, self.environment.get("data") or {}):
            if "synthetic" in facts:
                return bool(facts["synthetic"])
        return None if "dataset" not in self.config else str(self.config["dataset"]).startswith("phantom")

    @property
    def marks(self) -> list[str]:
        """What its numbers must not be read without: synthetic, transductive (it has seen held-out images)."""
        notes = [*self.summary.get("notes", []), self.summary.get("note") or ""]
        transductive = any("transductive" in note for note in notes)
        return ["synthetic"] * (self.synthetic is True) + ["transductive"] * transductive

    @property
    def label(self) -> str:
        """Its name, with those marks."""
        return f"{self.name} ({', '.join(self.marks)})" if self.marks else self.name


@dataclass(frozen=True)
class Skipped:
    """A folder that is not shown."""

    name: str
    reason: str


def find_runs(root: Path, leave_out: Path) -> tuple[list[FoundRun], list[Skipped]]:
    """All runs in and below `root`, by name, but for `leave_out`; a folder without a config.json is one if it has
    what only runs have: metrics, TensorBoard events or weights. A folder that a link leads to again is shown once."""
    found: list[FoundRun] = []
    skipped: list[Skipped] = []

    def name_of(path: Path) -> str:
        name = path.relative_to(root).as_posix() if path != root else root.name
        return name.encode("utf-8", "backslashreplace").decode()  # of any bytes

    def unreadable(error: OSError) -> None:
        skipped.append(Skipped(name_of(Path(error.filename)), f"it cannot be opened: {error.strerror}"))

    whole, followed = root.resolve(), set[Path]()
    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        path = Path(folder)
        folders[:] = sorted(name for name in folders if name[0] != "." and path / name != leave_out)
        for link in [path / name for name in folders if (path / name).is_symlink()]:
            real = link.resolve()
            if real in followed or real.is_relative_to(whole) or whole.is_relative_to(real):
                folders.remove(link.name)
                skipped.append(Skipped(name_of(link), f"a link to {real}, which is shown under another name"))
            followed.add(real)
        if "config.json" in files:
            read = _read(path, name_of(path), set(files))
            (found if isinstance(read, FoundRun) else skipped).append(read)  # type: ignore[arg-type]  # as tested
        elif any(fnmatch.filter(files, trace) for trace in TRACES):
            skipped.append(Skipped(name_of(path), "it has no config.json: made by an older or another program"))
    return found, skipped


def pictures(run: FoundRun, **alts: str) -> list[Picture]:
    """The run's figures that exist, by name, each with its alt text. Raises OSError for one that is no picture."""
    return [_picture(run.figure(name), alt, run.name) for name, alt in alts.items() if run.figure(name).exists()]


def first_of_each(runs: Iterable[FoundRun], key: Callable[[FoundRun], Any]) -> list[FoundRun]:
    """The first run of each value of `key`."""
    chosen: dict[Any, FoundRun] = {}
    for run in runs:
        chosen.setdefault(key(run), run)
    return list(chosen.values())


def _picture(path: Path, alt: str, run: str) -> Picture:
    png = path.read_bytes()
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return Picture(png, image.size, alt, run)


def _read(path: Path, name: str, files: set[str]) -> FoundRun | Skipped:
    try:
        config, summary, environment = (_json(path / f"{part}.json") for part in ("config", "summary", "environment"))
        kind = _kind(path, files, config, summary)
    except BROKEN as error:
        return Skipped(name, f"a file of it cannot be read: {_one_line(error)}")
    if kind is None:
        reason = "not finished: the same command goes on" if "summary.json" not in files else "of a kind not known here"
        error = path / "error.txt"
        return Skipped(name, f"failed: {_text(error)}" if error.exists() and not summary else reason)
    return FoundRun(name, path, kind, config, summary, environment)


def _kind(path: Path, files: set[str], config: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    """A run's kind, by what only runs of that kind leave; None if it is not finished or not known."""
    if "varied" in config and "summary.csv" in files and "run_name" not in config:  # a sweep has no summary.json
        columns = pd.read_csv(path / "summary.csv", nrows=0).columns
        return RESOURCES if "hours" in columns else SCAN if "linear" in columns else None
    if "part" in summary and "differences.csv" in files:
        return COMPARISON if summary["part"] == "validation" else TEST_COMPARISON
    by_file = {
        "table.csv": FROZEN,
        "predictions_val.csv": FINETUNING,
        "predictions.csv": TEST,
        "lr_range.csv": RANGE,
        "best.json": SEARCH,
        "saliency.csv": EXPLANATION,
        "lung_mass.csv": AUDIT,
    }
    for file, kind in by_file.items():
        if summary and file in files:
            return kind
    by_key = {"rank_random_network": PRETRAINING, "linear": TRIAL, "hours": CELL, "out_of_memory": CELL}
    return next((kind for key, kind in by_key.items() if key in summary), None)


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
