"""Which folders hold drawn X-rays: each tree of them has a record at its root."""

from pathlib import Path

import numpy as np

from dataset_loader.image_files import image_files, shown
from utils.messages import say

RECORD = "phantom.json"  # at the root of a tree: what was asked for


def is_synthetic(path: Path) -> bool:
    """Return whether a file or folder lies in a tree of synthetic X-rays."""
    return any((folder / RECORD).exists() for folder in (path, *path.parents))


def without_synthetic(root: Path) -> np.ndarray:
    """Return the image_files [N] of a folder that were not drawn, and count the others on stderr.

    Where all of them are synthetic, they are what was asked for, and all are returned.
    """
    files = image_files(root)
    if is_synthetic(root):
        return files
    drawn = [folder for folder in sorted(_folders_above(files)) if (root / folder / RECORD).is_file()]
    if not drawn:
        return files
    synthetic = np.array([file.startswith(tuple(f"{folder}/" for folder in drawn)) for file in files])
    if synthetic.all():
        return files
    say(
        f"warning: {synthetic.sum():,} of the {len(files):,} images below {root} are synthetic X-rays, drawn into "
        f"{shown([str(root / folder) for folder in drawn])}; left out. Delete what was drawn there by mistake"
    )
    return files[~synthetic]


def _folders_above(files: np.ndarray) -> set[str]:
    """Return every folder that holds one of the relative POSIX paths, at any depth, but not the root."""
    found: set[str] = set()
    for folder in {file.rpartition("/")[0] for file in files}:
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found
