"""DICOM files: the pixels of one gray frame, and what the header says about the patient."""

import contextlib
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

# Odd headers are common, and what cannot be read is reported with its file.
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.ERROR)

_TAGS = {
    "patient": "PatientID",
    "sex": "PatientSex",
    "age": "PatientAge",
    "view": "ViewPosition",
    "modality": "Modality",
}
RADIOGRAPHS = ("CR", "DX", "RG", "")  # modalities; "" where the header does not say
_VIEW_TAGS = ("ViewCodeSequence", "PatientOrientation")  # of digital radiographs without a view position


def dicom_pixels(file: IO[bytes]) -> np.ndarray:
    """Return the frame [H, W] of a DICOM file, a larger value being brighter: uint8, or floats of any range.

    Applied are rescale slope or modality LUT, then the VOI LUT or else the first window (DICOM PS3.3 C.11);
    MONOCHROME1 is inverted; padding is as dark as the darkest other pixel. Raises ValueError with the reason for a file
    without pixels, of several frames, in colour, or compressed in a way that the installed decoders cannot read;
    pydicom raises other exceptions for damage.
    """
    header = dcmread(file)
    if "PixelData" not in header:
        why = "encrypted" if "EncryptedAttributesSequence" in header else header.get("Modality") or "unknown modality"
        raise ValueError(f"DICOM without pixels ({why})")
    frames, kind = header.get("NumberOfFrames") or 1, header.get("PhotometricInterpretation")
    if int(frames) > 1:
        raise ValueError(f"DICOM of {frames} frames, expected one")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"DICOM in colour ({kind}), expected gray")
    try:
        stored = header.pixel_array
    except RuntimeError as error:  # no decoder
        name = header.file_meta.TransferSyntaxUID.name
        raise ValueError(f"DICOM that no installed decoder reads ({name}); try pip install pylibjpeg[all]") from error
    values = apply_modality_lut(stored, header)
    with contextlib.suppress(ValueError):  # a window that is not one
        values = apply_voi_lut(values, header)
    is_plain = header.BitsStored == 8 and stored.dtype == np.uint8 and np.array_equal(values, stored)
    values = stored if is_plain else np.asarray(values, dtype=np.float32)
    values = values if kind == "MONOCHROME2" else (255 - values if is_plain else -values)
    padded = _padding(stored, header)
    return np.where(padded, values[~padded].min(), values) if padded.any() and not padded.all() else values


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Return which pixels [H, W] lie outside the picture: those of PixelPaddingValue, or up to its range's limit."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    low, high = sorted((int(value), int(header.get("PixelPaddingRangeLimit", value))))
    return (stored >= low) & (stored <= high)


def decoders() -> list[str]:
    """Return which of the packages that read more kinds of compressed DICOM are installed."""
    return [name for name in ("gdcm", "jpeg_ls", "libjpeg", "openjpeg", "rle") if importlib.util.find_spec(name)]


def dicom_facts(path: Path) -> dict[str, str]:
    """Return patient, sex, age, view and modality of a DICOM header as it writes them, "" where it does not say.

    A header without a view position may tell it by its view code, or by which way the rows of its picture run: to the
    front or the back of the patient only on a lateral film.
    """
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS.values(), *_VIEW_TAGS])
        facts = {name: str(header.get(tag) or "").strip() for name, tag in _TAGS.items()}
        codes, rows = header.get("ViewCodeSequence") or [Dataset()], header.get("PatientOrientation") or [""]
        coded = str(codes[0].get("CodeMeaning") or "").strip()
        facts["view"] = facts["view"] or coded or "lateral" * (str(rows[0])[:1] in ("A", "P"))
    except Exception:  # of damaged bytes; the store says why the image is left out
        return dict.fromkeys(_TAGS, "")
    return facts
