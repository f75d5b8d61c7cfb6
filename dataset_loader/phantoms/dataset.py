"""The built-in data: synthetic chest X-rays, drawn once from a seed, in the layouts of the two real data sets.

`COVID-19_Radiography_Dataset/<Class>/{images,masks}/<Class>-<n>.png` holds four classes and the lungs of each image.
As in the real database no patient is named: each image is of another person, but for a few that show one film twice,
exposed differently. `Unlabelled/` there holds more X-rays of the same kind, without labels or masks, with a few second
films of held-out people among them; labels.csv lists labels, parts and copies. `CheXpert-v1.0-small/train.csv` lists
patients with several studies. A picture is a function of the seed and of what it shows alone.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dataset_loader.image_files import IMAGE_SUFFIXES, is_visible, shown
from dataset_loader.phantoms.chest import Array, Chest, Dice
from dataset_loader.phantoms.film import annotate, collimate, expose, plant_marker, wires
from dataset_loader.phantoms.plans import XRay, plan_classes, plan_patients
from dataset_loader.phantoms.signs import SIGNS
from dataset_loader.readers import likely_dataset
from dataset_loader.readers.folder_dataset import TABLE
from dataset_loader.synthetic import RECORD
from utils.config import UserError
from utils.distributed import exclusive_lock
from utils.files import plain_refusals, read_json, write_json, write_table
from utils.hardware import usable_cores
from utils.scripts import progress_bar

VERSION = 4  # of the drawing: images of another version are not those asked for
COVID_ROOT = "COVID-19_Radiography_Dataset"
CHEXPERT_ROOT = "CheXpert-v1.0-small"
SOURCES = "sources.csv"  # in the COVID layout with planted markers: which images carry one

Plan = tuple[list[XRay], dict[str, pd.DataFrame]]  # what to draw, and the tables beside it, by file
_BATCH = 24  # images drawn at a time; their arrays fit in a core's cache


def ensure_phantoms(
    folder: Path, *, images: int, unlabelled: int = 0, size: int = 96, seed: int = 0, planted_marker: bool = False
) -> Path:
    """Draw synthetic X-rays in the COVID layout below `folder`, once; return the layout's root.

    Of the labelled `images`, half are for training and a quarter each for validation and test, as TABLE says.
    `unlabelled` more show other people, of the same classes, and some more show films of validation and test again.
    With `planted_marker` most images of MARKED_CLASS, and few others, carry a bright disc in the lower left corner: a
    shortcut for an audit to find; SOURCES says which of the labelled ones. Images have `size` x `size` pixels. A later
    call with the same request returns at once. Raises UserError if `folder` holds anything else than phantoms; nothing
    is written there then.
    """
    asked = {"images": images, "unlabelled": unlabelled, "size": size, "seed": seed, "planted_marker": planted_marker}

    def plan() -> Plan:
        xrays = plan_classes(images, unlabelled, seed, planted_marker)
        listed = [x for x in xrays if x.label or x.copy_of]
        rows = [(x.file, x.label, x.part, _mask_of(x.file) if x.label else "", x.copy_of) for x in listed]
        tables = {TABLE: pd.DataFrame(rows, columns=["file", "label", "part", "mask", "copy_of"])}
        if planted_marker:
            marks = [(x.file, "marked" if x.marked else "plain") for x in xrays if x.label]
            tables[SOURCES] = pd.DataFrame(marks, columns=["file", "source"])
        return xrays, tables

    return _ensure(folder / COVID_ROOT, {"layout": "covid", **asked}, plan, (size, size))


def ensure_chexpert_phantoms(folder: Path, *, patients: int = 300, size: int = 96, seed: int = 0) -> Path:
    """Draw synthetic X-rays in CheXpert's layout below `folder`, once; as `ensure_phantoms`, `size` x 1.2 `size`."""

    def plan() -> Plan:
        xrays, table = plan_patients(patients, seed)
        return xrays, {"train.csv": table}

    request = {"layout": "chexpert", "patients": patients, "size": size, "seed": seed}
    return _ensure(folder / CHEXPERT_ROOT, request, plan, (size, round(1.2 * size)))


def draw(xrays: Sequence[XRay], shape: tuple[int, int]) -> tuple[Array, Array]:
    """Pictures, uint8 [B, H, W], and lungs, bool [B, H, W], of a batch."""
    person, scene, film = (Dice([getattr(x, seeds) for x in xrays]) for seeds in ("person", "scene", "film"))

    def severity(name: str) -> Array:
        return np.array([x.signs.get(name, 0) for x in xrays], np.float32)[:, None, None]

    slip = film.uniform(-0.006, 0.006)  # a second film of a scene is moved by less than a pixel
    chest = Chest(person, scene, slip, severity("Cardiomegaly"), shape)
    for number, (name, add_sign) in enumerate(SIGNS.items()):
        if severity(name).any():  # numpy takes a seed that ends in 0 for one without, the scene's own
            add_sign(chest, severity(name), Dice([(*x.scene, number or len(SIGNS)) for x in xrays]))
    density = chest.density() + wires(scene, severity("Support Devices").ravel() > 0, shape)
    pictures = expose(density, film)
    collimate(pictures, scene)
    for xray, picture, rng in zip(xrays, pictures, film.generators, strict=True):
        annotate(picture, rng)
        if xray.marked:
            plant_marker(picture)
    return np.clip(pictures * 255 + 0.5, 0, 255).astype(np.uint8), chest.mask


def _ensure(root: Path, request: dict, plan: Callable[[], Plan], shape: tuple[int, int]) -> Path:
    """Draw the images that `plan` lists, unless `root` holds them."""
    request = {"version": VERSION, **request}
    with plain_refusals(root):
        _check_folder(root.parent)
        if not _is_finished(root, request):
            with exclusive_lock(root.parent / f".{root.name}.lock", f"drawing {root}"):
                if not _is_finished(root, request):  # another process may just have drawn them
                    _draw_layout(root, request, plan, shape)
    return root


def _check_folder(folder: Path) -> None:
    """Raise UserError for a folder that holds anything else than phantoms, guessing which data set was meant."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--data-root is the file {folder}; name a folder.")
    roots = (folder / COVID_ROOT, folder / CHEXPERT_ROOT)
    drawn = [root for root in roots if (root / RECORD).is_file()]
    others = [path.name for path in folder.iterdir() if is_visible(path.name) and path not in drawn]
    if drawn:  # then a note beside them does no harm
        others = [name for name in others if (folder / name).is_dir() or Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if others:
        guess = likely_dataset(folder)
        meant = f"did you mean --dataset {guess}? Else" if guess else "to have phantoms drawn,"
        raise UserError(
            f"{folder} holds other files: {shown(sorted(others))}. Synthetic X-rays are drawn into an empty folder "
            f"alone; {meant} choose an empty or new folder."
        )


def _is_finished(root: Path, request: dict) -> bool:
    """Whether `root` holds what is asked for; UserError if it holds anything else."""
    if not root.exists():
        return False
    found = read_json(root / RECORD)
    if found is None:
        raise UserError(f"{root} holds no finished synthetic X-rays (no {RECORD}); delete it or choose another folder.")
    differing = [
        f"{key} {found.get(key)} (asked: {value})" for key, value in request.items() if found.get(key) != value
    ]
    if differing:
        raise UserError(
            f"{root} holds synthetic X-rays of another request: {', '.join(differing)}; choose another folder, or "
            "delete this one to have them drawn again."
        )
    return True


def _draw_layout(root: Path, request: dict, plan: Callable[[], Plan], shape: tuple[int, int]) -> None:
    """Draw into a hidden sibling, which becomes `root` when it is complete."""
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted attempt: we hold the lock
    try:
        xrays, tables = plan()
        tqdm.write(f"Drawing {len(xrays):,} synthetic chest X-rays into {root} (once; later runs find them there).")
        batches = [xrays[first : first + _BATCH] for first in range(0, len(xrays), _BATCH)]
        # Threads share the work: numpy and Pillow let go of the interpreter's lock while they compute.
        pool = ThreadPoolExecutor(usable_cores())
        with threadpool_limits(1), progress_bar(len(xrays), "phantoms") as bar, pool:
            for drawn in pool.map(lambda batch: _save(batch, shape, partial), batches):
                bar.update(drawn)
        for name, table in tables.items():
            write_table(partial / name, table)
        write_json(partial / RECORD, request)
        if hasattr(os, "sync"):
            os.sync()  # the pictures are on disk before the name says so
        partial.replace(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save(xrays: Sequence[XRay], shape: tuple[int, int], root: Path) -> int:
    for xray, picture, mask in zip(xrays, *draw(xrays, shape), strict=True):
        file, mask_file = root / xray.file, root / _mask_of(xray.file)
        for path, pixels in {mask_file: mask.astype(np.uint8) * 255, file: picture}.items():  # one file without masks
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1, quality=92)
    return len(xrays)


def _mask_of(file: str) -> str:
    return file.replace("/images/", "/masks/")
