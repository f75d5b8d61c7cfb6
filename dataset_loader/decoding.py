"""One image file, as real collections hold them, into one gray square of uint8."""

import contextlib
import re
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from dataset_loader.dicom_pictures import dicom_picture
from dataset_loader.image_files import BrokenImageError, NoXRayError, starts_as_dicom

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # by content: a PNG may be named .jpg
_PERCENTILES = 0.5, 99.5  # of the pixels of an image of more than 8 bits, which become black and white
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green, blue (ITU-R 601)
_BLANK_RANGE = 2  # gray levels; compression adds this much to a constant image
# Masks hold few gray levels, of which compression and resizing spread two a little. Of 16,400 real X-rays, none has
# fewer than 80, and of the pixels that are not near the commonest level at most .42 are near another one.
_MASK_LEVELS, _MASK_SHARE = 8, 0.65
_MASK_SPREAD, _MASK_CONTRAST = 8, 64  # gray levels: what is near, and how far apart the two are at least
_MASK_LEAST = 0.01  # of all pixels: near the other level


def decode_square(path: Path | str, size: int) -> np.ndarray:
    """Decode a file to its upright, gray, central square: uint8 [size, size].

    Colour becomes luminance (ITU-R 601), alpha lies on black. More than 8 bits are scaled between two of the image's
    own percentiles, 0.5 and 99.5, and clipped: a hot pixel or a burnt-in mark does not flatten the rest. Of DICOM,
    dicom_picture says what is applied. Raises BrokenImageError if the file is unreadable, truncated, blank, smaller
    than `size` or of several pictures, and NoXRayError for a mask and a DICOM object without a picture.
    """
    gray = _decoded(path, size)
    top, left, side = central_square(gray.height, gray.width)
    box = (left, top, left + side, top + side)
    square = np.asarray(gray.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))
    _check_mask(np.array(gray.histogram()))
    darkest, brightest = int(square.min()), int(square.max())
    if brightest - darkest <= _BLANK_RANGE:
        raise BrokenImageError(f"blank: all pixels lie between {darkest} and {brightest} of 255")
    return square


def square_or_error(path: Path | str, size: int) -> np.ndarray | BrokenImageError:
    """Return what decode_square does, or the error that says why the file cannot be used."""
    try:
        return decode_square(path, size)
    except BrokenImageError as error:
        return error


def decode_upright(path: Path | str) -> np.ndarray:
    """Decode a whole file to upright gray: uint8 [H, W]. Raises BrokenImageError."""
    return np.asarray(_decoded(path))


def upright_size(path: Path | str) -> tuple[int, int]:
    """Return the height and width that `decode_upright` would give, of PNG and JPEG without decoding."""
    with contextlib.suppress(UnidentifiedImageError), Image.open(path, formats=("PNG", "JPEG")) as image:
        width, height = image.size
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return (width, height) if orientation >= 5 else (height, width)  # 5 to 8 are turned by 90 degrees
    height, width = decode_upright(path).shape
    return height, width


def central_square(height: int, width: int) -> tuple[int, int, int]:
    """Return top, left and side of the part of an image [H, W] that `decode_square` keeps."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def _check_mask(counts: np.ndarray) -> None:
    """Raise NoXRayError if the pixels of each gray level [256] are those of a mask."""
    levels = int((counts > 0).sum())
    if 2 <= levels <= _MASK_LEVELS and (levels == 2 or np.ptp(np.flatnonzero(counts)) > _BLANK_RANGE):
        raise NoXRayError(f"a mask or a drawing, of {levels} gray levels")
    near = np.convolve(counts / counts.sum(), np.ones(2 * _MASK_SPREAD + 1), "same")  # [256] pixels around each level
    first = int(near.argmax())
    others = 1 - near[first]
    near[max(0, first - _MASK_CONTRAST) : first + _MASK_CONTRAST] = 0
    if near.max() >= max(_MASK_LEAST, _MASK_SHARE * others):
        raise NoXRayError("a mask or a drawing, of 2 gray levels")


def _decoded(path: Path | str, size: int = 1) -> Image.Image:
    """Return _open_gray's picture; BrokenImageError with the reason, whatever a decoder raises."""
    try:
        return _open_gray(path, size)
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes, decoders raise all kinds of exceptions
        raise BrokenImageError(_reason(error, path)) from error


def _open_gray(path: Path | str, size: int) -> Image.Image:
    """Return the upright picture in mode L; a large JPEG may come reduced to twice `size` or more."""
    # Of a path, Pillow maps an uncompressed TIFF into memory, and scrambles one that is to be turned.
    with open(path, "rb") as file:
        if starts_as_dicom(file):
            values = dicom_picture(file)
            _check_size(values.shape[1], values.shape[0], size)
            return Image.fromarray(values if values.dtype == np.uint8 else _to_8_bits(values))
        with Image.open(file, formats=_FORMATS) as image:
            _check_size(*image.size, size)
            _check_single(image)
            if size > 1:
                image.draft("L", (2 * size, 2 * size))  # lets a large JPEG be decoded at 1/2, 1/4 or 1/8
            return _upright_gray(image, file)


def _check_size(width: int, height: int, size: int) -> None:
    if min(width, height) < size:
        raise BrokenImageError(f"{width} x {height} px is smaller than the {size} px that it is decoded to")


def _check_single(image: Image.Image) -> None:
    """Raise BrokenImageError for pages or an animation; the previews in a TIFF are smaller."""
    if image.format != "MPO" and (pages := getattr(image, "n_frames", 1)) > 1:
        area = image.width * image.height
        for page in range(1, pages):
            image.seek(page)
            if 2 * image.width * image.height > area:
                raise BrokenImageError(f"holds {pages} pictures, expected one")
        image.seek(0)


def _upright_gray(image: Image.Image, file: IO[bytes]) -> Image.Image:
    # Of several channels of 16 bits each, Pillow keeps the upper 8.
    found = re.search("(LA|RGBA?);16.", str(getattr(image, "tile", [])[:1]))
    image.load()  # truncated pixels raise here, outside of the block that ignores errors
    if found and image.format == "TIFF":
        raise BrokenImageError("a TIFF in colour of 16 bits a channel; save it as gray, or as PNG")
    if found and image.format == "PNG":
        image = _wide_png(image, file, found[0])
    with contextlib.suppress(Exception):  # damaged EXIF data beside intact pixels
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        return Image.fromarray(_to_8_bits(-values if _is_white_zero(image) else values))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "black")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB").convert("L")
    if image.mode in ("L", "1"):
        return image.convert("L")
    return image.convert("RGB").convert("L")


def _wide_png(image: Image.Image, file: IO[bytes], mode: str) -> Image.Image:
    """Return the luminance on black, mode F, of a PNG of 16 bits a channel, of which Pillow keeps the upper 8.

    `mode` is Pillow's for the bytes of the file: "LA;16B", "RGB;16B" or "RGBA;16B".
    """
    if mode == "LA;16B":  # four bytes a pixel: gray, then alpha, each with its upper byte first
        high, low = np.split(_raw_png(file, "RGBA").reshape(*image.size[::-1], 2, 2), 2, axis=-1)
    else:  # read as if the lower byte were the upper one, too
        high, low = (_raw_png(file, f"{mode[:-1]}{order}") for order in "BL")
    channels = (high.astype(np.float32) * 256 + low).reshape(*image.size[::-1], -1)  # [H, W, C]
    gray = channels[..., 0] if mode == "LA;16B" else channels[..., :3] @ _LUMINANCE
    wide = Image.fromarray(gray * (channels[..., -1] / 65535) if "A" in mode else gray)
    wide.info = dict(image.info)  # the EXIF data
    return wide


def _raw_png(file: IO[bytes], mode: str) -> np.ndarray:
    """Decode a PNG with Pillow's mode for its bytes replaced: uint8 [H, W, C]."""
    file.seek(0)
    with Image.open(file, formats=["PNG"]) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        image.tile = [image.tile[0]._replace(args=mode)]
        return np.asarray(image)


def _is_white_zero(image: Image.Image) -> bool:
    """Return whether this is a TIFF whose zeros are white; Pillow inverts only those of 8 bits."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale [H, W] from its _PERCENTILES, or its whole range where they are equal, to uint8 0..255."""
    darkest, brightest = float(values.min()), float(values.max())
    if not np.isfinite(brightest - darkest):
        raise BrokenImageError("holds infinite or undefined pixel values")
    if brightest == darkest:
        raise BrokenImageError(f"blank: all pixels are {darkest:g}")
    low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
    low, high = (low, high) if low < high else (darkest, brightest)
    return np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def _reason(error: Exception, path: Path | str) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if Path(path).stat().st_size else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    if isinstance(error, Image.DecompressionBombError):
        return "a decompression bomb: far more pixels than an X-ray has"
    return "truncated: the end of the file is missing" if "truncated" in str(error).lower() else "damaged"
