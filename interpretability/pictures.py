"""The X-rays that are looked at: files that a person names, or some of each class of the test part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from augmentations.transform_utils import plain_view
from dataset_loader.decoding import IMAGE_SUFFIXES, BrokenImageError, decode_square, decode_upright
from dataset_loader.lung_masks import read_mask
from dataset_loader.phantoms.dataset import RECORD
from dataset_loader.xrays import XRays
from downstream_task.finished_runs import Finished
from downstream_task.targets import Targets
from utils.config import UserError, repo_path
from utils.randomness import fixed_order


@dataclass(frozen=True)
class Picture:
    """An X-ray as its file has it.

    path   the file
    name   of its overlays: no two pictures of a call share it
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


def read_picture(path: Path, name: str, mask: Path | None, label: str, group: str) -> Picture:
    """Decode an X-ray and its mask; UserError, naming the file, for what is none."""
    gray = _decoded(path)
    lungs = None if mask is None else read_mask(mask, (gray.shape[0], gray.shape[1]))
    return Picture(path, name, gray, lungs, label, group)


def pictures_of_files(names: Sequence[str], classes: Sequence[str]) -> list[Picture]:
    """X-rays by file or folder. Where they lie in the COVID-19 layout, mask and class are taken from there."""
    files = image_files(names)
    stems = [file.stem for file in files]
    pictures = []
    for n, file in enumerate(files):
        folder = file.parent.parent if file.parent.name.lower() == "images" else None
        beside = sorted((folder / "masks").iterdir()) if folder and (folder / "masks").is_dir() else []
        masks = [path for path in beside if path.stem == file.stem and path.suffix.lower() in IMAGE_SUFFIXES]
        label = folder.name if folder and folder.name in classes else ""
        name = file.stem if stems.count(file.stem) == 1 else f"{file.stem}_{n}"
        pictures.append(read_picture(file, name, masks[0] if masks else None, label, str(file)))
    return pictures


def pictures_of_test(xrays: XRays, targets: Targets, classes: Sequence[str], per_class: int) -> list[Picture]:
    """`per_class` X-rays of each class (of each finding's positives) of the test part, by one fixed order.

    The classes take turns, so that the first few show all of them.
    """
    test = fixed_order(xrays.indices("test"))
    values = targets.values[test]
    chosen: list[tuple[int, int, str]] = []
    for name in classes or targets.names:
        c = targets.names.index(name)
        positive = test[values == c] if values.ndim == 1 else test[values[:, c] == 1]
        chosen += [(n, i, name) for n, i in enumerate(positive[:per_class].tolist())]
    columns, root = xrays.columns, xrays.columns.root
    pictures, taken = [], set()
    for _, i, name in sorted(chosen, key=lambda item: item[0]):
        if i not in taken:  # an X-ray may have several findings
            mask = None if columns.masks[i] is None else root / columns.masks[i]
            file = Path(columns.paths[i])
            unique = file.with_suffix("").as_posix().replace("/", "_")
            pictures.append(read_picture(root / file, unique, mask, name, str(columns.groups[i])))
        taken.add(i)
    return pictures


def network_input(pictures: Sequence[Picture], finished: Finished, device: torch.device) -> Tensor:
    """[N, C, R, R] as the network of a run was trained on, without augmentation."""
    config = finished.config
    squares = np.stack([_decoded(picture.path, config["store_res"]) for picture in pictures])
    return plain_view(torch.from_numpy(squares)[:, None].to(device), config["img_res"], config["in_channels"])


def image_files(names: Sequence[str]) -> list[Path]:
    """The files that names of files and folders stand for, each once; UserError for one that leads nowhere."""
    return list(dict.fromkeys(file for name in names for file in _image_files(repo_path(name))))


def is_phantom(path: Path) -> bool:
    """Whether a file lies in a tree of the built-in synthetic X-rays."""
    return any((folder / RECORD).exists() for folder in path.parents)


def _image_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no image or folder {path}; give X-ray files, or folders of them.")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".")
    if not found:
        raise UserError(f"found no image in {path}, expected files such as *.png; name the folder that holds them.")
    return found


def _decoded(path: Path, size: int | None = None) -> np.ndarray:
    try:
        return decode_upright(path) if size is None else decode_square(path, size)
    except BrokenImageError as error:
        raise UserError(f"{path} cannot be used: {error}; leave it out.") from error
