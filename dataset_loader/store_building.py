"""Build an image store: in parallel, resumable, by one process at a time.

A store is a folder of

images.npy     uint8 [M, 1, S, S], appended to while it is built
kept.npy       int64 [M]: which of the N requested files the M rows are
rejected.csv   file and reason of the N - M others
store.json     written last: a folder without it holds an unfinished build
progress.json  until then: how far the build is
"""

import csv
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from dataset_loader.decoding import BrokenImageError, decode_square
from utils.config import UserError
from utils.files import exclusive_lock, write_atomically, write_json, write_text
from utils.hardware import usable_cores
from utils.scripts import progress_bar

FORMAT = 1  # part of a store's key: raise it when the decoding or these files change
IMAGES, KEPT, REJECTED = "images.npy", "kept.npy", "rejected.csv"

# More broken files than this mean a wrong store_res or an incomplete download.
MAX_REJECTED_SHARE = 0.1

_FINISHED, _PROGRESS = "store.json", "progress.json"
_CHUNK_IMAGES = 1000  # at most, which a killed build loses
_CHUNK_BYTES = 64 * 2**20  # at most, which a build holds in memory
_HEADER_BYTES = 128  # of a .npy file of this type, whatever M is


def is_finished(folder: Path, size: int) -> bool:
    """Return whether `folder` holds a finished store of `size` x `size` images."""
    try:
        kept = json.loads((folder / _FINISHED).read_text(encoding="utf-8"))["kept"]
        return (folder / IMAGES).stat().st_size == _HEADER_BYTES + kept * size**2
    except (OSError, ValueError, KeyError):
        return False


def build_store(root: Path, names: list[str], size: int, folder: Path, show_progress: bool) -> None:
    """Decode the N files `root/names` into a store in `folder`, or wait while another process does.

    Raises UserError if more than MAX_REJECTED_SHARE of them cannot be used, or the disk is too full.
    """
    with exclusive_lock(folder / "lock", f"decoding the same images into {folder}"):
        if is_finished(folder, size):  # by the process that this one waited for
            return
        (folder / _FINISHED).unlink(missing_ok=True)
        done, rejected = _read_progress(folder, size)
        _check_disk((len(names) - done) * size**2, folder)
        rejected = _decode_all(root, names, size, folder, done, rejected, show_progress)
        _finish(root, names, size, folder, rejected)


def _read_progress(folder: Path, size: int) -> tuple[int, dict[int, str]]:
    """Return how many files an earlier build has decoded, and which of them it rejected and why."""
    try:
        progress = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        written = (folder / IMAGES).stat().st_size
    except (OSError, ValueError):
        return 0, {}
    done, rejected = progress["done"], {int(row): reason for row, reason in progress["rejected"].items()}
    return (done, rejected) if written >= _HEADER_BYTES + (done - len(rejected)) * size**2 else (0, {})


def _check_disk(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the decoded images need {needed / 1e9:.1f} GB more in {folder}, where {free / 1e9:.1f} GB are "
            "free; make room or lower store_res."
        )


def _decode_all(
    root: Path,
    names: list[str],
    size: int,
    folder: Path,
    done: int,
    rejected: dict[int, str],
    show_progress: bool,
) -> dict[int, str]:
    """Append the files from `done` to images.npy, chunk by chunk; return all that were rejected."""
    chunk = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // size**2))
    bar = progress_bar(len(names), f"decoding to {size} px", done, show_progress)
    # Threads: Pillow decodes and resizes without holding the GIL. Processes are not faster, and would start the
    # script a second time on Windows and macOS.
    with (folder / IMAGES).open("ab") as images, ThreadPoolExecutor(usable_cores()) as pool, bar:
        images.truncate(_HEADER_BYTES + (done - len(rejected)) * size**2)  # drop what progress.json does not count
        try:
            for start in range(done, len(names), chunk):
                files = [f"{root}/{name}" for name in names[start : start + chunk]]
                for position, image in enumerate(pool.map(partial(_decode, size=size), files), start):
                    if isinstance(image, str):
                        rejected[position] = image
                    else:
                        images.write(image.data)
                    bar.update()
                images.flush()
                os.fsync(images.fileno())  # the images first, then the record that they exist
                write_json(folder / _PROGRESS, {"done": start + len(files), "rejected": rejected})
                _check_rejected(rejected, start + len(files), names, folder)
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest of the chunk
    return rejected


def _decode(file: str, size: int) -> np.ndarray | str:
    """Return the image [S, S], or the reason why it cannot be used."""
    try:
        return decode_square(file, size)
    except BrokenImageError as error:
        return str(error)


def _check_rejected(rejected: dict[int, str], done: int, names: list[str], folder: Path) -> None:
    if len(rejected) <= MAX_REJECTED_SHARE * len(names):
        return
    _write_rejected(rejected, names, folder)
    for name in (IMAGES, _PROGRESS):  # so that the next call reads the files again
        (folder / name).unlink()
    examples = "; ".join(f"{names[row]}: {reason}" for row, reason in list(rejected.items())[:3])
    raise UserError(
        f"{len(rejected):,} of {'the first ' if done < len(names) else ''}{done:,} images cannot be used, "
        f"more than {MAX_REJECTED_SHARE:.0%} of all: {examples}. All reasons are in {folder / REJECTED}."
    )


def _write_rejected(rejected: dict[int, str], names: list[str], folder: Path) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "reason"))
    table.writerows((names[row], reason) for row, reason in sorted(rejected.items()))
    write_text(folder / REJECTED, text.getvalue())


def _finish(root: Path, names: list[str], size: int, folder: Path, rejected: dict[int, str]) -> None:
    kept = np.setdiff1d(np.arange(len(names)), np.array(list(rejected), dtype=np.int64))
    header = io.BytesIO()
    shape = (len(kept), 1, size, size)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert len(header.getvalue()) == _HEADER_BYTES
    with (folder / IMAGES).open("r+b") as images:
        images.write(header.getvalue())
        images.flush()
        os.fsync(images.fileno())
    write_atomically(folder / KEPT, lambda file: np.save(file, kept))
    _write_rejected(rejected, names, folder)
    counts = {"requested": len(names), "kept": len(kept), "rejected": len(rejected)}
    write_json(folder / _FINISHED, {"root": str(root), "size": size, "format": FORMAT, **counts})
    (folder / _PROGRESS).unlink()
