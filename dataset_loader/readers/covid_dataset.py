"""The COVID-19 Radiography Database (Chowdhury et al. 2020, Rahman et al. 2021): classes with lung masks."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.columns import Columns
from dataset_loader.image_files import is_image, is_unread, is_visible, note_unread
from utils.config import UserError

_HOW_TO_PLACE = (
    'get the "COVID-19 Radiography Database" from Kaggle (tawsifurrahman/covid19-radiography-database), '
    "unpack it so that datasets/COVID-19_Radiography_Dataset/COVID/images/COVID-1.png exists (or point "
    "--data-root at the classes' folder), or run with --dataset phantom, which needs no download."
)


def read_covid(root: Path) -> Columns:
    """Read `<Class>/images/*` with optional `<Class>/masks/*`, or the older `<Class>/*`; no pixel is opened.

    Classes are the folders that hold images, in alphabetical order. Each image is a group of its own.
    Raises UserError if there is no such folder, fewer than two classes or a class without images.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"found no folder {root}, looked there for <Class>/images/*.png; {_HOW_TO_PLACE}")
    try:
        images = _images_by_class(root)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read; check its permissions, or move it elsewhere.") from error
    if len(images) < 2:
        raise UserError(_too_few_classes(root, list(images)))
    class_names = tuple(sorted(images))
    rows = sorted((path, label) for label, name in enumerate(class_names) for path in images[name])
    paths = [path for path, _ in rows]
    masks = {name: _masks_by_stem(root, name) for name in class_names}
    return Columns(
        root=root,
        paths=np.array(paths),
        labels=np.array([label for _, label in rows], dtype=np.int64),
        label_names=class_names,
        groups=np.array(paths),
        masks=np.array([masks[class_names[label]].get(Path(path).stem) for path, label in rows], dtype=object),
        official=np.full(len(rows), ""),
        details=pd.DataFrame(index=pd.RangeIndex(len(rows))),
    )


def _images_by_class(root: Path) -> dict[str, list[str]]:
    """Return the images of each class by its name, as relative POSIX paths."""
    nested: dict[str, list[str]] = {}  # <Class>/images/*
    flat: dict[str, list[str]] = {}  # <Class>/*
    empty: list[str] = []
    for name in _folders(root):
        subfolder = _subfolder(root / name, "images")
        if found := _image_files(root, f"{name}/{subfolder}") if subfolder else []:
            nested[name] = found
        elif found := _image_files(root, name):
            flat[name] = found
        elif subfolder or not any(is_visible(entry.name) for entry in (root / name).iterdir()):
            empty.append(name)
    if empty and (nested or flat):
        raise UserError(
            f"the class folder {root / empty[0]} holds no images; put its images there or remove the folder."
        )
    if nested and flat:  # pictures beside the classes, such as figures or montages
        names = ", ".join(flat)
        print(f"note: {names} under {root} left out: not <Class>/images/* like the others", file=sys.stderr)
    return nested or flat


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and is_visible(entry.name)]
    return sorted(name for name in names if name.lower() != "masks")


def _image_files(root: Path, folder: str) -> list[str]:
    with os.scandir(root / folder) as found:
        entries = list(found)
    note_unread(f"{folder}/{entry.name}" for entry in entries if is_unread(entry.name))
    return [f"{folder}/{entry.name}" for entry in entries if is_image(entry)]


def _subfolder(folder: Path, name: str) -> str | None:
    """Return the subfolder of that name in upper or lower case, as it is written on the disk."""
    with os.scandir(folder) as entries:
        return next((entry.name for entry in entries if entry.name.lower() == name and entry.is_dir()), None)


def _masks_by_stem(root: Path, class_name: str) -> dict[str, str]:
    subfolder = _subfolder(root / class_name, "masks")
    files = sorted(_image_files(root, f"{class_name}/{subfolder}")) if subfolder else []
    return {Path(file).stem: file for file in files}


def _too_few_classes(root: Path, classes: list[str]) -> str:
    found = f"found only the class {classes[0]!r}" if classes else "found no class folder with images"
    nearby = [root / name for name in _folders(root)] + [root.parent]
    better = next((folder for folder in nearby if _looks_right(folder)), None)
    hint = f"did you mean {better}? Else " if better else ""
    return f"{found} under {root}, expected two or more like COVID/images/*.png; {hint}{_HOW_TO_PLACE}"


def _looks_right(folder: Path) -> bool:
    try:
        return sum(_subfolder(folder / name, "images") is not None for name in _folders(folder)) >= 2
    except OSError:  # a neighbour that may not be listed
        return False
