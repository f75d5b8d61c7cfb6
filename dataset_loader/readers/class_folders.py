"""Images sorted into one folder for each class, also above or below folders of train, validation and test images."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_loader.image_files import is_image, is_left_out, is_visible
from dataset_loader.readers.values import part_of
from utils.config import UserError

_AFTER_PART = re.compile("(dataset|data|images)$")  # TrainData, test images
_IMAGES = "images"  # <Class>/images/*, beside <Class>/masks/*
_UNLABELLED = ("unlabelled", "unlabeled")
_MOST_CLASSES, _FEWEST_IMAGES = 50, 5  # of folders that are taken for classes without being asked for
_MOST_OUTSIDE = 0.5  # share of the images that no class has: Kermany's set comes with a copy of itself inside


@dataclass(frozen=True)
class ClassFolders:
    """What the folders say of N image files: class, "" where no class folder holds it, and part, "" for none.

    files    [N] relative POSIX paths
    classes  [N] the class folder's name
    parts    [N] "train", "val", "test" or ""
    inside   [N] the folders between the class and the file
    """

    files: np.ndarray
    classes: np.ndarray
    parts: np.ndarray
    inside: np.ndarray

    @property
    def names(self) -> list[str]:
        """Return the classes in alphabetical order."""
        return sorted(set(self.classes) - {""})

    def check(self, root: Path, instead: str) -> None:
        """Raise UserError without two classes, for an empty class, or where folders inside one look like classes.

        instead  what to do if no better folder is at hand
        """
        names = self.names
        labelled = zip(self.classes, self.inside, strict=True)
        too_high = next((name for name, inside in labelled if name and _looks_like_a_layout(inside)), None)
        if too_high or len(names) < 2:
            what = f"only the class {names[0]!r}" if names else "no class folder with images"
            what = f"folders of parts or images inside {too_high!r}" if too_high else what
            better = _better_root(root, self.files.tolist())
            hint = f"did you mean {better}? Else " if better else ""
            raise UserError(f"found {what} under {root}, expected two or more like COVID/images/*.png; {hint}{instead}")
        for folder in _empty_folders(root, names):
            raise UserError(f"the class folder {folder} holds no images; put its images there or remove the folder.")


def by_folder(files: Sequence[str] | np.ndarray, *, deep: bool) -> ClassFolders:
    """Return the class and part of each image file by the folders that hold it.

    files  [N] relative POSIX paths: <Class>/images/*, else <Class>/*. Above or below all the classes may be folders of
           their train, val and test images, in the usual spellings.
    deep   whether images in more folders inside a class belong to it too, as in torchvision's ImageFolder

    If any class has a folder `images`, the classes are those that do, and only the images there have a class.
    """
    folders = [file.split("/")[:-1] for file in files]
    top = {_part(names[0]) for names in folders if names}
    second = {_part(names[1]) if len(names) == 2 else "" for names in folders if names}
    above = "train" in top or (bool(top) and "" not in top)
    below = not above and bool(second) and "" not in second
    parts = [_part(names[below]) if names and (above or below) else "" for names in folders]
    rest = [names[1:] if above else names[:1] if below else names for names in folders]
    rest = [names if part or not above else [] for names, part in zip(rest, parts, strict=True)]
    classes = ["" if name.lower() in _UNLABELLED else name for name in ("".join(names[:1]) for names in rest)]
    inside = [names[1:] for names in rest]
    nested = np.array([bool(names) and names[0].lower() == _IMAGES for names in inside], dtype=bool)
    direct = [deep or not names or (one and len(names) == 1) for one, names in zip(nested, inside, strict=True)]
    counts = np.array(direct, dtype=bool) & (nested | (not nested.any()))
    return ClassFolders(
        files=np.array(files, dtype=object),
        classes=np.where(counts, np.array(classes, dtype=object), ""),
        parts=np.where(counts & (np.array(classes) != ""), np.array(parts, dtype=object), ""),
        inside=np.array(["/".join(names) for names in inside], dtype=object),
    )


def lung_masks(root: Path, files: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return [N] the lung mask of each image file, a relative POSIX path, or None: <Class>/masks/ beside its folder.

    A mask has the image's name, up to its suffix.
    """
    homes = {file.rpartition("/")[0] for file in files}
    by_stem: dict[str, dict[str, str]] = {}
    for home in homes:
        above, _, own = home.rpartition("/")
        beside = above if own.lower() == _IMAGES else home
        masks = subfolder(root / beside, "masks") or subfolder(root / beside, "lung masks")
        by_stem[home] = _by_stem(root, f"{beside}/{masks}") if masks else {}
    return np.array([by_stem[file.rpartition("/")[0]].get(Path(file).stem) for file in files], dtype=object)


def _by_stem(root: Path, folder: str) -> dict[str, str]:
    with os.scandir(root / folder) as entries:
        files = sorted(f"{folder}/{entry.name}" for entry in entries if is_image(entry))
    return {Path(file).stem: file for file in files}


def like_classes(files: Sequence[str] | np.ndarray) -> dict[str, int]:
    """Return the number of images of each class if most files lie in folders like classes, else {}."""
    counts = Counter(by_folder(files, deep=True).classes)
    outside = counts.pop("", 0)
    if not 2 <= len(counts) <= _MOST_CLASSES or outside > _MOST_OUTSIDE * len(files):
        return {}
    named = all(re.search(r"[^\W\d_]{3}", name) for name in counts)  # years, numbers and p01 are no classes
    named = named and _IMAGES not in map(str.lower, counts)
    return dict(sorted(counts.items())) if named and np.median([*counts.values()]) >= _FEWEST_IMAGES else {}


def _part(name: str) -> str:
    """Return train, val or test for the name of a folder such as Train, validation or test_set, else ""."""
    return part_of(_AFTER_PART.sub("", re.sub("[^a-z]", "", name.lower()))) or ""


def _looks_like_a_layout(inside: str) -> bool:
    names = inside.split("/")
    return any(_part(name) or (level and name.lower() == _IMAGES) for level, name in enumerate(names) if name)


def _better_root(root: Path, files: list[str]) -> Path | None:
    """Return the folder that was probably meant: one below that holds classes, or the one above."""
    below = {tuple(file.split("/")[:depth]) for file in files for depth in (1, 2, 3) if file.count("/") > depth}
    for names in sorted(below, key=lambda names: (len(names), names)):
        top = "/".join(names) + "/"
        found = by_folder([file.removeprefix(top) for file in files if file.startswith(top)], deep=False)
        if len(found.names) > 1 and (found.classes != "").all():
            return root / top
    loose = any("/" not in file for file in files)
    beside = [
        folder for folder in _folders(root.parent) if subfolder(folder, _IMAGES) or (loose and _holds_images(folder))
    ]
    return root.parent if len(beside) > 1 else None


def _empty_folders(root: Path, names: list[str]) -> list[Path]:
    """Return the folders beside the classes, by name, that hold nothing but hidden files, or an empty `images`."""
    others = [folder for folder in _folders(root) if folder.name not in names and not _part(folder.name)]
    return [folder for folder in others if _is_empty(folder / (subfolder(folder, _IMAGES) or ""))]


def _is_empty(folder: Path) -> bool:
    """Return whether a folder is empty but for hidden files; those that a Mac leaves in a zip are not a class's."""
    names = os.listdir(folder)
    return not any(is_visible(name) or name.startswith("._") for name in names)


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry) for entry in entries)


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not is_left_out(entry.name)]
    return [root / name for name in sorted(names)]


def subfolder(folder: Path, name: str) -> str | None:
    """Return the subfolder of that name in upper or lower case, as it is written on the disk."""
    with os.scandir(folder) as entries:
        return next((entry.name for entry in entries if entry.name.lower() == name and entry.is_dir()), None)
