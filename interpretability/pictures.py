"""The X-rays to explain: files that a person names, some of each class of the test part, or those with boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from augmentations.transform_utils import plain_view
from dataset_loader.decoding import decode_square, decode_upright, upright_size
from dataset_loader.ids import PLAIN, Ids
from dataset_loader.image_files import IMAGE_SUFFIXES, BrokenImageError
from dataset_loader.lung_masks import read_mask, seen_part
from dataset_loader.synthetic import is_synthetic
from dataset_loader.xrays import XRays
from downstream_task.clinic.films import PATH
from downstream_task.finished_runs import Predictor
from downstream_task.targets import Targets
from utils.config import UserError
from utils.seeds import fixed_order

EDGES = ["left", "top", "right", "bottom"]  # of a box, in shares of the side of its square X-ray


@dataclass(frozen=True)
class Picture:
    """An X-ray, and the region of it that matters: lungs, boxes, or none that is known.

    path   the file
    name   of its overlays: unique among the pictures of a call
    label  its class, or the finding of its boxes; "" if not known
    group  patient or duplicate group; the file where not known
    mask   the file of its lungs, or None
    boxes  [K, 4] their EDGES
    """

    path: Path
    name: str
    label: str
    group: str
    mask: Path | None = None
    boxes: np.ndarray | None = None

    @property
    def synthetic(self) -> bool:
        """Whether the file lies in a tree of the built-in synthetic X-rays."""
        return is_synthetic(self.path)

    def gray(self) -> np.ndarray:
        """Return the X-ray at its own resolution, uint8 [H, W], upright."""
        return decode_upright(self.path)

    def region(self, shape: tuple[int, int]) -> np.ndarray | None:
        """Return its lungs or boxes, bool [H, W], in a picture of that shape; UserError for an unusable mask."""
        if self.boxes is None:
            return None if self.mask is None else read_mask(self.mask, shape)
        return coverage(self.boxes, shape[0]) > 0.5  # such X-rays are square

    def seen_region(self, size: int) -> np.ndarray | None:
        """Return the share of each pixel, [size, size], that lungs or boxes cover at the `size` that a network sees."""
        if self.boxes is not None:
            return coverage(self.boxes, size)
        lungs = self.region(upright_size(self.path))
        return None if lungs is None else seen_part(lungs, size)


def coverage(boxes: np.ndarray, size: int) -> np.ndarray:
    """Return the share of each pixel, float32 [size, size], that one of the boxes [K, 4] (EDGES, in 0..1) covers."""
    lines = np.arange(size + 1) / size
    low, high = boxes[:, :2, None], boxes[:, 2:, None]  # [K, (x, y), 1]
    covered = (np.minimum(lines[1:], high) - np.maximum(lines[:-1], low)).clip(0) * size  # [K, (x, y), size]
    return (covered[:, 1, :, None] * covered[:, 0, None, :]).max(0).astype(np.float32)


def pictures_of_files(films: pd.DataFrame, classes: Sequence[str], ids: Ids = PLAIN) -> list[Picture]:
    """Return the X-rays of find_films, named as `ids` says; of a table, the columns label and patient count.

    In the COVID-19 layout, mask and class come from the folders around them.
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
        pictures.append(Picture(file, name, label * (label in classes), groups[n], masks[0] if masks else None))
    return pictures


def pictures_of_boxes(films: pd.DataFrame, ids: Ids = PLAIN) -> list[Picture]:
    """Return one picture for each X-ray and finding of find_boxes, in a fixed random order, named as `ids` says.

    Several boxes of one finding on an X-ray are one region.
    """
    pictures, films = [], films.assign(written=ids.files(films["file"]), group=ids.names(films["patient"]))
    for _, rows in films.groupby([PATH, "label"]):
        first, boxes = rows.iloc[0], rows[EDGES].to_numpy(float)
        name = f"{Path(first['written']).stem}_{first['label']}"
        pictures.append(Picture(Path(first[PATH]), name, first["label"], first["group"], boxes=boxes))
    return [pictures[n] for n in fixed_order("pictures with boxes", np.arange(len(pictures)))]


def pictures_of_test(xrays: XRays, targets: Targets, classes: Sequence[str], per_class: int) -> list[Picture]:
    """Return `per_class` X-rays of each class (of each finding's positives) of the test part, by one fixed order.

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
        name = Path(str(written["file"][i])).with_suffix("").as_posix().replace("/", "_")
        mask = None if columns.masks[i] is None else columns.root / columns.masks[i]
        pictures.append(Picture(columns.root / columns.paths[i], name, label, str(written["group"][i]), mask))
    return pictures


def network_input(pictures: Sequence[Picture], predictor: Predictor) -> Tensor:
    """Return [N, C, R, R] as the network was trained on, without augmentation.

    Raises UserError, naming the file, for a picture that cannot be used.
    """
    squares = []
    for picture in pictures:
        try:
            squares.append(decode_square(picture.path, predictor.stored))
        except BrokenImageError as error:
            raise UserError(f"{picture.path} cannot be used: {error}; leave it out.") from error
    pixels = torch.from_numpy(np.stack(squares))[:, None].to(predictor.device)
    return plain_view(pixels, predictor.seen.size, predictor.seen.in_channels)
