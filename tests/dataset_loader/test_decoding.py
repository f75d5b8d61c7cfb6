"""Every kind of file that a collection of X-rays holds, against the arithmetic of its format."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_loader.decoding import BrokenImageError, decode_square

SIZE = 32
# A corner that is unlike the others, so that a turned image is noticed.
GRAY = np.add.outer(np.arange(SIZE) * 3, np.arange(SIZE) * 4).astype(np.uint8)
GRAY[:8, :8] = 255


def save(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def luminance(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """ITU-R BT.601."""
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_gray_pixels_arrive_unchanged(tmp_path: Path):
    square = decode_square(save(tmp_path / "a.png", GRAY), SIZE)
    assert square.dtype == np.uint8
    np.testing.assert_array_equal(square, GRAY)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_gray_pixels_arrive_unchanged_from_every_mode(tmp_path: Path, mode: str):
    picture = Image.fromarray(GRAY).convert(mode)
    np.testing.assert_array_equal(decode_square(save(tmp_path / "a.png", picture), SIZE), GRAY)


def test_tinted_colour_becomes_luminance(tmp_path: Path):
    tinted = np.stack([GRAY, GRAY // 2, 255 - GRAY], axis=-1)
    expected = luminance(*np.moveaxis(tinted.astype(float), -1, 0))
    picture = Image.fromarray(tinted)
    np.testing.assert_allclose(decode_square(save(tmp_path / "a.png", picture), SIZE), expected, atol=1)
    quantised = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    expected = luminance(*np.moveaxis(np.asarray(quantised.convert("RGB"), dtype=float), -1, 0))
    np.testing.assert_allclose(decode_square(save(tmp_path / "p.png", quantised), SIZE), expected, atol=1)
    jpeg = save(tmp_path / "a.jpg", picture, quality=100, subsampling=0)
    with Image.open(jpeg) as decoded:
        expected = luminance(*np.moveaxis(np.asarray(decoded.convert("RGB"), dtype=float), -1, 0))
    assert np.abs(decode_square(jpeg, SIZE) - expected).mean() < 1


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_lies_on_black(tmp_path: Path, mode: str):
    alpha = np.linspace(0, 255, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint8)
    picture = Image.fromarray(GRAY).convert(mode)
    picture.putalpha(Image.fromarray(alpha))
    np.testing.assert_allclose(
        decode_square(save(tmp_path / "a.png", picture), SIZE), GRAY * (alpha / 255.0), atol=1.01
    )


def test_a_transparent_palette_entry_is_black(tmp_path: Path):
    picture = Image.fromarray(GRAY).convert("P")
    np.testing.assert_array_equal(
        decode_square(save(tmp_path / "a.png", picture, transparency=255), SIZE),
        np.where(GRAY == 255, 0, GRAY),
    )


@pytest.mark.parametrize(("lowest", "highest"), [(0, 65535), (1000, 5000), (0, 255), (30000, 30400)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_by_their_own_range(tmp_path: Path, lowest: int, highest: int, suffix: str):
    values = np.linspace(lowest, highest, SIZE * SIZE).reshape(SIZE, SIZE)
    square = decode_square(save(tmp_path / f"a{suffix}", values.astype(np.uint16)), SIZE)
    np.testing.assert_allclose(square, (values - lowest) / (highest - lowest) * 255, atol=1.1)
    assert (square.min(), square.max()) == (0, 255)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_scaled_by_their_own_range(tmp_path: Path, dtype: type):
    values = np.linspace(-1000, 3000, SIZE * SIZE).reshape(SIZE, SIZE)
    square = decode_square(save(tmp_path / "a.tif", values.astype(dtype)), SIZE)
    np.testing.assert_allclose(square, (values + 1000) / 4000 * 255, atol=1.1)


def test_one_bit_is_black_and_white(tmp_path: Path):
    square = decode_square(save(tmp_path / "a.png", Image.fromarray(GRAY > 100)), SIZE)
    np.testing.assert_array_equal(square, np.where(GRAY > 100, 255, 0))


def test_cmyk_is_not_taken_for_its_negative(tmp_path: Path):
    picture = Image.fromarray(GRAY).convert("RGB").convert("CMYK")
    square = decode_square(save(tmp_path / "a.jpg", picture, quality=100), SIZE)
    assert np.abs(square.astype(float) - GRAY).mean() < 2


@pytest.mark.parametrize(("suffix", "format"), [(".jpg", "PNG"), (".png", "JPEG"), (".jpeg", "WEBP"), (".PNG", "BMP")])
def test_the_content_decides_not_the_suffix(tmp_path: Path, suffix: str, format: str):
    square = decode_square(save(tmp_path / f"a{suffix}", GRAY, format=format, quality=95), SIZE)
    assert np.abs(square.astype(float) - GRAY).mean() < 3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # what the camera stores so that a viewer, who applies the orientation, sees GRAY (EXIF 2.3, table 6)
    stored = {
        1: GRAY,
        2: GRAY[:, ::-1],
        3: GRAY[::-1, ::-1],
        4: GRAY[::-1],
        5: GRAY.T,
        6: np.rot90(GRAY),
        7: GRAY[::-1, ::-1].T,
        8: np.rot90(GRAY, -1),
    }[orientation]
    path = save(tmp_path / f"a{suffix}", np.ascontiguousarray(stored), exif=exif, quality=95)
    assert np.abs(decode_square(path, SIZE).astype(float) - GRAY).mean() < 4


def test_damaged_exif_does_not_cost_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", GRAY, exif=exif)

    def refuse(self: Image.Exif, data: bytes) -> None:  # Pillow's versions differ in what they refuse
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Exif, "load", refuse)
    np.testing.assert_array_equal(decode_square(path, SIZE), GRAY)


@pytest.mark.parametrize(("top", "left"), [(0, 20), (20, 0), (0, 0), (0, 7)])
def test_the_central_square_is_kept(tmp_path: Path, top: int, left: int):
    framed = np.pad(GRAY, ((top, top), (left, left)))
    np.testing.assert_array_equal(decode_square(save(tmp_path / "a.png", framed), SIZE), GRAY)


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


def broken_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> content and what the reason must say."""
    png = save(folder / "whole.png", GRAY).read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), dtype=np.uint8)
    jpeg = save(folder / "whole.jpg", noise, quality=95).read_bytes()
    blank = save(folder / "blank_source.png", np.full((SIZE, SIZE), 7, np.uint8)).read_bytes()
    blank_16 = save(folder / "blank16.png", np.full((SIZE, SIZE), 700, np.uint16)).read_bytes()
    small = save(folder / "small_source.png", np.resize(GRAY, (20, 31))).read_bytes()
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
        "small.png": (small, f"31 x 20 px is smaller than the store's {SIZE} px; lower store_res"),
        "header.png": (png[:20], ""),
        "bomb.png": (huge, "decompression bomb"),
        "flipped.png": (png[:60] + bytes(byte ^ 255 for byte in png[60:90]) + png[90:], ""),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not an image"),
    }


def test_broken_files_say_why(tmp_path: Path):
    for name, (content, reason) in broken_files(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with warnings.catch_warnings(), pytest.raises(BrokenImageError) as caught:
            warnings.simplefilter("ignore")
            decode_square(tmp_path / name, SIZE)
        assert reason in str(caught.value), name
        assert str(caught.value).strip(), name
        assert str(tmp_path) not in str(caught.value), name


def test_a_file_that_is_not_there_or_is_a_folder_says_so(tmp_path: Path):
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(BrokenImageError, match="cannot be read: "):
            decode_square(path, SIZE)


def test_any_damage_to_the_bytes_is_either_an_image_or_a_reason(tmp_path: Path):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 3
    for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp", ".gif"):
        whole = save(tmp_path / f"a{suffix}", GRAY, exif=exif).read_bytes()
        for _ in range(60):
            damaged = np.frombuffer(whole, np.uint8).copy()
            damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
            (tmp_path / "b").write_bytes(damaged[: rng.integers(1, len(damaged) + 1)].tobytes())
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert decode_square(tmp_path / "b", SIZE).shape == (SIZE, SIZE)
            except BrokenImageError:
                pass
