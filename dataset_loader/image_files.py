"""Which files of a folder are images: by their names, and DICOM files without a suffix by their first bytes."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

_DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
IMAGE_SUFFIXES = _DICOM_SUFFIXES | {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
}
# Other kinds of images. They are not read, and named, so that nobody takes them for used.
_UNREAD = (".jp2", ".j2k", ".heic", ".heif", ".avif", ".pgm", ".ppm", ".svg", ".psd", ".raw", ".img")
_UNREAD += (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
_NAMES_SHOWN = 3


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder's entry is an image file that can be read, neither hidden nor temporary."""
    if not is_visible(entry.name) or not entry.is_file():
        return False
    suffix = os.path.splitext(entry.name)[1].lower()
    # A UID as a name ends in a number.
    return suffix in IMAGE_SUFFIXES or ((not suffix or suffix[1:].isdigit()) and _is_dicom(entry.path))


def has_dicom_magic(file: IO[bytes]) -> bool:
    """Return whether an open file starts as DICOM files do: 128 bytes of anything, then DICM; rewinds it."""
    start = file.read(132)
    file.seek(0)
    return start[128:] == b"DICM"


def _is_dicom(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return has_dicom_magic(file)
    except OSError:
        return False


def is_dicom_name(name: str) -> bool:
    """Return whether one of image_files is a DICOM file by its name."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in _DICOM_SUFFIXES or suffix not in IMAGE_SUFFIXES


def is_visible(name: str) -> bool:
    """Return whether a name is neither hidden (.DS_Store, ._x.png) nor temporary (~$x.xlsx, #x.png#)."""
    return not name.startswith((".", "~", "#"))


def image_files(root: Path) -> np.ndarray:
    """Return the image files below a folder as sorted relative POSIX paths, without hidden ones and masks folders.

    Images of a kind that is not read are counted on stderr.
    """
    found, unread = [], []
    for folder, names, _ in os.walk(root, followlinks=True):
        names[:] = [name for name in names if not name.startswith(".") and name.lower() != "masks"]
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_image(entry):
                    found.append(Path(entry.path).relative_to(root).as_posix())
                elif is_unread(entry.name):
                    unread.append(Path(entry.path).relative_to(root).as_posix())
    note_unread(unread)
    return np.array(sorted(found), dtype=object)


def is_unread(name: str) -> bool:
    """Return whether a name is that of an image of a kind that is not read."""
    return is_visible(name) and name.lower().endswith(_UNREAD)


def note_unread(files: Iterable[str]) -> None:
    """Say on stderr which files are images of a kind that is not read."""
    if files := sorted(files):
        print(
            f"note: left out {shown(files)}, of a kind of image that is not read; convert to PNG to use",
            file=sys.stderr,
        )


def shown(names: list[str]) -> str:
    """Return the number of names and the first of them, for a message."""
    return f"{len(names):,} ({', '.join(names[:_NAMES_SHOWN])}{', ...' if len(names) > _NAMES_SHOWN else ''})"
