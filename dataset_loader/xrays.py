"""The entry to all data: `open_xrays(config)` reads, decodes and splits a data set."""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.decoding import upright_size
from dataset_loader.duplicates import NO_DUPLICATES, find_duplicates, joined_groups
from dataset_loader.first_look import say_labels, warn_of_copies, warn_of_named_parts
from dataset_loader.ids import PLAIN, Ids, IdsMode, open_ids
from dataset_loader.image_files import BrokenImageError
from dataset_loader.image_store import ImageStore, open_store
from dataset_loader.kept_split import KeptSplit, read_kept_split
from dataset_loader.listing import listed_files, listed_lines, listing
from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT, ensure_chexpert_phantoms, ensure_phantoms
from dataset_loader.readers import READERS
from dataset_loader.readers.folder_dataset import FOREIGN_ID, read_folder
from dataset_loader.signatures import THUMBNAIL, signatures
from dataset_loader.splits import FOLD_NAMES, FOLDS, PARTS, parts_of, places_of, split_hash, write_split
from dataset_loader.synthetic import is_synthetic
from dataset_loader.unlabelled import (
    Collection,
    Labelled,
    collection_of,
    columns_of,
    found_among,
    open_collection,
    visits_of,
)
from utils.config import DATASETS_ROOT, Config, Gone, Natural, UserError, between, bound, one_of, repo_path
from utils.distributed import note_once
from utils.facts import LISTED
from utils.files import write_table
from utils.messages import say

# Built in: classes, the same without the parts that their table names, the same with a planted shortcut for the audit,
# and CheXpert's findings in its layout.
PHANTOMS = ["phantom", "phantom_folds", "phantom_marker", "phantom_chexpert"]
SIZES_SAMPLED = 64  # files whose sizes are read: as many as show whether a tenth is small
MIN_RES, MAX_RES = 8, 4096  # pixels per side of what a network sees; fewer show nothing, films have no more
DATASETS = [*PHANTOMS, *READERS]
Fold = Annotated[int, bound(range(FOLDS).__contains__, f"there are the folds 0 to {FOLDS - 1}")]
Size = Annotated[int, between(MIN_RES, MAX_RES)]
SizeOrZero = Annotated[
    int, bound(lambda size: size == 0 or MIN_RES <= size <= MAX_RES, f"it must be 0, or from {MIN_RES} to {MAX_RES}")
]
WITHOUT_LABEL = "files without a label"  # the fact about those of a comparison whose labels spread to them
DEFAULT_ROOTS = {
    "phantom_folds": DATASETS_ROOT / "phantom",
    "covid": DATASETS_ROOT / "COVID-19_Radiography_Dataset",
    "chexpert": DATASETS_ROOT / "CheXpert-v1.0-small",
    "nih": DATASETS_ROOT / "ChestX-ray14",
}


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """The data set, its split, and the sizes at which images are stored and seen by the network."""

    dataset: Annotated[str, one_of(DATASETS)]
    data_root: str
    labels: Annotated[str, one_of(["table", "folders"])]
    laterals: bool
    store_res: int
    img_res: Size
    split_seed: Natural
    val_share: Annotated[float, bound(lambda share: 0 <= share < 1, "it must be from 0 to below 1")]
    keep_split: str
    ids: IdsMode

    later: ClassVar = {
        "labels": "table",
        "laterals": lambda old: old.get("dataset") == "folder",  # they were taken, and from no other data set
        "val_share": 0.1,
        "keep_split": "",
        "ids": "plain",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "folder" and not self.data_root:
            raise UserError("dataset is 'folder', but data_root is empty; name the folder of images, --data-root DIR.")
        if self.labels == "folders" and self.dataset != "folder":
            raise UserError(f"labels is 'folders', which goes with --dataset folder, not {self.dataset!r}.")
        if self.store_res != 0 and self.store_res < self.img_res:
            raise UserError(
                f"store_res is {self.store_res} and img_res {self.img_res}: the images would be enlarged; "
                "set store_res to 0, which derives it from img_res, or to a larger number."
            )

    @property
    def stored_size(self) -> int:
        """Side of the stored images in pixels: store_res or, where that is 0, 8/7 of img_res, which leaves room.

        Where that is 0 and the files are smaller, open_xrays stores them at their own size.
        """
        return self.store_res or with_room(self.largest_view)

    @property
    def largest_view(self) -> int:
        """Side of the largest images that a network sees, in pixels."""
        return self.img_res


@dataclass(frozen=True, kw_only=True)
class FoldConfig(DataConfig):
    """The data of a run that has one test part."""

    fold: Fold

    later: ClassVar = {"fold": 0}


def with_room(img_res: int) -> int:
    """Return the side in pixels at which images are stored that a network sees at `img_res`: 8/7 of it."""
    return img_res * 8 // 7


@dataclass(frozen=True)
class XRays:
    """A data set that is ready for training: N usable X-rays, their pixels, and the part of each.

    columns     what is known about each X-ray (broken files are left out, and those of fewer than THUMBNAIL px)
    store       their pixels, uint8 [N, 1, S, S]
    signatures  [N, 49] uint8, by which their pictures are known
    places      [N] "train", "val", "test" or the number of a fold, by patient or duplicate group: splits.places_of
    duplicates  the near-duplicate pairs that were joined into one group: file, other, distance
    source      "covid", "chexpert", "nih", "folder" or, wherever they are stored, "phantom"
    unlabelled  columns of the data set's images without a label; without any label, all count as labelled
    also        more X-rays for pretraining, without labels; their indices follow those of the data set, N, N + 1, ...
    excluded    indices of those that a pretraining leaves out
    ids         how runs name patients and files
    kept        the earlier split whose parts were kept, or None
    fold        whose images are the test part
    seen        [N] which images are found in a list of images, by the list's hash: a comparison asks for each training
    listed      facts about what its tables and folders list: see listed_facts
    """

    columns: Columns
    store: ImageStore
    signatures: np.ndarray
    places: np.ndarray
    duplicates: pd.DataFrame
    source: str
    unlabelled: Columns | None = None
    also: tuple[Collection, ...] = ()
    excluded: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    ids: Ids = PLAIN
    kept: KeptSplit | None = None
    fold: int = 0
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    listed: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def with_also(self) -> int:
        """The number of X-rays with those of the collections beside it."""
        return len(self) + sum(map(len, self.also))

    @property
    def synthetic(self) -> bool:
        """Whether these are phantoms."""
        return self.source == "phantom"

    @functools.cached_property
    def parts(self) -> np.ndarray:
        """The part of each X-ray, [N] "train", "val" or "test"."""
        return parts_of(self.places, self.fold)

    def of_fold(self, fold: int) -> "XRays":
        """Return the same X-rays with another fold as the test part; the same parts where the source names one."""
        return replace(self, fold=fold)

    @property
    def has_folds(self) -> bool:
        """Whether the test part depends on the fold."""
        return bool(np.isin(self.places, FOLD_NAMES).any())

    @functools.cached_property
    def split_hash(self) -> str:
        """Hash of the paths and their parts: the same for the same split of the same images."""
        return split_hash(self.columns.paths, self.parts)

    def indices(self, part: str) -> np.ndarray:
        """Return positions [n] of the X-rays of one part, or of all of them ("all")."""
        return np.arange(len(self)) if part == "all" else np.flatnonzero(self.parts == part)

    def pretraining_indices(self, part: str) -> np.ndarray:
        """Return positions [n] of the X-rays of a part, and of the collections beside it, but for those excluded."""
        wanted = np.concatenate([self.indices(part), np.arange(len(self), self.with_also)])
        return wanted[~np.isin(wanted, self.excluded)]

    def batch(self, indices: Tensor) -> Tensor:
        """Return pixels, uint8 [B, 1, S, S] on the store's device, of the X-rays at `indices` [B]."""
        if not self.also:
            return self.store.gather(indices)
        rows = indices.cpu().numpy()
        sources = [(self.store, np.arange(len(self))), *((source.store, source.rows) for source in self.also)]
        ends = np.cumsum([len(own) for _, own in sources])
        if len(rows) and not 0 <= rows.min() <= rows.max() < ends[-1]:
            raise IndexError(f"indices {rows.min()} to {rows.max()} are not among {ends[-1]} X-rays")
        shape = len(rows), 1, self.store.size, self.store.size
        pixels = torch.empty(shape, dtype=torch.uint8, device=self.store.device)
        for (store, own), end in zip(sources, ends, strict=True):
            first = end - len(own)
            places = np.flatnonzero((first <= rows) & (rows < end))  # in the batch
            if len(places):
                pixels[torch.from_numpy(places).to(pixels.device)] = store.gather(own[rows[places] - first])
        return pixels

    def image_ids(self, indices: np.ndarray) -> np.ndarray:
        """Return signatures [n, 49] uint8, by which an encoder's file lists the images that it was trained on."""
        return np.concatenate([self.signatures, *(source.signatures for source in self.also)])[indices]

    def visits(self) -> np.ndarray:
        """Return [N + M] the number of each X-ray's patient and study, those of the collections included.

        An X-ray of which no patient is known has a number of its own.
        """
        return pd.factorize(self._visit_names())[0]

    def _visit_names(self) -> np.ndarray:
        return np.concatenate([visits_of(self.source, self.columns), *(source.visits for source in self.also)])

    def without(self, entries: Sequence[str]) -> "XRays":
        """Return the same X-rays, whose pretraining leaves out copies and patients of other collections."""
        if not entries:  # the names of all visits take a while
            return self
        everything = np.arange(self.with_also)
        found = found_among(entries, self.image_ids(everything), self._visit_names())
        return replace(self, excluded=everything[found])

    @functools.cached_property
    def written(self) -> pd.DataFrame:
        """N rows of file and group, as tables of a run name them."""
        return pd.DataFrame({"file": self.ids.files(self.columns.paths), "group": self.ids.names(self.columns.groups)})

    def write_split(self, folder: Path) -> None:
        """Write split.csv, the part of each X-ray, duplicates.csv and left_out.csv, for a person to read."""
        write_split(folder / "split.csv", self.columns, self.places, self.fold, self.unlabelled, self.ids)
        name_of = dict(zip(self.columns.paths, self.written["file"], strict=True))
        named = {end: [name_of[file] for file in self.duplicates[end]] for end in ("file", "other")}
        pairs = [self.duplicates.assign(**named, collection="")]
        for collection in self.also:  # `other` is a held-out image or a patient
            found, root = collection.left_out, str(collection.root)
            numbers = zip(found["other"], self.ids.numbers(found["other"]), strict=True)
            others = [name_of.get(other, number) for other, number in numbers]
            pairs.append(found.assign(file=self.ids.files(found["file"]), other=others, collection=root))
        write_table(folder / "duplicates.csv", pd.concat(pairs))
        left_out = self.columns.left_out
        if len(left_out):
            files = self.ids.names(left_out["file"], "left-out-")
            write_table(folder / "left_out.csv", left_out.assign(file=files))

    def facts(self) -> dict[str, object]:
        """Return what a run records about its data."""
        counts = {part: int((self.parts == part).sum()) for part in PARTS}
        return {
            "data_root": str(self.columns.root),
            "synthetic": self.synthetic,
            "multilabel": self.columns.labels.ndim > 1,
            "images": len(self),
            "groups": len(np.unique(self.columns.groups)),
            "duplicate_pairs": len(self.duplicates),
            "images_by_part": counts,
            "split_hash": self.split_hash,
            "fold": self.fold,
            "ids": self.ids.fact,
            **({"kept": self.kept.facts(self.parts)} if self.kept else {}),
            "pixels": [self.store.pixels, *(collection.store.pixels for collection in self.also)],
            "also": [collection.facts() for collection in self.also],
            **({"excluded": len(self.excluded)} if len(self.excluded) else {}),
            LISTED: self.listed,
        }


def open_xrays(
    config: DataConfig, device: torch.device, also: Sequence[str] | None = None, folds: Sequence[int] = ()
) -> XRays:
    """Read the tables, decode what was not decoded before, split by group; pixels move to a GPU if they fit.

    A group is a patient, or an image where no patient is known; groups with near-duplicate images are joined. A
    split that the data set names is kept. Images of fewer than THUMBNAIL px cannot be compared, and are left out.
    Without `also`, these are the labelled images. With a list, which may be empty, the data set's images without a
    label come too, and the collections that the list names (open_collection says how), but no near-duplicates of
    validation and test images. `folds` are those of a comparison, each the test part in turn; the first is so now, or
    the config's where there is none. Views larger than the files are enlarged, and it is said.
    Raises UserError if the data are missing or unusable, saying where to get them and how to place them.
    """
    everything = read_columns(config)
    columns = everything.labelled()
    thumbnails = open_store(columns.root, list(columns.paths), THUMBNAIL, DATASETS_ROOT / ".cache")
    columns = columns.take(thumbnails.kept)
    duplicates = NO_DUPLICATES
    if columns.label_names:
        duplicates = find_duplicates(thumbnails, columns.paths.tolist(), device)
    details = columns.details.assign(patient=columns.groups)
    columns = replace(columns, details=details, groups=joined_groups(columns.paths, columns.groups, duplicates))
    size = size_of_store(config, columns)
    store = open_store(columns.root, list(columns.paths), size, DATASETS_ROOT / ".cache")
    columns = columns.take(store.kept)
    duplicates = duplicates.loc[duplicates[["file", "other"]].isin(columns.paths.tolist()).all(axis=1)]
    duplicates = duplicates.reset_index(drop=True)
    kept = read_kept_split(config.keep_split, columns) if config.keep_split else None
    places = places_of(columns, config.split_seed, config.val_share, kept and kept.places)
    source = "phantom" if is_synthetic(columns.root / columns.paths[0]) else config.dataset
    listed = _listed(config, everything, also, apart=bool(folds))
    xrays = XRays(
        columns,
        store.to(device),
        signatures(thumbnails)[store.kept],
        places,
        duplicates,
        source,
        unlabelled=everything.labelled(False),
        ids=PLAIN if source == "phantom" and config.ids == "plain" else open_ids(config.ids, columns.root),
        kept=kept,
        fold=folds[0] if folds else config.fold if isinstance(config, FoldConfig) else 0,
        listed=listed,
    )
    parts = xrays.parts
    described = ", ".join(f"{int((parts == part).sum()):,} {part}" for part in PARTS)
    kind = " (synthetic)" if xrays.synthetic else "" if columns.label_names else " without labels"
    which = f" (fold {xrays.fold})" if xrays.has_folds else ""
    say(f"{config.dataset}{kind}: {len(xrays):,} X-rays, {described}{which}")
    say_labels(columns, parts)
    if kept:
        kept.say(columns, parts, places)
    warn_of_named_parts(columns, parts, config.val_share)
    warn_of_copies(columns, parts, duplicates)
    if also is None:
        return xrays
    collections = _collections(xrays, folds or [xrays.fold], everything, size, device, also)
    others = collections[len(collections) - len(also) :]
    named = {f"also {number}": collection.listed for number, collection in enumerate(others, 1)}
    return replace(xrays, also=collections, listed={**listed, **named})


def size_of_store(config: DataConfig, columns: Columns) -> int:
    """Return config.stored_size or, where store_res is 0, the side of nine tenths of the files if that is smaller."""
    if config.store_res:
        return config.store_res
    sides = []
    for path in columns.paths[:: -(-len(columns) // SIZES_SAMPLED)]:
        with contextlib.suppress(BrokenImageError, OSError):
            sides.append(min(upright_size(columns.root / path)))
    size = min(config.stored_size, max(THUMBNAIL, int(np.quantile(sides, 0.1, method="lower")))) if sides else 0
    if 0 < size < config.largest_view:
        view = config.largest_view
        say(f"note: the X-rays have {size} px; views of {view} px are enlarged from them and show no more")
    return size or config.stored_size


def _collections(
    xrays: XRays, folds: Sequence[int], everything: Columns, size: int, device: torch.device, entries: Sequence[str]
) -> tuple[Collection, ...]:
    """Open the data set's images without labels, and the entries of `also`, without copies of held-out images."""
    unlabelled = everything.labelled(False)
    if not entries and not len(unlabelled):
        return ()
    held_out = np.any([xrays.of_fold(fold).parts != "train" for fold in folds], axis=0)
    files = xrays.columns.paths[held_out].tolist()
    thumbnails = open_store(xrays.columns.root, files, THUMBNAIL, DATASETS_ROOT / ".cache") if files else None
    theirs = np.isin(everything.groups, everything.groups[np.isin(everything.paths, files)])
    groups = everything.groups[theirs]  # patients, as the source names them and, where they differ, DICOM headers
    if FOREIGN_ID in everything.details:
        groups = np.concatenate([groups, everything.details.loc[theirs, FOREIGN_ID].dropna()])
    labelled = Labelled(xrays.source, xrays.signatures[~held_out], groups, thumbnails, files)
    own = collection_of(xrays.source, unlabelled, size, device, labelled)
    opened = {"its images without a label": own} if own else {}
    opened |= {entry: open_collection(entry, size, device, labelled) for entry in entries}
    for name, collection in opened.items():
        lost = collection.num_left_out
        note = f"; {lost:,} near-duplicates of held-out images, or of their patients, left out" if lost else ""
        say(f"also {name}: {len(collection):,} X-rays{note}")
    return tuple(opened.values())


def root_of(config: DataConfig) -> Path:
    """Return the folder of the data set that `config` names, whether it is there or not."""
    folder = repo_path(config.data_root or DEFAULT_ROOTS.get(config.dataset, DATASETS_ROOT / config.dataset))
    if config.dataset not in PHANTOMS:
        return folder
    return folder / (CHEXPERT_ROOT if config.dataset == "phantom_chexpert" else COVID_ROOT)


def read_columns(config: DataConfig, draw: bool = True) -> Columns:
    """Return the columns of the data set that `config` names; phantoms are drawn if they do not exist yet.

    Without `draw`, raises Gone if there is no such folder.
    """
    if not draw:
        check_there(config, drawn=True)
    elif config.dataset == "phantom_chexpert":
        ensure_chexpert_phantoms(root_of(config).parent)
    elif config.dataset in PHANTOMS:
        marker = config.dataset == "phantom_marker"
        ensure_phantoms(root_of(config).parent, images=2400, unlabelled=3600, planted_marker=marker)
    if config.laterals and config.dataset != "folder":
        note_once(f"--laterals goes with --dataset folder; of {config.dataset}, frontal X-rays alone are read")
    if config.dataset == "folder":
        return read_folder(root_of(config), config.labels, config.laterals)
    if config.dataset == "phantom_folds":
        columns = read_folder(root_of(config))
        named = columns.named_parts != UNLABELLED
        return replace(columns, named_parts=np.where(named, "", columns.named_parts))
    layout = {"phantom": "folder", "phantom_marker": "folder", "phantom_chexpert": "chexpert"}
    return READERS[layout.get(config.dataset, config.dataset)](root_of(config))


def check_there(config: DataConfig, drawn: bool = False) -> None:
    """Raise Gone unless the data's folder is there; phantoms are drawn where they are not, unless that must be done."""
    if not root_of(config).is_dir() and (drawn or config.dataset not in PHANTOMS):
        raise Gone(f"found no folder {root_of(config)}; if it was moved, --data-root says where it is.")


def listed_facts(config: DataConfig, also: Sequence[str] | None = None, apart: bool = False) -> dict[str, Any]:
    """Return those of XRays.facts() that tables and names give, without a look at a pixel: files, labels, patients, ...

    Of the labelled images; with `also`, as open_xrays takes it, of all that it finds, for a comparison the images that
    have no label `apart`. Nothing is drawn. Raises Gone if a folder is not there.
    """
    columns = read_columns(config, draw=False)
    named = {f"also {number}": listed_files(columns_of(entry).paths) for number, entry in enumerate(also or [], 1)}
    return {LISTED: {**_listed(config, columns, also, apart), **named}}


def _listed(config: DataConfig, everything: Columns, also: Sequence[str] | None, apart: bool) -> dict[str, Any]:
    """Return facts about the columns that open_xrays takes, and the split whose parts are kept.

    apart  for a comparison, whose heads are opened again with the labelled images alone
    """
    columns = everything.labelled() if also is None or apart else everything
    split = repo_path(config.keep_split) if config.keep_split else None
    if split and not split.is_file():
        raise Gone(f"keep_split names {config.keep_split}, but there is no such file.")
    others = {WITHOUT_LABEL: listed_files(everything.labelled(False).paths)} if also is not None and apart else {}
    return {**listing(columns), **others, **({"kept parts": listed_lines(split)} if split else {})}
