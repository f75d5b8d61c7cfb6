"""The picture in a DICOM file, read as leniently as viewers do: headers of real devices are often a little wrong."""

import math
from typing import IO, Any

import numpy as np
from PIL import Image
from pydicom import Dataset, Sequence, dcmread
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dataset_loader.image_files import BrokenImageError, NoXRayError

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_SAMPLES_DIFFER = 0.02  # of the brightest: equal red, green and blue differ by this much once they were compressed
_SQUARE = 1.02  # height by width of a pixel, or width by height, at most: measured spacings differ a little
_MIN_SEEN = 0.01  # of the pixels: a window or table that leaves fewer between black and white shows no picture


def dicom_picture(file: IO[bytes]) -> np.ndarray:
    """Return the frame [H, W] of a DICOM file, a larger value being brighter: uint8, or floats of any range.

    Applied are modality LUT or rescale slope, then the first VOI LUT or window that shows a picture (DICOM PS3.3 C.11);
    MONOCHROME1 and an inverse presentation LUT are inverted; padding is as dark as the darkest other pixel. Samples of
    red, green and blue that are equal are gray; pixels that are not square become so. What the header lacks takes the
    value that viewers assume.
    Raises NoXRayError for an object without pixels; BrokenImageError with the reason for several frames, a picture in
    colour, damage, or a compression that the installed decoders cannot read.
    """
    header = _read(file)
    _complete(header)
    words = _gray(_words(header), header)
    stored = _aligned(words, header)
    values = _window(_modality(stored, header), header)
    is_plain = stored.dtype == np.uint8 and header.BitsStored == 8 and np.array_equal(np.rint(values), stored)
    values = stored if is_plain else np.asarray(values, dtype=np.float32)
    if header.PhotometricInterpretation == "MONOCHROME1" or _word(header, "PresentationLUTShape") == "INVERSE":
        values = 255 - values if is_plain else -values
    padded = _padding(words, header) | _padding(stored, header)
    values = np.where(padded, values[~padded].min(), values) if padded.any() and not padded.all() else values
    return _with_square_pixels(values, header)


def _read(file: IO[bytes]) -> Dataset:
    try:
        header = dcmread(file, force=True)  # also without a preamble
        if any(name in header for name in _PIXELS):
            return header
        kind = _word(header, "Modality") or "of unknown kind"
        encrypted = "EncryptedAttributesSequence" in header
        sop_class = UID(str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""))
    except Exception as error:  # pydicom raises all kinds
        raise BrokenImageError("DICOM with a damaged header") from error
    if encrypted:
        raise BrokenImageError("DICOM without pixels that can be read: it is encrypted")
    if "Rows" in header or "Image" in sop_class.name:  # of a picture, the standard's names say that it is one
        raise BrokenImageError("DICOM that is cut off: its pixels are missing")
    if not sop_class:
        raise BrokenImageError("DICOM with a damaged header")
    raise NoXRayError(f"DICOM object without a picture ({kind})")


def _numbers(header: Dataset, name: str) -> list[float | None]:
    """Return the values of an attribute, None in place of what is not a finite number; [] if it is absent."""
    try:
        value: Any = header.get(name)
    except Exception:  # pydicom converts when asked; a decimal comma is one of many things that it refuses
        raw: Any = header.get_item(name)
        value = bytes(raw.value).decode("latin-1").replace(",", ".").split("\\")
    numbers: list[float | None] = []
    for item in [] if value is None else [value] if isinstance(value, (str, bytes)) else np.atleast_1d(value).tolist():
        try:
            number = float(item)
        except (TypeError, ValueError):
            number = math.nan
        numbers.append(number if math.isfinite(number) else None)
    return numbers


def _number(header: Dataset, name: str, default: float) -> float:
    """Return the first number of an attribute, or a default where it has none."""
    return next((number for number in _numbers(header, name) if number is not None), default)


def _word(header: Dataset, name: str) -> str:
    """Return the first value of an attribute as one word in capitals, "" if it is absent."""
    try:
        value: Any = header.get(name)
    except Exception:  # as in _numbers
        return ""
    first = str(value[0]) if isinstance(value, MultiValue) and value else str(value or "")
    return "".join(first.upper().split()).strip("\0")


def _complete(header: Dataset) -> None:
    """Set every attribute that describes the pixels to a possible value; BrokenImageError where none can be assumed."""
    rows, columns = (int(_number(header, name, 0)) for name in ("Rows", "Columns"))
    if rows < 1 or columns < 1:
        raise BrokenImageError("DICOM whose header does not say how many rows and columns the picture has")
    samples = int(_number(header, "SamplesPerPixel", 1))
    samples = samples if 1 <= samples <= 4 else 1
    allocated = int(_number(header, "BitsAllocated", 0))
    if allocated not in (1, 8, 12, 16, 24, 32, 64):
        allocated = 16 if len(_data(header)) >= 2 * rows * columns * samples else 8
    bits = int(_number(header, "BitsStored", allocated))
    bits = bits if 1 <= bits <= allocated else allocated
    high = int(_number(header, "HighBit", bits - 1))
    kind = _word(header, "PhotometricInterpretation")
    if samples == 1 and kind not in ("MONOCHROME1", "PALETTECOLOR"):
        kind = "MONOCHROME2"
    possible = {
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": samples,
        "PlanarConfiguration": int(_number(header, "PlanarConfiguration", 0) == 1),
        "NumberOfFrames": max(1, int(_number(header, "NumberOfFrames", 1))),
        "BitsAllocated": allocated,
        "BitsStored": bits,
        "HighBit": high if bits - 1 <= high < allocated else bits - 1,
        "PixelRepresentation": int(_number(header, "PixelRepresentation", 0) == 1),
        "PhotometricInterpretation": "PALETTE COLOR" if kind == "PALETTECOLOR" else kind or "RGB",
    }
    for name, value in possible.items():
        header.pop(name, None)  # which may be of another type
        setattr(header, name, value)
    if header.file_meta.get("TransferSyntaxUID") not in AllTransferSyntaxes:
        implicit, little = header.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    _check_length(header)


def _data(header: Dataset) -> bytes:
    return header[next(name for name in _PIXELS if name in header)].value or b""


def _check_length(header: Dataset) -> None:
    """Check that there are pixels for one frame alone; of pixels that are not compressed, their number tells it."""
    frames, found = int(header.NumberOfFrames), len(_data(header))
    if not header.file_meta.TransferSyntaxUID.is_encapsulated:
        if _data(header).startswith(b"\xfe\xff\x00\xe0"):  # an item: the first fragment of what is compressed
            raise BrokenImageError("DICOM whose header does not say how its pixels are compressed")
        allocated = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
        bits = next((size for name, size in allocated.items() if name in header), header.BitsAllocated)
        thirds = 2 if header.PhotometricInterpretation == "YBR_FULL_422" else 3  # of the samples are there
        expected = header.Rows * header.Columns * header.SamplesPerPixel * bits * thirds // 24
        if found < expected:
            raise BrokenImageError(f"DICOM that is cut off: {found:,} of {expected:,} bytes of pixels")
        frames = found // max(1, expected)
    if frames > 1:
        raise BrokenImageError(f"DICOM of {frames} frames, expected one")
    header.NumberOfFrames = 1


def _words(header: Dataset) -> np.ndarray:
    """Return the pixels as they are written, [H, W] or [H, W, samples]."""
    syntax = header.file_meta.TransferSyntaxUID
    try:
        words = pixel_array(header, correct_unused_bits=False)
        return apply_color_lut(words, header) if header.PhotometricInterpretation == "PALETTE COLOR" else words
    except MemoryError:
        raise
    except Exception as error:  # as in _read
        if syntax.is_compressed:
            why = f"no installed decoder reads ({syntax.name}): it is damaged, or try pip install pylibjpeg[all]"
            raise BrokenImageError(f"DICOM that {why}") from error
        raise BrokenImageError("DICOM whose header does not describe its pixels") from error


def _gray(words: np.ndarray, header: Dataset) -> np.ndarray:
    """Return [H, W] of pixels of one sample, or of several that are equal."""
    if words.ndim == 2:
        return words
    spread = np.ptp(words[..., :3].astype(np.float32), axis=-1).max()
    if spread > _SAMPLES_DIFFER * max(1, abs(float(words.max()))):
        raise BrokenImageError(f"DICOM in colour ({header.PhotometricInterpretation}), expected gray")
    return np.ascontiguousarray(words[..., 0])


def _aligned(words: np.ndarray, header: Dataset) -> np.ndarray:
    """Return the values of the stored bits alone, [H, W]: other bits hold overlays or anything.

    Where the picture of all bits is smoother, they belong to it, and the header counts too few.
    """
    syntax, unused = header.file_meta.TransferSyntaxUID, header.BitsAllocated - header.BitsStored
    if not unused or words.dtype.kind == "f" or (syntax.is_compressed and syntax != RLELossless):
        return words
    above = words.dtype.type(header.BitsAllocated - 1 - header.HighBit)
    stored = (words << above) >> words.dtype.type(unused)
    return words if np.array_equal(stored, words) else min(stored, words, key=_roughness)


def _roughness(values: np.ndarray) -> float:
    return sum(float(np.abs(np.diff(values.astype(np.float32), axis=axis)).sum()) for axis in (0, 1))


def _modality(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Apply the modality LUT or else the rescale slope, of which empty and zero count as 1."""
    mapped = _looked_up(stored, header, "ModalityLUTSequence")
    if mapped is not None:
        return mapped
    slope, intercept = _number(header, "RescaleSlope", 1) or 1, _number(header, "RescaleIntercept", 0)
    return stored if (slope, intercept) == (1, 0) else stored * np.float32(slope) + np.float32(intercept)


def _looked_up(values: np.ndarray, header: Dataset, sequence: str) -> np.ndarray | None:
    """Return the values [H, W] by the first table of a sequence; None without one that is whole and shows a picture."""
    items = header.get(sequence)
    if not isinstance(items, Sequence) or not items:
        return None
    descriptor, data = [int(number or 0) for number in _numbers(items[0], "LUTDescriptor")], items[0].get("LUTData")
    if len(descriptor) != 3 or data is None:
        return None
    entries, first, _ = descriptor[0] % 2**16 or 2**16, descriptor[1], descriptor[2]
    if isinstance(data, bytes):
        order = "<" if header.original_encoding[1] else ">"
        table = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else f"{order}u2")
    else:
        table = np.atleast_1d(data)
    if len(table) < entries:
        return None
    if first < 0 <= values.min() and values.max() > 2**15:  # written with the wrong sign
        first += 2**16
    elif first >= 2**15 and values.min() < 0:
        first -= 2**16
    rows = np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)
    mapped = table[rows].astype(np.float32)
    return mapped if _shows_picture(mapped, mapped.min(), mapped.max()) else None


def _shows_picture(values: np.ndarray, darkest: float, brightest: float) -> bool:
    return bool(((values > darkest) & (values < brightest)).mean() >= _MIN_SEEN)


def _window(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Apply the VOI LUT, or else the first window that shows a picture, which becomes 0 to 255."""
    mapped = _looked_up(values, header, "VOILUTSequence")
    if mapped is not None:
        return mapped
    function = _word(header, "VOILUTFunction")
    for center, width in zip(_numbers(header, "WindowCenter"), _numbers(header, "WindowWidth"), strict=False):
        least = 0 if function in ("SIGMOID", "LINEAR_EXACT") else 1
        if center is None or width is None or width <= least:
            continue
        offset = (values - np.float32(center)) / np.float32(width)  # from -1/2 to 1/2 in the window
        if function == "SIGMOID":
            shown = 1 / (1 + np.exp(-4 * offset.clip(-20, 20)))
        elif function == "LINEAR_EXACT":
            shown = (offset + 0.5).clip(0, 1)
        else:
            shown = ((values - np.float32(center - 0.5)) / np.float32(width - 1) + 0.5).clip(0, 1)
        if _shows_picture(shown, 0, 1):
            return shown * 255
    return values


def _padding(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Return which pixels [H, W] lie outside the picture: those of PixelPaddingValue, or up to its range's limit."""
    found = [_number(header, name, math.nan) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if math.isnan(found[0]) or values.dtype.kind == "f":
        return np.zeros(values.shape, dtype=bool)
    # Both are often written as signed beside unsigned pixels, or the other way round.
    limits = np.iinfo(values.dtype)
    wrapped = [(int(value) - limits.min) % 2**limits.bits + limits.min for value in found if not math.isnan(value)]
    return (values >= min(wrapped)) & (values <= max(wrapped))


def _with_square_pixels(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Return [H, W] with the direction in which pixels are smaller reduced, so that they are as high as wide."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        height, width = [*_numbers(header, name), None, None][:2]  # of a pixel
        if height and width and height > 0 and width > 0:
            if max(height, width) <= _SQUARE * min(height, width):
                return values
            rows, columns = values.shape[0] * min(1, height / width), values.shape[1] * min(1, width / height)
            size = max(1, round(columns)), max(1, round(rows))
            return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    return values
