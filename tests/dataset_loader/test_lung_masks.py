"""Lung masks: aligned to their X-rays, or refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_loader.decoding import decode_square, decode_upright
from dataset_loader.lung_masks import masks_of, read_mask, seen_part
from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.readers.covid_dataset import read_covid
from utils.config import UserError


def ellipse(height: int, width: int) -> np.ndarray:
    """Bool [H, W], off the middle, in shares of the frame."""
    y, x = np.mgrid[:height, :width]
    return ((x / width - 0.35) / 0.2) ** 2 + ((y / height - 0.6) / 0.3) ** 2 < 1


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("shape", [(299, 299), (240, 320), (320, 240)])
def test_a_mask_of_another_resolution_lies_where_the_image_says(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = save(tmp_path / "image.png", (50 + 150 * ellipse(*shape) + np.arange(shape[1]) % 50).astype(np.uint8))
    small = ellipse(round(shape[0] * 0.85), round(shape[1] * 0.85))
    mask = save(tmp_path / "mask.png", np.repeat(small[..., None].astype(np.uint8) * 255, 3, axis=2))  # RGB, as real
    found = read_mask(mask, shape)
    bright = decode_upright(image) > 125
    assert found.shape == shape
    assert (found & bright).sum() > 0.97 * (found | bright).sum()
    seen, lit = seen_part(found, 64), decode_square(image, 64) > 125
    assert (seen & lit).sum() > 0.93 * (seen | lit).sum()


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((64, 64), np.uint8), "no lung"),
        (np.full((64, 64), 255, np.uint8), "nothing but lung"),
        (np.eye(64, 96, dtype=np.uint8) * 255, "not the same frame"),
    ],
)
def test_a_mask_that_cannot_be_right_is_refused(tmp_path: Path, pixels: np.ndarray, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_mask(save(tmp_path / "mask.png", pixels), (128, 128))


def test_masks_of_a_data_set_are_those_of_the_phantoms(phantoms: Path) -> None:
    columns = read_covid(phantoms / COVID_ROOT)
    known, masks = masks_of(columns, np.array([3, 11]), 64)
    assert known.tolist() == [3, 11]
    for i, mask in zip(known, masks, strict=True):
        assert np.array_equal(mask, decode_upright(columns.root / columns.masks[i]) > 127)


def test_real_masks_cover_the_dark_lungs(real_xrays: Path) -> None:
    columns = read_covid(real_xrays / "COVID-19_Radiography_Dataset")
    known, masks = masks_of(columns, np.arange(len(columns)), 128)
    assert len(known) == 4
    for i, mask in zip(known, masks, strict=True):
        image = decode_square(columns.root / columns.paths[i], 128)
        assert 0.1 < mask.mean() < 0.5
        middle = np.zeros_like(mask)
        middle[16:112, 16:112] = True
        assert image[mask].mean() < image[middle & ~mask].mean()
