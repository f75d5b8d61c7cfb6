"""Which runs lie in a folder: each with its kind and facts; what cannot be shown, with the reason."""

import base64
import fnmatch
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from utils.config import UserError
from utils.files import read_json
from utils.report.content import Column, Figure, Table, table

# what environment.json can give as "kind"; a trial belongs to a scan, a search or a table of resources
KINDS = (
    *("pretraining", "fine-tuning", "comparison", "frozen parts", "test", "test comparison", "external test"),
    *("predictions", "maps", "audit", "scan", "search", "learning rates", "resources", "trial"),
    "classifier of all films",
)
# how config and summary of some kinds say that they are of the protocol before predictions.csv
EARLIER: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], bool]] = {
    **dict.fromkeys(("comparison", "frozen parts"), lambda config, _: "patience" in config),
    **dict.fromkeys(("test", "test comparison", "external test"), lambda _, summary: "predictions" not in summary),
}
SWEEPS = ("scan", "resources")  # their result is summary.csv, one row per trial; it grows with each trial
TRACES = ("metrics.csv", "summary.json", "environment.json", "events.out.tfevents*", "*.pt", "*.pth")  # only in runs
# text, even if it holds "007"
TEXT_COLUMNS: Any = dict.fromkeys(("arm", "reference", "way", "trial", "trainable", "class", "group"), str)
BROKEN = (  # the errors that a damaged file can cause
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, SyntaxError, RecursionError),
    Image.DecompressionBombError,
    UserError,
)
SCALE = 96 / 150  # figures are saved at 150 dpi, a page has 96
MAX_HEIGHT = 720  # of a figure on the page, in pixels


@dataclass(frozen=True)
class FoundRun:
    """A run that can be shown: its folder's name below the runs, its kind and its JSON files ({} if absent).

    synthetic     whether its X-rays are phantoms; None if it does not say
    transductive  whether a network has seen held-out images
    """

    name: str
    folder: Path
    kind: str
    config: dict[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    synthetic: bool | None
    transductive: bool

    def csv(self, name: str) -> Any:
        """Return one of its CSV files as a DataFrame."""
        return pd.read_csv(self.folder / f"{name}.csv", dtype=TEXT_COLUMNS)

    def table(self, caption: str, rows: Any, columns: Mapping[str, str | Column], folded: bool = False) -> Table:
        """Return a table of this run; see utils.report.content.table."""
        return table(f"{self.label}: {caption}", rows, columns, [self.name], folded)

    def figures(self, **alts: str) -> list[Figure]:
        """Return those of the named figures that exist. Raises OSError if one is not an image."""
        paths = {name: self.folder / "figures" / f"{name}.png" for name in alts}
        return [_figure(path, f"{self.label}: {alts[name]}") for name, path in paths.items() if path.exists()]

    @property
    def origin(self) -> str:
        """Where its X-rays come from."""
        return "origin not stated" if self.synthetic is None else "synthetic" if self.synthetic else "real"

    @property
    def label(self) -> str:
        """Its name with what a reader must know of its numbers: `runs/a (synthetic, transductive)`."""
        marks = [self.origin] * (self.origin != "real") + ["transductive"] * self.transductive
        return f"{self.name} ({', '.join(marks)})" if marks else self.name


@dataclass(frozen=True)
class Skipped:
    """A folder that is not shown; `foreign` if it is not known to be a run of this version."""

    name: str
    reason: str
    foreign: bool = False


def find_runs(root: Path, leave_out: Path) -> tuple[list[FoundRun], list[Skipped]]:
    """Return all runs in `root` and below, except in `leave_out`, and the folders that cannot be shown.

    A folder is a run if it has a config.json or one of TRACES. Links are followed; each folder is shown once.
    """
    found: list[FoundRun] = []
    skipped: list[Skipped] = []

    def skip(path: Path, reason: str) -> None:
        skipped.append(Skipped(_name(path, root), reason))

    def unreadable(error: OSError) -> None:
        skip(Path(error.filename), f"it cannot be opened: {error.strerror}")

    whole, followed = root.resolve(), set[Path]()
    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        path = Path(folder)
        folders[:] = sorted(name for name in folders if name[0] != "." and path / name != leave_out)
        for link in [path / name for name in folders if (path / name).is_symlink()]:
            real = link.resolve()
            if real in followed or real.is_relative_to(whole) or whole.is_relative_to(real):
                folders.remove(link.name)
                skip(link, f"it links to {real}, which is shown under another name")
            followed.add(real)
        for read in _read(path, _name(path, root), files):
            (found if isinstance(read, FoundRun) else skipped).append(read)  # type: ignore[arg-type]  # as tested
    return found, skipped


def one_line(error: BaseException) -> str:
    """Return an error's type and first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _read(path: Path, name: str, files: list[str]) -> Iterator[FoundRun | Skipped]:
    """Yield the run in a folder, if there is one."""
    if "config.json" not in files:
        if any(fnmatch.filter(files, trace) for trace in TRACES):
            yield Skipped(name, "it has no config.json", foreign=True)
        return
    try:
        yield _open(path, name, files)
    except BROKEN as error:
        yield Skipped(name, f"a file cannot be read: {one_line(error)}")


def _open(path: Path, name: str, files: list[str]) -> FoundRun | Skipped:
    parts = ("config", "summary", "environment")
    config, summary, environment = (read_json(path / f"{part}.json") or {} for part in parts)
    kind, data = environment.get("kind"), environment.get("data", {})
    if kind not in KINDS:
        reason = f"the kind {kind!r} is not known" if "kind" in environment else "environment.json names no kind"
        return Skipped(name, reason, foreign=True)
    if not summary and (kind not in SWEEPS or "summary.csv" not in files):
        if "error.txt" in files:
            return Skipped(
                name, f"failed: {(path / 'error.txt').read_text(encoding='utf-8', errors='replace').strip()}"
            )
        return Skipped(name, "not finished: the same command resumes it")
    if kind in EARLIER and EARLIER[kind](config, summary):
        reason = "earlier protocol: the validation part chose steps and settings; the version that made it shows it"
        return Skipped(name, reason, foreign=True)
    stated = {**data, **summary}
    synthetic = bool(stated["synthetic"]) if "synthetic" in stated else None
    transductive = bool(stated.get("transductive", False))
    return FoundRun(name, path, kind, config, summary, environment, data, synthetic, transductive)


def _figure(path: Path, alt: str) -> Figure:
    png = path.read_bytes()
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        width = round(image.width * min(SCALE, MAX_HEIGHT / image.height))
    return Figure(base64.b64encode(png).decode(), width, alt)


def _name(path: Path, root: Path) -> str:
    """Return the path below `root` as text, whatever bytes it holds."""
    name = path.relative_to(root).as_posix() if path != root else root.name
    return name.encode("utf-8", "backslashreplace").decode()
