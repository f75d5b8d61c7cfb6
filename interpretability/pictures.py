"""The X-rays to explain: files that a person names, or some of each class of the test part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from augmentations.transform_utils import plain_view
from dataset_loader.decoding import decode_square, decode_upright
from dataset_loader.ids import PLAIN, Ids
from dataset_loader.image_files import IMAGE_SUFFIXES, BrokenImageError
from dataset_loader.lung_masks import read_mask
from dataset_loader.synthetic import is_synthetic
from dataset_loader.xrays import XRays
from downstream_task.clinic.films import PATH
from downstream_task.clinic.predictor import Predictor
from downstream_task.targets import Targets
from utils.config import UserError
from utils.seeds import fixed_order


@dataclass(frozen=True)
class Picture:
    """An X-ray at its file's own resolution.

    path   the file
    name   of its overlays: unique among the pictures of a call
    gray   uint8 [H, W], upright
    mask   its lungs, bool [H, W], or None
    label  its class, "" if not known
    group  patient or duplicate group; the file where not known
    """

    path: Path
    name: str
    gray: np.ndarray
    mask: np.ndarray | None
    label: str
    group: str

    @property
    def synthetic(self) -> bool:
        """Whether the file lies in a tree of the built-in synthetic X-rays."""
        return is_synthetic(self.path)


def pictures_of_files(films: pd.DataFrame, classes: Sequence[str], ids: Ids = PLAIN) -> list[Picture]:
    """Read the X-rays of find_films, named as `ids` says; of a table, the columns label and patient count.

    In the COVID-19 layout, mask and class come from the folders around them.

    Raises UserError, naming the file, for one that cannot be used.
    """
    stems, hidden = [Path(file).stem for file in films[PATH]], ids.files(films["file"])
    unique = len(set(stems)) == len(stems)
    rows = films.fillna("").to_dict("records")
    groups, pictures = ids.names(str(film.get("patient") or film[PATH]) for film in rows), []
    for n, film in enumerate(rows):
        file = Path(film[PATH])
        folder = file.parent.parent if file.parent.name.lower() == "images" else None
        beside = sorted((folder / "masks").iterdir()) if folder and (folder / "masks").is_dir() else []
        masks = [path for path in beside if path.stem == file.stem and path.suffix.lower() in IMAGE_SUFFIXES]
        label = str(film.get("label") or (folder.name if folder else ""))
        name = hidden[n] if ids != PLAIN else file.stem if unique else f"{n:04d}_{file.stem}"
        pictures.append(_read(file, name, masks[0] if masks else None, label * (label in classes), groups[n]))
    return pictures


def pictures_of_test(xrays: XRays, targets: Targets, classes: Sequence[str], per_class: int) -> list[Picture]:
    """Read `per_class` X-rays of each class (of each finding's positives) of the test part, by one fixed order.

    The classes alternate, so that the first few pictures show all of them. An X-ray of several findings comes once.
    """
    test = fixed_order("pictures of the test part", xrays.indices("test"))
    values = targets.values[test]
    names = classes or targets.names
    positive = [values == c if values.ndim == 1 else values[:, c] == 1 for c in map(targets.names.index, names)]
    chosen = [
        (n, i, name) for name, of in zip(names, positive, strict=True) for n, i in enumerate(test[of][:per_class])
    ]
    label_of: dict[int, str] = {}
    for _, i, name in sorted(chosen, key=lambda item: item[0]):
        label_of.setdefault(int(i), name)
    columns, written, pictures = xrays.columns, xrays.written, []
    for i, label in label_of.items():
        file, mask = Path(columns.paths[i]), columns.masks[i]
        name = Path(str(written["file"][i])).with_suffix("").as_posix().replace("/", "_")
        mask = None if mask is None else columns.root / mask
        pictures.append(_read(columns.root / file, name, mask, label, str(written["group"][i])))
    return pictures


def network_input(pictures: Sequence[Picture], predictor: Predictor) -> Tensor:
    """Return [N, C, R, R] as the network was trained on, without augmentation."""
    stored, seen = predictor.sizes
    squares = np.stack([_decoded(picture.path, stored) for picture in pictures])
    return plain_view(torch.from_numpy(squares)[:, None].to(predictor.device), seen, predictor.in_channels)


def _read(path: Path, name: str, mask: Path | None, label: str, group: str) -> Picture:
    gray = _decoded(path)
    lungs = None if mask is None else read_mask(mask, (gray.shape[0], gray.shape[1]))
    return Picture(path, name, gray, lungs, label, group)


def _decoded(path: Path, size: int | None = None) -> np.ndarray:
    try:
        return decode_upright(path) if size is None else decode_square(path, size)
    except BrokenImageError as error:
        raise UserError(f"{path} cannot be used: {error}; leave it out.") from error
