"""One image file, as real collections hold them, into one gray square of uint8."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # by content: a PNG may be named .jpg
_BLANK_RANGE = 2  # gray levels; JPEG gives a constant image this much ripple
_ORIENTATION_TAG = 0x0112
_ON_THE_SIDE = (5, 6, 7, 8)
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImageError(Exception):
    """A file that yields no usable image; the message is the reason, without the file's name."""


def decode_square(path: Path | str, size: int) -> np.ndarray:
    """Decode a file to its upright, gray, central square: uint8 [size, size].

    Colour becomes luminance (ITU-R 601), alpha lies on black, more than 8 bits are scaled by the image's own
    range. Raises BrokenImageError if the file is unreadable, truncated, blank or smaller than `size`.
    """
    try:
        square = _decode(path, size)
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:  # decoders meet damaged bytes with any exception that Python has
        raise BrokenImageError(_reason(error, path)) from error
    darkest, brightest = int(square.min()), int(square.max())
    if brightest - darkest <= _BLANK_RANGE:
        raise BrokenImageError(f"blank: all pixels lie between {darkest} and {brightest} of 255")
    return square


def decode_upright(path: Path | str) -> np.ndarray:
    """Decode a file to its upright, gray self, nothing cut off: uint8 [H, W]. Raises BrokenImageError."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return np.asarray(_upright(_to_gray(image), image))
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:  # as in decode_square
        raise BrokenImageError(_reason(error, path)) from error


def upright_size(path: Path | str) -> tuple[int, int]:
    """Height and width of a file's image as `decode_upright` gives it, without decoding it."""
    with Image.open(path, formats=_FORMATS) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION_TAG, 1) in _ON_THE_SIDE
    return (width, height) if turned else (height, width)


def central_square(height: int, width: int) -> tuple[int, int, int]:
    """Top, left and side of the part of an image [H, W] that `decode_square` keeps."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def _decode(path: Path | str, size: int) -> np.ndarray:
    with Image.open(path, formats=_FORMATS) as image:
        width, height = image.size
        if min(width, height) < size:
            raise BrokenImageError(f"{width} x {height} px is smaller than the store's {size} px; lower store_res")
        image.draft("L", (2 * size, 2 * size))  # lets a large JPEG be decoded at 1/2, 1/4 or 1/8
        gray = _upright(_to_gray(image), image)
    top, left, side = central_square(gray.height, gray.width)
    box = (left, top, left + side, top + side)
    return np.asarray(gray.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))


def _to_gray(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(np.asarray(image, dtype=np.float32)))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "black")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB").convert("L")
    if image.mode in ("L", "1"):
        return image.convert("L")
    return image.convert("RGB").convert("L")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale [H, W] from its own darkest and brightest value to uint8 0..255."""
    darkest, brightest = float(values.min()), float(values.max())
    if not np.isfinite(brightest - darkest):
        raise BrokenImageError("holds infinite or undefined pixel values")
    if brightest == darkest:
        raise BrokenImageError(f"blank: all pixels are {darkest:g}")
    return np.rint((values - darkest) * (255 / (brightest - darkest))).astype(np.uint8)


def _upright(gray: Image.Image, source: Image.Image) -> Image.Image:
    """Turn the pixels as the source's EXIF orientation says."""
    try:
        orientation = source.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF beside sound pixels
        return gray
    return gray.transpose(_ORIENTATIONS[orientation]) if orientation in _ORIENTATIONS else gray


def _reason(error: Exception, path: Path | str) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if Path(path).stat().st_size else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
