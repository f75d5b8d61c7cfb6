"""Decode every image once into one uint8 array on disk; later runs map it into memory in milliseconds."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dataset_loader.dicom import decoders
from dataset_loader.image_files import is_dicom_name
from dataset_loader.store_building import FORMAT, IMAGES, KEPT, REJECTED, build_store, finished_store
from utils.config import UserError
from utils.messages import say

# of the device's free memory; the rest is for the model and its activations
MAX_DEVICE_SHARE = 0.6

# of the files' contents in a store's key: other images may be put in their place with equal sizes and times
MAX_SAMPLED, SAMPLE_BYTES = 32, 2**16


@dataclass(frozen=True)
class ImageStore:
    """M decoded X-rays.

    array   uint8 [M, 1, S, S]: a read-only memory map, or a tensor on the device
    kept    int64 [M], increasing: positions of the rows in the requested list of files
    size    S
    pixels  checksum of the array
    folder  its place on disk
    device  where `gather` puts a batch
    """

    array: np.ndarray | torch.Tensor
    kept: np.ndarray
    size: int
    pixels: int
    folder: Path
    device: torch.device

    def __len__(self) -> int:
        return len(self.kept)

    def gather(self, indices: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return rows [B] as uint8 [B, 1, S, S] on `device`. Raises IndexError for a row outside 0..M-1."""
        if isinstance(indices, torch.Tensor) and indices.is_cuda and isinstance(self.array, torch.Tensor):
            return self.array[indices]  # checking the range would wait for the device
        rows = indices.cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} are not in a store of {len(self)}")
        if isinstance(self.array, torch.Tensor):
            return self.array[torch.from_numpy(rows).to(self.device, non_blocking=True)]
        pinned = self.device.type == "cuda"
        batch = torch.empty((len(rows), *self.array.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        # "clip" writes into the batch directly, "raise" by way of a second buffer
        np.take(self.array, rows, axis=0, out=batch.numpy(), mode="clip")
        return batch.to(self.device, non_blocking=pinned)

    def to(self, device: torch.device | str) -> "ImageStore":
        """Return the same store, gathering onto `device`; the array itself moves there if it fits."""
        device = torch.device(device)
        images = _map_images(self.folder)
        array = _copy_to(images, device) if _fits(images.nbytes, device) else images
        return replace(self, array=array, device=device)


def open_store(root: Path, paths: Sequence[str], size: int, cache_dir: Path, show_progress: bool = True) -> ImageStore:
    """Open the store of the images `root/paths` at `size` x `size` pixels; decode what is not decoded yet.

    The store is the folder `cache_dir/<key>/`, where the key hashes `root`, the files' names, sizes and modification
    times, and the beginnings of some of them: a changed file makes a new store. A build that was killed resumes where
    it stopped, and a damaged store is built again; of several processes one builds and the others wait. Broken files,
    masks and the like are left out and counted on stderr (unless `show_progress` is off), reasons in rejected.csv.
    Raises UserError if too many are broken or smaller than `size`, none is an X-ray, or the disk is too full.
    """
    root, names = Path(root), [str(path) for path in paths]
    if not names:
        raise UserError(f"found no image to decode under {root}, expected at least one.")
    folder = Path(cache_dir) / _key(root, names, size)
    facts = finished_store(folder, size) or build_store(root, names, size, folder, show_progress)
    images, kept = _map_images(folder), np.load(folder / KEPT)
    store = ImageStore(images, kept, size, facts["pixels_crc32"], folder, torch.device("cpu"))
    if show_progress and len(store) < len(names):
        no_xrays = f" (among them no X-rays: {facts['no_xrays']})" if facts["no_xrays"] else ""
        lost = f"{len(names) - len(store):,} of {len(names):,} images left out{no_xrays}"
        say(f"{lost}: see {folder / REJECTED}")
    return store


def _key(root: Path, names: list[str], size: int) -> str:
    digest = hashlib.sha256(f"format {FORMAT}, {size} px\n".encode() + os.fsencode(root.resolve()))
    if any(map(is_dicom_name, names)):
        digest.update(repr(decoders()).encode())  # another one may read files that were left out
    read_every = -(-len(names) // MAX_SAMPLED)
    for row, name in enumerate(names):
        with contextlib.suppress(OSError):  # a file that is missing has only a name
            found = os.stat(f"{root}/{name}")
            digest.update(f"{found.st_size}\t{found.st_mtime_ns}\t".encode())
            if row % read_every == 0:
                with open(f"{root}/{name}", "rb") as file:
                    digest.update(file.read(SAMPLE_BYTES))
        digest.update(os.fsencode(f"{name}\n"))
    return f"{size}px-{digest.hexdigest()[:16]}"


def _map_images(folder: Path) -> np.ndarray:
    return np.load(folder / IMAGES, mmap_mode="r")


def _fits(size_bytes: int, device: torch.device) -> bool:
    return device.type == "cuda" and size_bytes <= MAX_DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]


def _copy_to(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy in pieces, so that the host's memory never holds the whole array."""
    copy = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), 1000):
        copy[start : start + 1000] = torch.from_numpy(np.array(images[start : start + 1000]))
    return copy
