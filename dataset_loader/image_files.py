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
# Folders of other programs: of a Mac's zips, of network disks (previews, snapshots), waste. None holds X-rays.
_OF_PROGRAMS = ("__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin")
_OF_PROGRAMS += ("recycler", "lost+found", "system volume information", "__pycache__")
_NAMES_SHOWN = 3


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder's entry is an image file that can be read, neither hidden nor temporary."""
    if not is_visible(entry.name) or not _is_utf8(entry.name) or not entry.is_file():
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


def is_left_out(name: str) -> bool:
    """Return whether a folder of that name holds no X-rays: hidden, of another program, or masks."""
    return name.startswith(".") or name.lower() in (*_OF_PROGRAMS, "masks")


def image_files(root: Path) -> np.ndarray:
    """Return the image files below a folder as sorted relative POSIX paths, but for those in folders that is_left_out.

    A folder that is linked to from several places is read once. Images of a kind that is not read, and folders that may
    not be, are counted on stderr.
    """
    found, unread = [], []
    read: set[tuple[int, int]] = set()  # folders by device and inode: a link may lead to a folder above it
    closed: list[str] = []
    for folder, names, _ in os.walk(root, followlinks=True, onerror=lambda error: closed.append(str(error.filename))):
        status = os.stat(folder)
        names[:] = [name for name in names if not is_left_out(name)]
        if (status.st_dev, status.st_ino) in read:
            names.clear()
            continue
        read.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_image(entry):
                    found.append(Path(entry.path).relative_to(root).as_posix())
                elif is_unread(entry.name):
                    unread.append(Path(entry.path).relative_to(root).as_posix())
    note_unread(unread)
    if closed:
        print(f"warning: left out folders that cannot be read: {shown(closed)}", file=sys.stderr)
    return np.array(sorted(found), dtype=object)


def is_unread(name: str) -> bool:
    """Return whether a name is that of an image that is not read, because of its kind or because it is not UTF-8."""
    return is_visible(name) and (name.lower().endswith(_UNREAD) or not _is_utf8(name))


def note_unread(files: Iterable[str]) -> None:
    """Say on stderr which files are images that are not read."""
    files = sorted(files)
    if odd := [name for name in files if not _is_utf8(name)]:
        print(f"warning: left out {shown(odd)}, whose names are not UTF-8; rename them to use", file=sys.stderr)
    if files := [name for name in files if _is_utf8(name)]:
        print(
            f"note: left out {shown(files)}, of a kind of image that is not read; convert to PNG to use",
            file=sys.stderr,
        )


def shown(names: list[str]) -> str:
    """Return the number of names and the first of them, for a message."""
    first = ", ".join(names[:_NAMES_SHOWN]).encode("utf-8", "replace").decode()
    return f"{len(names):,} ({first}{', ...' if len(names) > _NAMES_SHOWN else ''})"


def _is_utf8(name: str) -> bool:
    """Return whether a file's name is text; Python keeps the bytes of others as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
