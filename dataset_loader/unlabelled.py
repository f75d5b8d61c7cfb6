"""More collections of chest X-rays for pretraining, beside the labelled data set; their labels are not read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dataset_loader.chexpert_dataset import read_chexpert
from dataset_loader.covid_dataset import read_covid
from dataset_loader.decoding import is_image
from dataset_loader.duplicates import THUMBNAIL, find_copies
from dataset_loader.image_store import ImageStore, open_store
from dataset_loader.splits import image_ids
from utils.config import DATASETS_ROOT, UserError, repo_path

LAYOUTS = {"covid": read_covid, "chexpert": read_chexpert}


@dataclass(frozen=True)
class Collection:
    """M usable X-rays of another collection, none of which is a near-duplicate of a held-out image.

    source    "covid", "chexpert" or, for any other folder, "folder"
    root      the folder that the paths are relative to
    paths     [M] image files
    store     pixels; `rows` [M] are those of the paths
    left_out  near-duplicates of held-out images: file, other (the held-out image), distance
    """

    source: str
    root: Path
    paths: np.ndarray
    rows: np.ndarray
    store: ImageStore
    left_out: pd.DataFrame

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return pixels, uint8 [B, 1, S, S] on the store's device, of the X-rays at `indices` [B]."""
        return self.store.gather(self.rows[indices])

    def image_ids(self, indices: np.ndarray) -> np.ndarray:
        """Return ids [n] int64, by which an encoder's file lists the images that it was trained on."""
        return image_ids(self.source, self.paths[indices])

    @property
    def num_left_out(self) -> int:
        """Images that are near-duplicates of held-out ones."""
        return len(set(self.left_out["file"]))

    def facts(self) -> dict[str, object]:
        """Return what a run records about it."""
        return {"root": str(self.root), "images": len(self), "near_duplicates_left_out": self.num_left_out}


def open_collection(
    entry: str, size: int, device: torch.device, held_out: ImageStore, held_out_files: Sequence[str]
) -> Collection:
    """Open one entry of the config's `also`; near-duplicates of the held-out X-rays are left out.

    entry     "chexpert:FOLDER" or "covid:FOLDER" (lateral views, masks and montages are left out as the data set's
              reader does), or FOLDER: every image file below it, but for hidden ones and those under "masks"
    held_out  THUMBNAIL px thumbnails of the `held_out_files`, the validation and test images

    Raises UserError if the folder is missing or holds no usable image.
    """
    layout, _, folder = entry.rpartition(":")
    if layout and layout not in LAYOUTS and len(layout) > 1:  # one letter is a Windows drive
        raise UserError(f'also holds {entry!r}; expected a folder, "chexpert:FOLDER" or "covid:FOLDER".')
    root = repo_path(folder if layout in LAYOUTS else entry)
    if not root.is_dir():
        raise UserError(f"also holds {entry!r}, but there is no folder {root}.")
    paths = LAYOUTS[layout](root).paths if layout in LAYOUTS else image_files(root)
    if not len(paths):
        raise UserError(f"also holds {entry!r}, but there is no image file below {root}.")
    store = open_store(root, list(paths), size, DATASETS_ROOT / ".cache")
    thumbnails = open_store(root, list(paths), THUMBNAIL, DATASETS_ROOT / ".cache")
    left_out = find_copies(thumbnails, list(paths[thumbnails.kept]), held_out, held_out_files)
    rows = np.flatnonzero(~np.isin(paths[store.kept], left_out["file"].to_numpy(dtype=object)))
    source = layout if layout in LAYOUTS else "folder"
    return Collection(source, root, paths[store.kept][rows], rows, store.to(device), left_out)


def image_files(root: Path) -> np.ndarray:
    """Return the image files below a folder as sorted relative POSIX paths, without hidden ones and masks."""
    found = []
    for folder, names, _ in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and name.lower() != "masks"]
        with os.scandir(folder) as entries:
            found += [Path(entry.path).relative_to(root).as_posix() for entry in entries if is_image(entry)]
    return np.array(sorted(found), dtype=object)
