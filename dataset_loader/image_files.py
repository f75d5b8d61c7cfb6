"""Which files of a folder are images, by their names."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# Other kinds of images. They are not read, and named, so that nobody takes them for used.
_UNREAD = (".jp2", ".j2k", ".heic", ".heif", ".avif", ".pgm", ".ppm", ".svg", ".psd", ".raw", ".img")
_UNREAD += (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
_NAMES_SHOWN = 3


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder's entry is an image file that can be read, neither hidden nor temporary."""
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and is_visible(entry.name) and entry.is_file()


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
