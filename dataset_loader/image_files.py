"""Which files of a folder are X-rays: by their names, and DICOM files of any name by their first bytes."""

import functools
import os
import re
import struct
from collections import Counter
from pathlib import Path
from typing import IO

import numpy as np

from dataset_loader.dicom import pictureless_kind
from utils.messages import say

_DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
IMAGE_SUFFIXES = _DICOM_SUFFIXES | {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
}
# Other kinds of images, and archives. They are not read, and named, so that nobody takes them for used.
_UNREAD = (".jp2", ".j2k", ".jxl", ".heic", ".heif", ".avif", ".pgm", ".ppm", ".svg", ".psd", ".raw", ".img", ".npy")
_UNREAD += (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".dcm.gz", ".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
_STARTS = (b"\x89PNG", b"\xff\xd8\xff")  # of PNG and JPEG files
# Folders of other programs: of a Mac's zips, of network disks (previews, snapshots), waste. None holds X-rays.
_OF_PROGRAMS = ("__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin")
_OF_PROGRAMS += ("recycler", "lost+found", "system volume information", "__pycache__")
_NOT_OPENED = frozenset({".csv", ".txt", ".json", ".xml", ".html"})  # to see whether they are DICOM: often one an image
# Names of what holds masks, as words in lower case, and of folders that hold images inside of such a folder.
_MASKS = re.compile(r"(?<!with )(?<!and )masks?(?: \d+| png| jpe?g)*$|^labels ?t[rs]$")
_MASKS_OR_SET = re.compile(
    r"\b(?:segmentations?|segs?|ground ?truths?|gt|annotations?|contours?)(?: \d+| png| jpe?g)*$"
)
_MASK_FILE = re.compile(r"\bmasks?\d*\b|masks?$|\bseg(?:mentation)?$")
_IMAGES = re.compile(r"\b(?:images?|imgs?|cxrs?|x ?rays?|radiographs?|films?)\b")
_NAMES_SHOWN = 3


class BrokenImageError(Exception):
    """A file without a usable image; the message is the reason, without the file's name."""


class NoXRayError(BrokenImageError):
    """A whole file that is no X-ray: a mask, or a DICOM object without a picture. The reason is one of a few."""


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder's entry is an image file that can be read, neither hidden nor temporary."""
    if not is_visible(entry.name) or not _is_utf8(entry.name) or not entry.is_file():
        return False
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES or _content(entry.path) == "DICOM"


def _content(path: str) -> str:
    """Return whether a file starts as "DICOM" or as a "picture", PNG or JPEG, or "" for any other and for tables."""
    if os.path.splitext(path)[1].lower() in _NOT_OPENED:
        return ""
    try:
        with open(path, "rb") as file:
            return "DICOM" if starts_as_dicom(file) else "picture" * file.read(4).startswith(_STARTS)
    except OSError:
        return ""


def _why_unread(entry: os.DirEntry[str]) -> str:
    """Return why an entry that is_image does not take may be missed, and what to do, or "" if it is none of ours."""
    if not is_visible(entry.name) or (entry.is_dir() and _is_utf8(entry.name)):
        return ""
    if not _is_utf8(entry.name):
        return "whose names are not UTF-8; rename them to use"
    if not os.path.exists(entry.path):
        return "links to files that are not there"
    if entry.name.lower().endswith(_UNREAD):
        return "of a kind that is not read; unpack, or convert to PNG, to use"
    return "PNG or JPEG without the suffix; rename them to use" * (_content(entry.path) == "picture")


def starts_as_dicom(file: IO[bytes]) -> bool:
    """Return whether an open file starts as DICOM files do, with 128 bytes of anything and DICM or without; rewinds it.

    Without, two elements in the order of their tags begin it, of the groups that come first (PS3.5, 7.1).
    """
    start = file.read(1024)
    file.seek(0)
    return start[128:132] == b"DICM" or any(_starts_with_elements(start, order) for order in "<>")


def _starts_with_elements(start: bytes, order: str) -> bool:
    try:
        tag, vr = struct.unpack(f"{order}2H", start[:4]), start[4:6]
        short = vr.isalpha() and vr.isupper()  # an explicit type of value, before a length of 2 bytes
        (length,) = struct.unpack_from(order + ("H" if short else "I"), start, 6 if short else 4)
        following = struct.unpack_from(f"{order}2H", start, 8 + length)
    except struct.error:
        return False
    return tag[0] in (0x0002, 0x0008) and tag < following < (0x0011, 0)


def is_dicom_name(name: str) -> bool:
    """Return whether one of image_files is a DICOM file by its name."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in _DICOM_SUFFIXES or suffix not in IMAGE_SUFFIXES


def is_visible(name: str) -> bool:
    """Return whether a name is neither hidden (.DS_Store, ._x.png) nor temporary (~$x.xlsx, #x.png#, x.png~)."""
    return not name.startswith((".", "~$")) and not name.endswith(("#", "~"))


def is_left_out(name: str) -> bool:
    """Return whether a folder of that name holds no X-rays: hidden, of another program, or masks."""
    return _is_foreign(name) or _holds_masks(name)


def _is_foreign(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_PROGRAMS


def image_files(root: Path) -> np.ndarray:
    """Return the X-rays below a folder as sorted relative POSIX paths.

    A folder that is linked to from several places is read once. Hidden ones and those of other programs are not; masks,
    by the names of files and folders, DICOM objects without a picture (DICOMDIR, reports, ...), images of a kind or
    under a name that is not read, links to nothing, and folders that cannot be read are left out and counted on stderr.
    """
    return sorted_files(root)[0]


def sorted_files(root: Path) -> tuple[np.ndarray, dict[str, tuple[str, str]]]:
    """Return what image_files does, and what it leaves out: by path, its kind and the reason."""
    found: list[str] = []
    unread: dict[str, list[str]] = {}  # files by why they are not read
    read: set[tuple[int, int]] = set()  # folders by device and inode: a link may lead to a folder above it
    closed: list[str] = []
    for folder, names, _ in os.walk(root, followlinks=True, onerror=lambda error: closed.append(str(error.filename))):
        status = os.stat(folder)
        names[:] = [name for name in names if not _is_foreign(name) and _is_utf8(name)]
        if (status.st_dev, status.st_ino) in read:
            names.clear()
            continue
        read.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                file = Path(entry.path).relative_to(root).as_posix()
                if is_image(entry):
                    found.append(file)
                elif why := _why_unread(entry):
                    unread.setdefault(why, []).append(file)
    for why, files in sorted(unread.items()):
        say(f"note: left out {shown(sorted(files))}, {why}")
    if closed:
        say(f"warning: left out folders that cannot be read: {shown(closed)}")
    masks = _masks(root, found)
    objects = _objects(root, [file for file in found if file not in masks])
    left_out = {file: ("no X-ray", reason) for file, reason in (masks | objects).items()}
    left_out |= {_printable(file): ("not read", why) for why, files in unread.items() for file in files}
    left_out |= {os.path.relpath(folder, root): ("not read", "a folder that cannot be read") for folder in closed}
    return np.array(sorted({*found} - {*left_out}), dtype=object), left_out


def _masks(root: Path, files: list[str]) -> dict[str, str]:
    masks = sorted(file for file in files if is_mask(file))
    if masks:
        folders = Counter(file.rpartition("/")[0] or str(root) for file in masks)
        counts = [f"{count:,} in {folder}" for folder, count in folders.items()]
        more = f" ... ({len(counts):,} folders)" if len(counts) > _NAMES_SHOWN else ""
        listed = ", ".join(counts[:_NAMES_SHOWN]) + more
        say(f"note: {len(masks):,} masks, by the names of files or folders, are no X-rays: {listed}")
    return dict.fromkeys(masks, "a mask, by its name or folder")


def is_mask(file: str) -> bool:
    """Return whether a relative POSIX path is that of a mask, by the name of the file or of a folder around it."""
    folder, _, name = file.rpartition("/")
    return bool(_MASK_FILE.search(_words(os.path.splitext(name)[0]))) or _holds_masks(folder)


@functools.cache
def _holds_masks(folder: str) -> bool:
    """Return whether a folder or one around it is that of masks; the innermost folder that says what it holds counts.

    Below a folder such as "lung segmentation" there may be X-rays, too: only its own files are masks.
    """
    inner, *outer = [_words(name) for name in reversed(folder.split("/"))]
    said = [name for name in (inner, *outer) if _IMAGES.search(name) or _MASKS.search(name)]
    return bool(_MASKS_OR_SET.search(inner) or (said and _MASKS.search(said[0])))


def _words(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def _objects(root: Path, files: list[str]) -> dict[str, str]:
    kinds = {file: pictureless_kind(root / file) for file in sorted(files) if is_dicom_name(file)}
    if counts := Counter(filter(None, kinds.values())):
        listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
        say(f"note: left out {counts.total():,} DICOM files that hold no X-ray: {listed}")
    return {file: f"DICOM without a picture ({kind})" for file, kind in kinds.items() if kind}


def shown(names: list[str]) -> str:
    """Return the number of names and the first of them, for a message."""
    first = ", ".join(map(_printable, names[:_NAMES_SHOWN]))
    return f"{len(names):,} ({first}{', ...' if len(names) > _NAMES_SHOWN else ''})"


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


def _is_utf8(name: str) -> bool:
    """Return whether a file's name is text; Python keeps the bytes of others as lone surrogates."""
    return name.isascii() or not re.search("[\ud800-\udfff]", name)
