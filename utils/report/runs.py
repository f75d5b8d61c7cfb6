"""Which runs lie in some folders: each with its kind and facts; what cannot be shown, with the reason."""

import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
TABLE = {"predictions.csv", "summary.json"}  # all that a head without a run has, such as the mean of two
REFERENCE = "reference.json"  # only in folders to take away: a shared encoder, a classifier as ONNX
TRACES = ("metrics.csv", "summary.json", "environment.json", "events.out.tfevents*", "*.pt", "*.pth")  # only in runs
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
    """Return all runs in the folders `roots` and below, except in `leave_out`, and the folders that cannot be shown.

    exclude  names of folders, or patterns of them such as "old/*", that are passed over, with all that they hold

    A folder is a run if it has a config.json or one of TRACES. Links are followed; each folder is read once.
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
            for read in _read(path, name, files):
                (found if isinstance(read, FoundRun) else skipped).append(read)  # type: ignore[arg-type]  # as tested
    return found, skipped


def one_line(error: BaseException) -> str:
    """Return an error's type and first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _name(path: Path, root: Path) -> str:
    """Return the path below the runs, or else below `root`, as text, whatever bytes it holds."""
    above = RUNS_ROOT if path.is_relative_to(RUNS_ROOT) else root
    name = path.relative_to(above).as_posix() if path != above else path.name
    return name.encode("utf-8", "backslashreplace").decode()


def _read(path: Path, name: str, files: list[str]) -> Iterator[FoundRun | Skipped]:
    """Yield the run in a folder, if there is one."""
    if {*files} == TABLE or REFERENCE in files:
        return
    if "config.json" not in files:
        if any(fnmatch.filter(files, trace) for trace in TRACES):
            yield Skipped(name, "it has no config.json")
        return
    try:
        yield _open(path, name, files)
    except BROKEN as error:
        yield Skipped(name, f"a file cannot be read: {one_line(error)}")


def _open(path: Path, name: str, files: list[str]) -> FoundRun | Skipped:
    config, summary, environment = (
        read_json(path / f"{part}.json") or {} for part in ("config", "summary", "environment")
    )
    kind = environment.get("kind")
    if kind not in KINDS:
        return Skipped(
            name, f"the kind {kind!r} is not known" if "kind" in environment else "environment.json names no kind"
        )
    if not summary and (kind not in SWEEPS or "summary.csv" not in files):
        if "error.txt" in files:
            said = (path / "error.txt").read_text(encoding="utf-8", errors="replace").strip()
            return Skipped(name, f"failed: {said}")
        return Skipped(name, "not finished: the same command resumes it")
    if kind in EARLIER and EARLIER[kind](config, summary):
        reason = "earlier protocol: the validation part chose steps and settings; the version that made it shows it"
        return Skipped(name, reason)
    return FoundRun(name, path, kind, config, summary, environment)
