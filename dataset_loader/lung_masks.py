"""Lung masks, aligned with their X-rays: the same frame, often at another resolution."""

from pathlib import Path

import numpy as np
from PIL import Image

from dataset_loader.columns import Columns
from dataset_loader.decoding import central_square, decode_upright, upright_size
from dataset_loader.image_files import BrokenImageError
from utils.config import UserError

_ASPECT_TOLERANCE = 0.02


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return the lungs, bool [H, W], of an upright X-ray of that shape.

    The mask shows the whole X-ray, at its own resolution (256 x 256 for 299 x 299 in the COVID-19 Radiography
    Database). Raises UserError for a file that is not an image, a mask of another aspect ratio, or one that is empty
    or full.
    """
    try:
        mask = decode_upright(path)
    except BrokenImageError as error:
        raise UserError(f"the lung mask {path} cannot be used: {error}; repair or remove it.") from error
    height, width = shape
    ratio = (mask.shape[1] / mask.shape[0]) / (width / height)
    if abs(ratio - 1) > _ASPECT_TOLERANCE:
        raise UserError(
            f"the lung mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels and its X-ray {width} x {height}: "
            "not the same frame; repair or remove the mask."
        )
    lung = mask > mask.max() / 2  # masks are coded 0 and 255, or 0 and 1
    if not lung.any() or mask.min() == mask.max():
        kind = "nothing but lung" if lung.any() else "no lung"
        raise UserError(f"the lung mask {path} shows {kind}; repair or remove it.")
    return _resized(lung, (width, height))


def seen_part(mask: np.ndarray, size: int) -> np.ndarray:
    """Return the part of a mask [H, W] that a network sees, the central square, as bool [size, size]."""
    top, left, side = central_square(*mask.shape)
    return _resized(mask[top : top + side, left : left + side], (size, size))


def masks_of(columns: Columns, indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the X-rays among `indices` [n] that have a mask, [m], and their masks, bool [m, size, size]."""
    known = np.array([i for i in indices if columns.masks[i] is not None], dtype=np.int64)
    masks = np.zeros((len(known), size, size), dtype=bool)
    for row, i in enumerate(known):
        shape = upright_size(columns.root / columns.paths[i])
        masks[row] = seen_part(read_mask(columns.root / columns.masks[i], shape), size)
    return known, masks


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask [h, w] at `size` (width, height): a pixel is lung if at least half of it is."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR)) > 127
