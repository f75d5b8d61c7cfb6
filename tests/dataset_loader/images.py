"""Image files for tests of the store."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_loader import decoding
from dataset_loader.decoding import decode_square

SIZE = 32


def make_images(folder: Path, count: int, broken: tuple[int, ...] = ()) -> list[str]:
    """Image n is noise with n at its first pixel; the broken ones are text."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"{n:04d}.png" for n in range(count)]
    for n, name in enumerate(names):
        if n in broken:
            (folder / name).write_text("broken")
        else:
            pixels = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
            pixels[0, 0] = n % 256
            Image.fromarray(pixels).save(folder / name)
    return names


def count_decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list grows by each file that is decoded from now on."""
    decoded: list[str] = []

    def decode(file: str, size: int) -> np.ndarray:
        decoded.append(Path(file).name)
        return decode_square(file, size)

    monkeypatch.setattr(decoding, "decode_square", decode)
    return decoded


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a store by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}
