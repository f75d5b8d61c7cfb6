"""DICOM files: what kind they are, what the header says about the patient, and which compressed ones can be read."""

import importlib.util
import logging
import re
import warnings
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import UID

# Odd headers are common, and what cannot be read is reported with its file.
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.ERROR)

_TAGS = {
    "patient": "PatientID",
    "accession": "AccessionNumber",
    "sex": "PatientSex",
    "age": "PatientAge",
    "view": "ViewPosition",
    "modality": "Modality",
}
RADIOGRAPHS = ("CR", "DX", "RG", "")  # modalities; "" where the header does not say
_VIEW_TAGS = ("ViewCodeSequence", "PatientOrientation")  # of digital radiographs without a view position
_START = 1024  # bytes: more than a file has before its SOP class, in the file meta information or the first group
_SOP_CLASS = re.compile(rb"(?s)(?:\x02\0\x02\0|\x08\0\x16\0|\0\x08\0\x16)(?:UI..|.\0\0\0)([0-9.]+)")


def decoders() -> list[str]:
    """Return which of the packages that read more kinds of compressed DICOM are installed."""
    return [name for name in ("gdcm", "jpeg_ls", "libjpeg", "openjpeg", "rle") if importlib.util.find_spec(name)]


def pictureless_kind(path: Path | str) -> str:
    """Return which kind of object without a picture a DICOM file holds, such as "Basic Text SR"; "" for any other."""
    try:
        with open(path, "rb") as file:
            found = _SOP_CLASS.search(file.read(_START))
    except OSError:
        return ""
    kind = UID(found[1].decode()).name if found else ""  # a UID that the standard does not name has itself as its name
    is_pictureless = "Storage" in kind and "Image" not in kind
    return kind.removesuffix(" Storage").replace("Media Storage Directory", "DICOMDIR") if is_pictureless else ""


def dicom_facts(path: Path) -> dict[str, str]:
    """Return patient, accession, sex, age, view and modality as a DICOM header writes them, "" where it does not.

    A header without a view position may tell it by its view code, or by which way the rows of its picture run: to the
    front or the back of the patient only on a lateral film.
    """
    try:
        tags = [*_TAGS.values(), *_VIEW_TAGS]
        header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
        facts = {name: str(header.get(tag) or "").strip() for name, tag in _TAGS.items()}
        if not facts["view"]:
            codes, rows = header.get("ViewCodeSequence") or [Dataset()], header.get("PatientOrientation") or [""]
            coded = str(codes[0].get("CodeMeaning") or "").strip()
            facts["view"] = coded or "lateral" * (str(rows[0])[:1] in ("A", "P"))
    except Exception:  # of damaged bytes; the store says why the image is left out
        return dict.fromkeys(_TAGS, "")
    return facts
