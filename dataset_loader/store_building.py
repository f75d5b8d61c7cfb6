"""Build an image store: in parallel, resumable, by one process at a time.

A store is a folder of

images.npy     uint8 [M, 1, S, S], appended to while it is built
kept.npy       int64 [M]: which of the N requested files the M rows are
rejected.csv   file and reason of the N - M others
store.json     written last, with the count M and a checksum that names the pixels: without it the build is unfinished
progress.json  until the build is finished: how far it is

A store that lacks pixels is built again. Bytes that a disk changes by itself are not noticed.
"""

import io
import os
import shutil
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from dataset_loader.decoding import square_or_error
from dataset_loader.image_files import BrokenImageError, NoXRayError
from utils.config import UserError
from utils.distributed import exclusive_lock
from utils.files import plain_refusals, read_json, remove_leftovers, write_atomically, write_json, write_table
from utils.hardware import usable_cores
from utils.messages import say
from utils.scripts import progress_bar

FORMAT = 4  # part of a store's key: raise it when the decoding or these files change
IMAGES, KEPT, REJECTED, FINISHED = "images.npy", "kept.npy", "rejected.csv", "store.json"

# More broken files than this mean a wrong store_res or an incomplete download. Masks and the like are not broken.
MAX_REJECTED_SHARE = 0.1

_PROGRESS = "progress.json"
_CHUNK_IMAGES = 1000  # at most, which a killed build loses
_CHUNK_BYTES = 64 * 2**20  # at most, which a build holds in memory
_HEADER_BYTES = 128  # of a .npy file of this type, whatever M is


def finished_store(folder: Path, size: int) -> dict[str, Any] | None:
    """Return store.json of a finished store of `size` x `size` images; None if it, or a part of the pixels, is missing.

    Raises UserError if store.json is damaged.
    """
    facts = read_json(folder / FINISHED)
    if facts is None:
        return None
    intact = (folder / KEPT).exists() and _holds(folder / IMAGES, facts["kept"], size, exactly=True)
    if not intact:
        say(f"warning: the decoded images in {folder} are incomplete; decoding them again")
    return facts if intact else None


def _holds(images: Path, count: int, size: int, exactly: bool) -> bool:
    """Return whether a file has room for so many images: for `exactly` these, or for more."""
    needed, found = _HEADER_BYTES + count * size**2, images.stat().st_size if images.exists() else -1
    return found == needed if exactly else found >= needed


def build_store(root: Path, names: list[str], size: int, folder: Path, show_progress: bool) -> dict[str, Any]:
    """Decode the N files `root/names` into a store in `folder`, or wait while another process does; return store.json.

    Raises UserError if more than MAX_REJECTED_SHARE of them are broken, none is an X-ray or the disk is too full.
    """
    with exclusive_lock(folder / "lock", f"decoding the same images into {folder}"):
        facts = finished_store(folder, size)
        if facts is not None:  # by the process that this one waited for
            return facts
        (folder / FINISHED).unlink(missing_ok=True)
        state = _read_progress(folder, size)
        if not state.done:
            (folder / IMAGES).unlink(missing_ok=True)  # another process may still read what is damaged
        remove_leftovers(folder)
        _check_disk((len(names) - state.done) * size**2, folder)
        with plain_refusals(folder / IMAGES):
            _decode_all(root, names, size, folder, state, show_progress)
            return _finish(root, names, size, folder, state)


@dataclass
class _Progress:
    """How far a build is.

    done      files that were decoded
    rejected  which of them are not in the store, and why
    no_xrays  which of these are whole files that are no X-rays
    crc       CRC-32 of the pixels of the others
    """

    done: int
    rejected: dict[int, str]
    no_xrays: list[int]
    crc: int

    @property
    def kept(self) -> int:
        return self.done - len(self.rejected)

    def add(self, images: IO[bytes], image: np.ndarray | BrokenImageError) -> None:
        """Append the next file's image, uint8 [S, S], to images.npy, or note why there is none."""
        if isinstance(image, BrokenImageError):
            self.rejected[self.done] = str(image)
            self.no_xrays += [self.done] if isinstance(image, NoXRayError) else []
        else:
            pixels = image.tobytes()
            images.write(pixels)
            self.crc = zlib.crc32(pixels, self.crc)
        self.done += 1


def _read_progress(folder: Path, size: int) -> _Progress:
    """Return how far an earlier build was, if its pixels are still there."""
    progress = read_json(folder / _PROGRESS)
    if progress is not None:
        rejected = {int(row): reason for row, reason in progress["rejected"].items()}
        state = _Progress(progress["done"], rejected, progress["no_xrays"], progress["pixels_crc32"])
        if _holds(folder / IMAGES, state.kept, size, exactly=False):
            return state
    return _Progress(0, {}, [], 0)


def _check_disk(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the decoded images need {needed / 1e9:.1f} GB more in {folder}, where {free / 1e9:.1f} GB are "
            "free; make room or lower store_res."
        )


def _decode_all(root: Path, names: list[str], size: int, folder: Path, state: _Progress, show_progress: bool) -> None:
    """Append the files from state.done to images.npy, chunk by chunk."""
    chunk = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // size**2))
    bar = progress_bar(len(names), f"decoding to {size} px", state.done, show_progress)
    # Threads: Pillow decodes and resizes without holding the GIL. Processes are not faster, and would start the
    # script a second time on Windows and macOS.
    with (folder / IMAGES).open("ab") as images, ThreadPoolExecutor(usable_cores()) as pool, bar:
        images.truncate(_HEADER_BYTES + state.kept * size**2)  # drop what progress.json does not count
        try:
            for start in range(state.done, len(names), chunk):
                files = [f"{root}/{name}" for name in names[start : start + chunk]]
                for image in pool.map(partial(square_or_error, size=size), files):
                    state.add(images, image)
                    bar.update()
                images.flush()
                os.fsync(images.fileno())  # the images first, then the record that they exist
                counts = {"done": state.done, "rejected": state.rejected, "no_xrays": state.no_xrays}
                write_json(folder / _PROGRESS, {**counts, "pixels_crc32": state.crc})
                _check_rejected(state, names, folder)
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest of the chunk


def _check_rejected(state: _Progress, names: list[str], folder: Path) -> None:
    broken = {names[row]: reason for row, reason in state.rejected.items() if row not in set(state.no_xrays)}
    all_known, no_xrays = state.done == len(names), len(state.no_xrays)
    if len(broken) <= MAX_REJECTED_SHARE * (len(names) - no_xrays) and (state.kept or not all_known):
        return
    _write_rejected(state.rejected, names, folder)
    for name in (IMAGES, _PROGRESS):  # so that the next call reads the files again
        (folder / name).unlink()
    if not broken:
        raise UserError(f"none of the {len(names):,} files is an X-ray: {_counted(state)}; see {folder / REJECTED}.")
    examples = "; ".join(f"{name}: {reason}" for name, reason in list(broken.items())[:3])
    raise UserError(
        f"{len(broken):,} of {'' if all_known else 'the first '}{state.done - no_xrays:,} images cannot be used, "
        f"more than {MAX_REJECTED_SHARE:.0%} of all: {examples}. All reasons are in {folder / REJECTED}. "
        "Lower store_res or img_res if images are too small (64 px is the least)."
    )


def _counted(state: _Progress) -> str:
    """Return how many files are no X-rays, by the reason."""
    return ", ".join(
        f"{n:,} times {reason}" for reason, n in Counter(state.rejected[row] for row in state.no_xrays).items()
    )


def _write_rejected(rejected: dict[int, str], names: list[str], folder: Path) -> None:
    rows = [(names[row], reason) for row, reason in sorted(rejected.items())]
    write_table(folder / REJECTED, pd.DataFrame(rows, columns=["file", "reason"]))


def _finish(root: Path, names: list[str], size: int, folder: Path, state: _Progress) -> dict[str, Any]:
    kept = np.setdiff1d(np.arange(len(names)), np.array(list(state.rejected), dtype=np.int64))
    with (folder / IMAGES).open("r+b") as images:
        images.write(_header(len(kept), size))
        images.flush()
        os.fsync(images.fileno())
    write_atomically(folder / KEPT, lambda file: np.save(file, kept))
    _write_rejected(state.rejected, names, folder)
    facts = {"root": str(root), "kept": len(kept), "no_xrays": _counted(state), "pixels_crc32": state.crc}
    write_json(folder / FINISHED, facts)
    (folder / _PROGRESS).unlink()
    return facts


def _header(kept: int, size: int) -> bytes:
    """Return the first _HEADER_BYTES of images.npy."""
    header = io.BytesIO()
    shape = (kept, 1, size, size)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert len(header.getvalue()) == _HEADER_BYTES
    return header.getvalue()
