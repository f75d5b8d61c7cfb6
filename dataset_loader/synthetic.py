"""Which folders hold drawn X-rays: each tree of them has a record at its root."""

import re
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
    holding = {file.rpartition("/")[0] for file in files}
    above = {folder[: end.start()] for folder in holding for end in re.finditer("/|$", folder)}  # at any depth
    drawn = [folder for folder in sorted(above - {""}) if (root / folder / RECORD).is_file()]
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
