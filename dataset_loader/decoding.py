"""One image file, as real collections hold them, into one gray square of uint8."""

import contextlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # by content: a PNG may be named .jpg
_BLANK_RANGE = 2  # gray levels; compression adds this much to a constant image


class BrokenImageError(Exception):
    """A file without a usable image; the message is the reason, without the file's name."""


def decode_square(path: Path | str, size: int) -> np.ndarray:
    """Decode a file to its upright, gray, central square: uint8 [size, size].

    Colour becomes luminance (ITU-R 601), alpha lies on black, more than 8 bits are scaled by the image's own
    range. Raises BrokenImageError if the file is unreadable, truncated, blank or smaller than `size`.
    """
    try:
        square = _decode(path, size)
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes, decoders raise all kinds of exceptions
        raise BrokenImageError(_reason(error, path)) from error
    darkest, brightest = int(square.min()), int(square.max())
    if brightest - darkest <= _BLANK_RANGE:
        raise BrokenImageError(f"blank: all pixels lie between {darkest} and {brightest} of 255")
    return square


def decode_upright(path: Path | str) -> np.ndarray:
    """Decode a whole file to upright gray: uint8 [H, W]. Raises BrokenImageError."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return np.asarray(_upright_gray(image))
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:  # as in decode_square
        raise BrokenImageError(_reason(error, path)) from error


def upright_size(path: Path | str) -> tuple[int, int]:
    """Return the height and width that `decode_upright` would give, without decoding."""
    with Image.open(path, formats=_FORMATS) as image:
        width, height = image.size
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return (width, height) if orientation >= 5 else (height, width)  # 5 to 8 are turned by 90 degrees


def central_square(height: int, width: int) -> tuple[int, int, int]:
    """Return top, left and side of the part of an image [H, W] that `decode_square` keeps."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def _decode(path: Path | str, size: int) -> np.ndarray:
    with Image.open(path, formats=_FORMATS) as image:
        width, height = image.size
        if min(width, height) < size:
            raise BrokenImageError(f"{width} x {height} px is smaller than the store's {size} px; lower store_res")
        image.draft("L", (2 * size, 2 * size))  # lets a large JPEG be decoded at 1/2, 1/4 or 1/8
        gray = _upright_gray(image)
    top, left, side = central_square(gray.height, gray.width)
    box = (left, top, left + side, top + side)
    return np.asarray(gray.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))


def _upright_gray(image: Image.Image) -> Image.Image:
    image.load()  # truncated pixels raise here, outside of the block that ignores errors
    with contextlib.suppress(Exception):  # damaged EXIF data beside intact pixels
        ImageOps.exif_transpose(image, in_place=True)
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


def _reason(error: Exception, path: Path | str) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if Path(path).stat().st_size else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
