"""Which runs lie in some folders: each with its kind and facts; what cannot be shown, with the reason."""

import fnmatch
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image

from utils.config import RUNS_ROOT, UserError
from utils.files import read_json

# what environment.json can give as "kind"; a trial belongs to a scan, a search or a table of resources
KINDS = (
    *("pretraining", "fine-tuning", "comparison", "frozen parts", "test", "test comparison", "external test"),
    *("predictions", "maps", "boxes", "audit", "scan", "search", "learning rates", "resources", "trial"),
    "classifier of all films",
)
# how config and summary of some kinds say that they are of the protocol before predictions.csv
EARLIER: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], bool]] = {
    **dict.fromkeys(("comparison", "frozen parts"), lambda config, _: "patience" in config),
    **dict.fromkeys(("test", "test comparison", "external test"), lambda _, summary: "predictions" not in summary),
}
SWEEPS = ("scan", "resources")  # their result is summary.csv, one row per trial; it grows with each trial
MARKS = {"config.json", "environment.json", "metrics.csv", "error.txt"}  # a folder with one of them is a run ...
REFERENCE = "reference.json"  # ... but for one to take away: a shared encoder, or a classifier as ONNX
# text, even if it holds "007"
TEXT_COLUMNS: Any = dict.fromkeys(
    ("arm", "reference", "way", "trial", "trainable", "class", "group", "network", "minus"), str
)
BROKEN = (  # the errors that a damaged file can cause
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, SyntaxError, RecursionError),
    Image.DecompressionBombError,
    UserError,
)


@dataclass(frozen=True)
class FoundRun:
    """A run that can be shown: the name of its folder, its kind and its JSON files ({} if absent)."""

    name: str
    folder: Path
    kind: str
    config: dict[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        """What it records about its X-rays."""
        return self.environment.get("data", {})

    @property
    def origin(self) -> str:
        """Where its X-rays come from: "real", "synthetic" (phantoms), or "origin not stated"."""
        stated = {**self.data, **self.summary}.get("synthetic")
        return "origin not stated" if stated is None else "synthetic" if stated else "real"

    @property
    def label(self) -> str:
        """Its name with what a reader must know of its numbers: `runs/a (synthetic, transductive: ours)`."""
        transductive = bool({**self.data, **self.summary}.get("transductive"))  # a network has seen held-out images
        curves = self.csv("curves") if transductive and (self.folder / "curves.csv").exists() else pd.DataFrame()
        arms = curves.loc[curves["transductive"], "arm"].unique() if "transductive" in curves else []
        which = f": {', '.join(arms)}" if len(arms) else ""
        marks = [self.origin] * (self.origin != "real") + [f"transductive{which}"] * transductive
        return f"{self.name} ({', '.join(marks)})" if marks else self.name

    def csv(self, name: str) -> Any:
        """Return one of its CSV files as a DataFrame."""
        return pd.read_csv(self.folder / f"{name}.csv", dtype=TEXT_COLUMNS)


class Skipped(NamedTuple):
    """A folder that is not shown, and why."""

    folder: str
    reason: str


def find_runs(roots: Sequence[Path], exclude: Sequence[str], leave_out: Path) -> tuple[list[FoundRun], list[Skipped]]:
    """Return all runs in the folders `roots` and below, except in `leave_out`, and those that cannot be shown.

    exclude  names of folders, or patterns of them such as "old/*", that are passed over, with all that they hold

    A folder is a run if it has one of MARKS, and no REFERENCE. Links are followed; each folder is read once.
    """
    found: list[FoundRun] = []
    skipped: list[Skipped] = []
    seen = {leave_out.resolve()}

    def unreadable(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), f"it cannot be opened: {error.strerror}"))

    for root in roots:
        for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
            path, name = Path(folder), _name(Path(folder), root)
            excluded = any(fnmatch.fnmatch(name, pattern) for pattern in exclude)
            if excluded or path.resolve() in seen:
                folders.clear()
                continue
            seen.add(path.resolve())
            folders[:] = sorted(name for name in folders if name[0] != ".")
            if MARKS.isdisjoint(files) or REFERENCE in files:
                continue
            try:
                run = _open(path, name)
                if reason := _why_not(run):
                    skipped.append(Skipped(name, reason))
                else:
                    found.append(run)
            except BROKEN as error:
                skipped.append(Skipped(name, f"a file cannot be read: {one_line(error)}"))
    return found, skipped


def one_line(error: BaseException) -> str:
    """Return an error's type and first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _name(path: Path, root: Path) -> str:
    """Return the path below the runs, or else below `root`."""
    above = RUNS_ROOT if path.is_relative_to(RUNS_ROOT) else root
    return path.relative_to(above).as_posix() if path != above else path.name


def _open(path: Path, name: str) -> FoundRun:
    parts = [read_json(path / f"{part}.json") or {} for part in ("config", "summary", "environment")]
    return FoundRun(name, path, parts[2].get("kind", "not stated"), *parts)


def _why_not(run: FoundRun) -> str:
    """Return the reason why a run cannot be shown, "" if it can."""
    if (error := run.folder / "error.txt").exists() and not run.summary:
        return f"failed: {error.read_text(encoding='utf-8', errors='replace').strip()}"
    if not run.environment:
        return "it has no environment.json, as every run here"
    if run.kind not in KINDS:
        return f"the kind {run.kind!r} is not known"
    if not run.summary and not (run.kind in SWEEPS and (run.folder / "summary.csv").exists()):
        return "not finished: the same command resumes it"
    if run.kind in EARLIER and EARLIER[run.kind](run.config, run.summary):
        return "earlier protocol: the validation part chose steps and settings; the version that made it shows it"
    return ""
