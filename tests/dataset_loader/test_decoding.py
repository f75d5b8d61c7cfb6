"""Every kind of file that a collection of X-rays holds, against the arithmetic of its format."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset_loader.decoding import decode_square, decode_upright, upright_size
from dataset_loader.image_files import BrokenImageError, NoXRayError

SIZE = 32
# A corner that is unlike the others, so that a turned image is noticed.
GRAY = np.add.outer(np.arange(SIZE) * 3, np.arange(SIZE) * 4).astype(np.uint8)
GRAY[:8, :8] = 255
BT_601 = np.array([0.299, 0.587, 0.114])  # of red, green, blue


def save(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def luminance(picture: Image.Image) -> np.ndarray:
    """Gray pixels [H, W] by ITU-R BT.601."""
    return np.asarray(picture.convert("RGB"), dtype=float) @ BT_601


ALPHA = np.linspace(0, 255, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint8)
TINTED = Image.fromarray(np.stack([GRAY, GRAY // 2, 255 - GRAY], axis=-1))
FEW_COLOURS = TINTED.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
TRANSPARENT = Image.fromarray(GRAY).convert("P")
TRANSPARENT.info["transparency"] = 255


def on_black(mode: str) -> Image.Image:
    picture = Image.fromarray(GRAY).convert(mode)
    picture.putalpha(Image.fromarray(ALPHA))
    return picture


# A picture, and the gray pixels that are read from its PNG: exactly where they are whole numbers.
LOSSLESS: dict[str, tuple[Image.Image, np.ndarray]] = {
    **{mode: (Image.fromarray(GRAY).convert(mode), GRAY) for mode in ("L", "RGB", "RGBA", "LA", "P")},
    "colour": (TINTED, luminance(TINTED)),
    "a palette of colours": (FEW_COLOURS, luminance(FEW_COLOURS)),
    "alpha": (on_black("LA"), GRAY * (ALPHA / 255)),
    "colour and alpha": (on_black("RGBA"), GRAY * (ALPHA / 255)),
    "a transparent entry of a palette": (TRANSPARENT, np.where(GRAY == 255, np.uint8(0), GRAY)),
    "a wide frame": (Image.fromarray(np.pad(GRAY, ((0, 0), (20, 20)))), GRAY),
    "a high frame": (Image.fromarray(np.pad(GRAY, ((20, 20), (0, 0)))), GRAY),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_the_central_square_becomes_gray(tmp_path: Path, kind: str):
    picture, expected = LOSSLESS[kind]
    square = decode_square(save(tmp_path / "a.png", picture), SIZE)
    assert square.dtype == np.uint8
    np.testing.assert_allclose(square, expected, atol=0 if expected.dtype == np.uint8 else 1.01)


@pytest.mark.parametrize(
    ("suffix", "format", "picture"),
    [
        *((".jpg", "PNG", GRAY), (".png", "JPEG", GRAY), (".jpeg", "WEBP", GRAY), (".PNG", "BMP", GRAY)),
        *((".jpg", "JPEG", TINTED), (".jpg", "JPEG", TINTED.convert("CMYK"))),  # CMYK is not taken for its negative
    ],
)
def test_the_content_decides_not_the_suffix(tmp_path: Path, suffix: str, format: str, picture: Any):
    square = decode_square(save(tmp_path / f"a{suffix}", picture, format=format, quality=100, subsampling=0), SIZE)
    expected = picture if isinstance(picture, np.ndarray) else luminance(picture)
    assert np.abs(square - expected.astype(float)).mean() < 2


def scaled_ramp(values: np.ndarray) -> np.ndarray:
    """A ramp's percentiles 0.5 and 99.5, as arithmetic has them, at 0 and 255."""
    lowest, width = values.min(), values.max() - values.min()
    return ((values - lowest - 0.005 * width) / (0.99 * width) * 255).clip(0, 255)


@pytest.mark.parametrize(
    ("suffix", "dtype", "lowest", "highest"),
    [
        *((".png", np.uint16, *ends) for ends in ((0, 65535), (1000, 5000), (0, 255), (30000, 30400))),
        *((".tif", np.uint16, 1000, 5000), (".tif", np.int32, -1000, 3000), (".tif", np.float32, -1000, 3000)),
    ],
)
def test_wide_pixels_are_scaled_by_their_own_range(tmp_path: Path, suffix: str, dtype: type, lowest: int, highest: int):
    values = np.linspace(lowest, highest, SIZE * SIZE).reshape(SIZE, SIZE)
    square = decode_square(save(tmp_path / f"a{suffix}", values.astype(dtype)), SIZE)
    np.testing.assert_allclose(square, scaled_ramp(values), atol=1.1)
    assert (square.min(), square.max()) == (0, 255)


def test_a_hot_pixel_and_few_levels_do_not_flatten_the_image(tmp_path: Path):
    values = np.linspace(0, 4095, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    expected = scaled_ramp(values.astype(float))
    values[3, 3] = 65535
    square = decode_square(save(tmp_path / "a.png", values), SIZE).copy()
    assert square[3, 3] == 255
    square[3, 3] = expected[3, 3]
    np.testing.assert_allclose(square, expected, atol=1.1)
    few = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) < 2).astype(np.uint16)
    np.testing.assert_array_equal(decode_upright(save(tmp_path / "b.png", few)), few * 255)  # both percentiles are 0
    one_bit = save(tmp_path / "c.png", Image.fromarray(GRAY > 100))
    np.testing.assert_array_equal(decode_upright(one_bit), (GRAY > 100) * 255)


def wide_png(path: Path, channels: np.ndarray) -> Path:
    """A PNG [H, W, C] of 16 bits a channel, as its specification writes it; Pillow cannot."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, count = channels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_12_bits_in_a_16_bit_png_keep_their_gray_levels(tmp_path: Path, count: int):
    ramp = np.linspace(0, 4095, SIZE * SIZE).reshape(SIZE, SIZE)
    colours = [ramp, ramp[::-1], ramp.T][: 3 if count > 2 else 1]
    alpha = np.where(np.arange(SIZE) < 8, 0, 65535) * np.ones((SIZE, 1))
    planes = [*colours, alpha] if count in (2, 4) else colours
    square = decode_square(wide_png(tmp_path / "a.png", np.stack(planes, axis=-1).astype(np.uint16)), SIZE)
    gray = np.tensordot(BT_601, colours, 1) if count > 2 else ramp
    gray = gray * (alpha / 65535) if count in (2, 4) else gray
    low, high = np.percentile(gray, [0.5, 99.5])
    np.testing.assert_allclose(square, ((gray - low) / (high - low) * 255).clip(0, 255), atol=1.1)
    assert len(np.unique(square)) >= 90  # 16 with the upper bytes alone


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_zeros_are_white_is_inverted(tmp_path: Path, dtype: type):
    values = GRAY.astype(dtype) * (257 if dtype == np.uint16 else 1)
    content = save(tmp_path / "a.tif", np.iinfo(dtype).max - values).read_bytes()
    black, white = (struct.pack("<HHII", 262, 3, 1, zero) for zero in (1, 0))  # PhotometricInterpretation
    assert content.count(black) == 1
    (tmp_path / "b.tif").write_bytes(content.replace(black, white))
    expected = decode_square(save(tmp_path / "c.tif", values), SIZE)
    np.testing.assert_allclose(decode_square(tmp_path / "b.tif", SIZE), expected, atol=1)


def lungs(side: int = 128) -> np.ndarray:
    """Two ellipses, bool [side, side]."""
    y, x = np.mgrid[:side, :side] / side
    return ((abs(x - 0.5) - 0.2) / 0.15) ** 2 + ((y - 0.5) / 0.3) ** 2 < 1


@pytest.mark.parametrize("levels", [(0, 255), (0, 1), (30, 220), (255, 0)])
@pytest.mark.parametrize("way", ["png", "16 bits", "jpeg", "resized", "resized jpeg"])
def test_a_mask_is_no_xray(tmp_path: Path, levels: tuple[int, int], way: str):
    if levels == (0, 1) and way not in ("png", "16 bits"):
        return
    mask = np.where(lungs(), *levels[::-1]).astype(np.uint16 if way == "16 bits" else np.uint8)
    picture = Image.fromarray(mask)
    picture = picture.resize((512, 512), Image.Resampling.BICUBIC) if "resized" in way else picture
    path = tmp_path / ("a.jpg" if "jpeg" in way else "a.png")
    picture.save(path, quality=60)
    with pytest.raises(NoXRayError, match="a drawing, of 2 gray levels"):
        decode_square(path, SIZE)
    assert decode_upright(path).shape == picture.size  # as lung masks are read


def test_a_map_of_organs_is_no_xray_but_a_faint_or_framed_xray_is_one(tmp_path: Path):
    organs = lungs() * 85 + lungs()[:, ::-1] * np.arange(128)[None] // 64 * 85
    with pytest.raises(NoXRayError, match=r"a drawing, of \d gray levels"):
        decode_square(save(tmp_path / "a.png", organs.astype(np.uint8)), SIZE)
    noise = np.random.default_rng(0).integers(0, 20, (128, 128))
    faint = (120 + lungs() * 30 + noise).astype(np.uint8)
    framed = np.full((320, 320), 255, np.uint8)  # 84% of it white
    framed[96:224, 96:224] = faint
    for picture in (faint, framed):
        assert len(np.unique(decode_square(save(tmp_path / "b.png", picture), SIZE))) > 10


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    wide = np.pad(GRAY, ((0, 0), (3, 6)), mode="edge")
    # what the camera stores so that a viewer, who applies the orientation, sees `wide` (EXIF 2.3, table 6)
    stored = {
        1: wide,
        2: wide[:, ::-1],
        3: wide[::-1, ::-1],
        4: wide[::-1],
        5: wide.T,
        6: np.rot90(wide),
        7: wide[::-1, ::-1].T,
        8: np.rot90(wide, -1),
    }[orientation]
    path = save(tmp_path / f"a{suffix}", np.ascontiguousarray(stored), exif=exif, quality=95)
    assert np.abs(decode_upright(path).astype(float) - wide).mean() < 4
    assert upright_size(path) == wide.shape
    assert np.abs(decode_square(path, SIZE).astype(float) - wide[:, 4 : 4 + SIZE]).mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_large_image_is_averaged_not_sampled(tmp_path: Path, suffix: str):
    """Against the mean of each block; a decoder that skipped pixels would keep the noise."""
    rng = np.random.default_rng(0)
    large = np.kron(GRAY, np.ones((50, 50))) * 0.7 + 40 + rng.normal(0, 20, (1600, 1600))
    path = save(tmp_path / f"a{suffix}", large.clip(0, 255).astype(np.uint8), quality=95)
    with Image.open(path) as image:
        expected = np.asarray(image, dtype=float).reshape(SIZE, 50, SIZE, 50).mean(axis=(1, 3))
    inner = np.s_[10:, 10:]  # away from the edge of the bright corner, where LANCZOS rings
    assert np.abs(decode_square(path, SIZE)[inner] - expected[inner]).mean() < 1.5


def wide_tiff() -> bytes:
    """A TIFF in colour of 16 bits a channel, of which Pillow would read 8; it writes none."""
    data = np.repeat(GRAY.astype("<u2")[..., None] * 16, 3, axis=-1).tobytes()
    end = 8 + len(data)
    tags = [(256, SIZE), (257, SIZE), (258, end + 2 + 12 * 8 + 4), (262, 2), (273, 8), (277, 3), (278, SIZE)]
    tags += [(279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, v) for tag, v in tags)
    header, count = b"II" + struct.pack("<HI", 42, end), struct.pack("<H", len(tags))
    return header + data + count + entries + struct.pack("<I", 0) + struct.pack("<3H", 16, 16, 16)


def broken_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> content and what the reason must say."""
    png = save(folder / "whole.png", GRAY).read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), dtype=np.uint8)
    jpeg = save(folder / "whole.jpg", noise, quality=95).read_bytes()
    blank = save(folder / "blank_source.png", np.full((SIZE, SIZE), 7, np.uint8)).read_bytes()
    blank_16 = save(folder / "blank16.png", np.full((SIZE, SIZE), 700, np.uint16)).read_bytes()
    small = save(folder / "small_source.png", np.resize(GRAY, (20, 31))).read_bytes()
    pages = {"save_all": True, "append_images": [Image.fromarray(255 - GRAY).resize((SIZE + 9, SIZE))]}
    preview = {"save_all": True, "append_images": [Image.fromarray(GRAY[:9, :9]), *pages["append_images"]]}
    header = b"IHDR" + struct.pack(">II", 60000, 60000) + png[24:29]
    huge = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    return {
        "empty.png": (b"", "empty file"),
        "text.png": (b"not an image at all", "not an image"),
        "html.jpg": (b"<html>404</html>", "not an image"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "blank.png": (blank, "blank: all pixels lie between 7 and 7"),
        "blank_16.png": (blank_16, "blank: all pixels are 700"),
        "small.png": (small, f"31 x 20 px is smaller than the {SIZE} px that it is decoded to"),
        "header.png": (png[:20], ""),
        "bomb.png": (huge, "decompression bomb"),
        "flipped.png": (png[:60] + bytes(byte ^ 255 for byte in png[60:90]) + png[90:], ""),
        "pages.tif": (save(folder / "p.tif", GRAY, **pages).read_bytes(), "holds 2 pictures, expected one"),
        "previewed.tif": (save(folder / "p.tif", GRAY, **preview).read_bytes(), "holds 3 pictures, expected one"),
        "colour_16.tif": (wide_tiff(), "a TIFF in colour of 16 bits a channel"),
        "moving.gif": (save(folder / "p.gif", GRAY, **pages).read_bytes(), "holds 2 pictures, expected one"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not an image"),
    }


def test_broken_files_say_why(tmp_path: Path):
    for name, (content, reason) in broken_files(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with warnings.catch_warnings(), pytest.raises(BrokenImageError) as caught:
            warnings.simplefilter("ignore")
            decode_square(tmp_path / name, SIZE)
        assert reason in str(caught.value), name
        assert str(caught.value).strip() and str(tmp_path) not in str(caught.value), name
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(BrokenImageError, match="cannot be read: "):
            decode_square(path, SIZE)
