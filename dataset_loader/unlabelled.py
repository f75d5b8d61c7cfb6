"""More collections of chest X-rays for pretraining, beside the labelled data set; their labels are not read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dataset_loader.columns import Columns
from dataset_loader.duplicates import find_copies
from dataset_loader.image_store import ImageStore, open_store
from dataset_loader.listing import listed_files
from dataset_loader.readers import READERS
from dataset_loader.readers.folder_dataset import read_films, without_laterals
from dataset_loader.readers.patients import id_keys
from dataset_loader.signatures import THUMBNAIL, copies_among, signatures
from dataset_loader.splits import names_hash
from dataset_loader.synthetic import is_synthetic, without_synthetic
from utils.config import DATASETS_ROOT, Gone, UserError, repo_path
from utils.messages import say

PUBLIC = ("covid", "chexpert", "nih")  # sources whose patients have the same ids in every folder


@dataclass(frozen=True)
class Labelled:
    """What the collections must not repeat: the images of the labelled data set.

    source      of the data set, as in XRays
    signatures  of its train images
    groups      of its validation and test images: patients, or the images themselves
    thumbnails  of these images, THUMBNAIL px; their `files`; None without any
    """

    source: str
    signatures: np.ndarray
    groups: np.ndarray
    thumbnails: ImageStore | None
    files: Sequence[str]


@dataclass(frozen=True)
class Collection:
    """M usable X-rays of another collection, none of which is in the labelled data set or a copy of a held-out image.

    source      "covid", "chexpert", "nih", "phantom" or, for any other folder, "folder"
    root        the folder that the paths are relative to
    paths       [M] image files
    rows        [M] their places in the store
    store       pixels
    signatures  [M, 49] uint8, by which their pictures are known
    visits      [M] str, the same for X-rays of one patient and study
    left_out    near-duplicates of held-out images: file, other (the held-out image), distance; and images of held-out
                patients: file, other (the patient), NaN
    listed      the fact about all files that it found
    """

    source: str
    root: Path
    paths: np.ndarray
    rows: np.ndarray
    store: ImageStore
    signatures: np.ndarray
    visits: np.ndarray
    left_out: pd.DataFrame
    listed: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_left_out(self) -> int:
        """Images that are near-duplicates of held-out ones, or of their patients."""
        return len(set(self.left_out["file"]))

    def facts(self) -> dict[str, object]:
        """Return what a run records about it; a run does not resume on other facts."""
        facts = {"root": str(self.root), "images": len(self), "names_hash": names_hash(self.paths)}
        return {**facts, "near_duplicates_left_out": self.num_left_out}


def open_collection(entry: str, size: int, device: torch.device, labelled: Labelled) -> Collection:
    """Open one entry of the config's `also`.

    entry  LAYOUT:FOLDER with a key of READERS, such as chexpert:FOLDER (lateral views, masks and montages are left out
           as the data set's reader does), or FOLDER: every X-ray below it that image_files finds, but for DICOM files
           whose header says that they are lateral

    What collection_of leaves out is left out. Raises UserError if the folder is missing or no image remains.
    """
    columns = columns_of(entry)
    source = "phantom" if is_synthetic(columns.root) else entry.rpartition(":")[0]
    source = source if source in ("phantom", *READERS) else "folder"
    collection = collection_of(source, columns, size, device, labelled)
    if collection is None:
        raise UserError(f"also holds {entry!r}, but no image file below {columns.root} is new to the data set.")
    return collection


def collection_of(
    source: str, columns: Columns, size: int, device: torch.device, labelled: Labelled
) -> Collection | None:
    """Return some X-rays as a collection, whose labels do not matter, or None if nothing remains.

    Left out are the data set's own images under any name, those of patients of its validation and test parts,
    near-duplicates of images there, and images of fewer than THUMBNAIL px, which cannot be compared with them.
    """
    root, paths = columns.root, columns.paths
    if not len(paths):
        return None
    thumbnails = open_store(root, list(paths), THUMBNAIL, DATASETS_ROOT / ".cache")
    pictures, compared = signatures(thumbnails), paths[thumbnails.kept]
    known = copies_among(pictures, labelled.signatures, max_bits=0)
    patients = columns.groups[thumbnails.kept].astype(str)  # an image of which no patient is known is its own group
    same = np.isin(id_keys(patients).astype(str), id_keys(labelled.groups).astype(str))
    held_out = (source == labelled.source) & (patients != compared) & same
    left_out = pd.DataFrame({"file": compared[held_out], "other": patients[held_out], "distance": np.nan})
    if labelled.thumbnails is not None:
        copies = find_copies(thumbnails, compared.tolist(), labelled.thumbnails, labelled.files, device)
        left_out = pd.concat([copies, left_out]) if len(left_out) else copies
    left_out = left_out.loc[np.isin(left_out["file"], compared[~known])]
    new = ~known & ~np.isin(compared, left_out["file"])
    if not new.any():
        return None
    store = open_store(root, list(paths), size, DATASETS_ROOT / ".cache")
    rows = np.flatnonzero(np.isin(store.kept, thumbnails.kept[new]))
    usable = np.isin(thumbnails.kept, store.kept) & new
    visits = visits_of(source, columns.take(thumbnails.kept[usable]))
    pixels, found = store.to(device), listed_files(paths)
    return Collection(source, root, compared[usable], rows, pixels, pictures[usable], visits, left_out, found)


def visits_of(source: str, columns: Columns) -> np.ndarray:
    """Return [N] str, the same for X-rays of one patient and study, whatever folder of a PUBLIC source they are in.

    Elsewhere, one id in two folders may be two patients. An X-ray of which no patient is known is alone.
    """
    patients = np.asarray(columns.details.get("patient", columns.groups), dtype=str)  # before duplicates were joined
    known = patients != columns.paths
    origins = np.where(known & (source in PUBLIC), source, str(columns.root.resolve()))
    names = np.where(known, id_keys(patients), columns.paths)
    return np.array(list(map("\n".join, zip(origins, names, columns.studies, strict=True))), dtype=object)


def found_among(entries: Sequence[str], pictures: np.ndarray, visits: np.ndarray) -> np.ndarray:
    """Return which X-rays are copies of one in other collections, or of a patient there, [N] bool.

    entries   collections, as `also` names them
    pictures  [N, 49] uint8, the signatures of the X-rays
    visits    [N] str, as visits_of returns them; patients are compared where both collections are of one public source
    """
    found = np.zeros(len(pictures), dtype=bool)
    people = np.array([visit.rpartition("\n")[0] for visit in visits], dtype=str)
    for entry in entries:
        columns = columns_of(entry)
        thumbnails = open_store(columns.root, list(columns.paths), THUMBNAIL, DATASETS_ROOT / ".cache")
        copies = copies_among(pictures, signatures(thumbnails))
        there = {visit.rpartition("\n")[0] for visit in visits_of(entry.rpartition(":")[0], columns)}
        patients = np.isin(people, sorted(there)) & ~copies
        lost = f"{copies.sum():,} copies and {patients.sum():,} more X-rays of the same patients"
        say(f"exclude {entry}: {lost} left out")
        found |= copies | patients
    return found


def columns_of(entry: str) -> Columns:
    """Return what is known of the X-rays of an entry of `also` or `exclude`; see open_collection.

    The patients of a plain folder are those of its DICOM headers. Raises Gone if the folder is missing.
    """
    layout, _, folder = entry.rpartition(":")
    if layout and layout not in READERS and len(layout) > 1:  # one letter is a Windows drive
        layouts = ", ".join(READERS)
        raise UserError(
            f"the collection {entry!r} is named; expected FOLDER, or LAYOUT:FOLDER with one of the layouts {layouts}."
        )
    root = repo_path(folder if layout in READERS else entry)
    if not root.is_dir():
        raise Gone(f"the collection {entry!r} is named, but there is no folder {root}.")
    if layout in READERS:
        return READERS[layout](root)
    return without_laterals(read_films(root, without_synthetic(root)))
