"""The built-in data set: synthetic chest X-rays, drawn once from a seed, in the layouts of the two real ones.

`COVID-19_Radiography_Dataset/<Class>/{images,masks}/<Class>-<n>.png` has the four classes with the imbalance
of the real database and a lung mask an image; `CheXpert-v1.0-small/{train,valid}.csv` list patients with
several studies and views. Every pixel is a function of (seed, image), never of the number of processes.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_loader.phantoms.anatomy import Anatomy, Pose
from dataset_loader.phantoms.patients import HEADER, View, plan_patient
from dataset_loader.phantoms.views import annotate, frontal, plant_marker, to_bytes
from utils.config import UserError
from utils.files import exclusive_lock, write_json, write_text
from utils.hardware import keep_freed_memory, usable_cores
from utils.scripts import progress_bar

VERSION = 2  # of the drawing: a tree of another version is not the one asked for
COVID_ROOT = "COVID-19_Radiography_Dataset"
CHEXPERT_ROOT = "CheXpert-v1.0-small"
SOURCES = "sources.csv"  # in the COVID-like tree with planted markers: which images carry one
# Images of each class in the real database, and the sign that its phantoms show.
CLASS_SIZES = {"COVID": 3616, "Lung_Opacity": 6012, "Normal": 10192, "Viral Pneumonia": 1345}
CLASS_SIGNS = {"COVID": "Ground Glass", "Lung_Opacity": "Consolidation", "Viral Pneumonia": "Interstitial"}
MARKED_CLASS = "COVID"
MARKED_SHARE = {True: 0.95, False: 0.04}  # of the images in and outside MARKED_CLASS with a planted marker

RECORD = "phantom.json"
_CHUNK = 24  # images a task of a worker
_IMAGES_A_WORKER = 150  # at least: with fewer, starting a process costs more than it saves


@dataclass(frozen=True)
class CovidImage:
    """One image of the COVID-like tree, and its lung mask: a function of its fields alone."""

    name: str
    number: int  # from 1, within the class
    size: int
    seed: int
    planted_marker: bool

    @property
    def path(self) -> str:
        """Its file, below the tree's root."""
        return f"{self.name}/images/{self.name}-{self.number}.png"

    @property
    def marked(self) -> bool:
        """Whether it carries the marker; a draw of its own, so that planting changes nothing else."""
        rng = np.random.default_rng([self.seed, 4, list(CLASS_SIZES).index(self.name), self.number])
        return self.planted_marker and bool(rng.random() < MARKED_SHARE[self.name == MARKED_CLASS])

    def save(self, root: Path) -> None:
        """Draw the image and its mask and write both below `root`."""
        rng = np.random.default_rng([self.seed, 1, list(CLASS_SIZES).index(self.name), self.number])
        severity = 0.2 + 0.8 * float(rng.beta(2.0, 1.2))  # graded; the mildest of a class are hard to tell
        findings = {CLASS_SIGNS[self.name]: severity} if self.name in CLASS_SIGNS else {}
        if rng.random() < 0.2:
            findings["Support Devices"] = 1.0
        picture, mask = frontal(Anatomy.draw(rng), Pose.draw(rng), findings, (self.size, self.size), rng)
        picture = annotate(picture, rng)
        if self.marked:
            picture = plant_marker(picture)
        for kind, pixels in (("images", to_bytes(picture)), ("masks", mask.astype(np.uint8) * 255)):
            file = root / self.name / kind / f"{self.name}-{self.number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, compress_level=1)


class Drawable(Protocol):
    """An image that knows how to draw itself into a tree."""

    def save(self, root: Path) -> None: ...


def ensure_phantoms(
    folder: Path,
    *,
    covid_images: int = 2000,
    chexpert_patients: int = 300,
    size: int = 192,
    seed: int = 0,
    planted_marker: bool = False,
    workers: int | None = None,
) -> tuple[Path, Path]:
    """Write both trees below `folder` once; return the roots of the COVID-like and of the CheXpert-like one.

    A later call with the same request returns at once. `size` is the shorter side of an image in pixels. With
    `planted_marker` most images of the class COVID, and few others, carry a bright disc in the lower left
    corner (COVID-like tree only): a shortcut for an audit to find; sources.csv there lists them. `workers` is the
    number of processes (default: one a core); the pixels do not depend on it.

    Raises:
        UserError: `folder` holds something else, or phantoms of another request; nothing is overwritten.
    """
    if covid_images < len(CLASS_SIZES) or chexpert_patients < 2 or size < 64 or seed < 0:
        raise UserError(
            f"phantoms asked for: {covid_images} images, {chexpert_patients} patients, size {size}, "
            f"seed {seed}; needed: at least {len(CLASS_SIZES)} images, 2 patients, size 64, seed 0."
        )
    request = {
        "version": VERSION,
        "covid_images": covid_images,
        "chexpert_patients": chexpert_patients,
        "size": size,
        "seed": seed,
        "planted_marker": planted_marker,
    }
    roots = folder / COVID_ROOT, folder / CHEXPERT_ROOT
    if _is_finished(folder, request):
        return roots
    if getattr(current_process(), "_inheriting", False):
        # A worker of ours imports a main script that calls us unguarded: it would wait for our own lock.
        raise RuntimeError('guard the call of the script with if __name__ == "__main__" for parallel drawing')
    try:
        with exclusive_lock(folder.with_name(f".{folder.name}.lock"), f"drawing {folder}"):
            if not _is_finished(folder, request):  # another process may just have drawn them
                _draw_trees(folder, request, workers)
    except OSError as error:
        raise UserError(f"could not write the synthetic X-rays to {folder}: {error}.") from error
    return roots


def class_counts(total: int) -> dict[str, int]:
    """`total` images over the classes in the real database's proportions, at least one each."""
    exact = {name: total * size / sum(CLASS_SIZES.values()) for name, size in CLASS_SIZES.items()}
    counts = {name: max(1, int(share)) for name, share in exact.items()}
    while sum(counts.values()) != total:
        behind = {name: exact[name] - counts[name] for name in counts}
        if sum(counts.values()) < total:
            counts[max(behind, key=behind.__getitem__)] += 1
        else:
            counts[min(behind, key=behind.__getitem__)] -= 1
    return counts


def _is_finished(folder: Path, request: dict[str, int]) -> bool:
    """Whether `folder` holds what is asked for; UserError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"{folder} exists but holds no finished phantoms (no {RECORD}); move or delete it, or choose "
            "another folder for the synthetic X-rays."
        )
    differing = [
        f"{key} {found.get(key)} (asked: {value})" for key, value in request.items() if found.get(key) != value
    ]
    if differing:
        raise UserError(
            f"{folder} holds synthetic X-rays of another request: {', '.join(differing)}; choose another "
            "folder, or delete this one to have them drawn anew."
        )
    return True


def _draw_trees(folder: Path, request: dict[str, int], workers: int | None) -> None:
    """Draw into a hidden sibling, which becomes `folder` when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():  # an interrupted attempt: we hold the lock, so nobody is at work on it
        shutil.rmtree(partial)
    size, seed = request["size"], request["seed"]
    covid = [
        CovidImage(name, number, size, seed, bool(request["planted_marker"]))
        for name, count in class_counts(request["covid_images"]).items()
        for number in range(1, count + 1)
    ]
    try:
        if request["planted_marker"]:
            rows = [("file", "source"), *((image.path, "marked" if image.marked else "plain") for image in covid)]
            _write_csv(partial / COVID_ROOT / SOURCES, rows)
        chexpert = _write_tables(partial / CHEXPERT_ROOT, request["chexpert_patients"], size, seed)
        jobs = [(partial / COVID_ROOT, image) for image in covid] + [
            (partial / CHEXPERT_ROOT, view) for view in chexpert
        ]
        tqdm.write(f"Drawing {len(jobs)} synthetic chest X-rays into {folder} (once; later runs find them there).")
        _draw_all(jobs, workers)
        write_json(partial / RECORD, request)
        if hasattr(os, "sync"):
            os.sync()  # the pictures are on disk before the name says so
        if folder.exists():
            folder.rmdir()  # empty, or this fails
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_tables(root: Path, patients: int, size: int, seed: int) -> list[View]:
    """Write train.csv and valid.csv (a tenth of the patients) and return every view in them."""
    valid = max(1, patients // 10)
    everything: list[View] = []
    for part, numbers in (
        ("train", range(1, patients - valid + 1)),
        ("valid", range(patients - valid + 1, patients + 1)),
    ):
        views = [view for number in numbers for view in plan_patient(seed, number, part, size, CHEXPERT_ROOT)]
        _write_csv(root / f"{part}.csv", [HEADER, *(view.row for view in views)])
        everything += views
    return everything


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(path, table.getvalue())


def _draw_all(jobs: Sequence[tuple[Path, Drawable]], workers: int | None) -> None:
    """Draw every job, in processes where that pays."""
    if workers is None:
        workers = min(usable_cores(), len(jobs) // _IMAGES_A_WORKER)
    chunks = [jobs[first : first + _CHUNK] for first in range(0, len(jobs), _CHUNK)]
    with progress_bar(len(jobs), "phantoms") as bar:
        if workers > 1:
            chunks = _draw_in_processes(chunks, workers, bar)
        for chunk in chunks:
            bar.update(_draw_chunk(chunk))


def _draw_in_processes(chunks: list, workers: int, bar: tqdm) -> list:
    """Draw the chunks in a pool; return those that are left where processes cannot be started.

    'spawn' works everywhere and beside threads, but has to import the main script again: from a notebook or a
    script without `if __name__ == "__main__"` it fails.
    """
    left = dict(enumerate(chunks))
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        numbers: dict[Future[int], int] = {pool.submit(_draw_chunk, chunk): i for i, chunk in left.items()}
        for future in as_completed(numbers):
            bar.update(future.result())
            del left[numbers[future]]
    except BrokenProcessPool:
        tqdm.write("No further processes could be started here: drawing in this one.")
    finally:
        pool.shutdown(cancel_futures=True)
    return list(left.values())


def _start_worker() -> None:
    keep_freed_memory()  # an image takes hundreds of arrays just large enough to be given back: half the time


def _draw_chunk(chunk: Sequence[tuple[Path, Drawable]]) -> int:
    for root, image in chunk:
        image.save(root)
    return len(chunk)
