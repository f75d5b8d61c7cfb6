"""DICOM: the files that pydicom ships and small ones made here, against the standard's arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.config
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from radiographs import RAMP, SIZE
from radiographs import write_radiograph as write

from dataset_loader.decoding import decode_square, decode_upright, upright_size
from dataset_loader.image_files import BrokenImageError, NoXRayError, image_files
from dataset_loader.readers.folder_dataset import read_folder

SHIPPED = Path(pydicom.data.__file__).parent / "test_files"


def scaled(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [0.5, 99.5])
    return ((values - low) / (high - low) * 255).clip(0, 255)


def table(entries: int, first: int, bits: int, data: object) -> list[Dataset]:
    """A sequence of one lookup table."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [entries, first, bits], data
    return [item]


FLOATS, DARK = RAMP.astype(float), (RAMP // 32).astype(np.uint8)  # the latter 0 to 127
EIGHT, GRAYS = (RAMP // 16).astype(np.uint8), np.stack([RAMP] * 3, axis=-1)
SQUARES = (np.arange(4096) ** 2 // 256).astype(np.uint16).tobytes()
RESCALED = {"RescaleSlope": 2, "RescaleIntercept": -1000, "RescaleType": "US"}
NEGATIVE = {"PhotometricInterpretation": "MONOCHROME1"}
INVERSE = {"PresentationLUTShape": "INVERSE"}
COLOURS = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
PALETTE = {"PhotometricInterpretation": "PALETTE COLOR"} | {f"{name}Descriptor": [256, 0, 16] for name in COLOURS}
PALETTE |= {f"{name}Data": (np.arange(256, dtype=np.uint16)[::-1] * 257).tobytes() for name in COLOURS}
# Attributes, and the picture that the standard's arithmetic gives.
SHOWN: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "12 bits": ({}, scaled(FLOATS)),
    "a negative": (NEGATIVE, 255 - scaled(FLOATS)),
    "an inverse presentation": (INVERSE, 255 - scaled(FLOATS)),
    "an inverse presentation of a negative": (INVERSE | NEGATIVE, 255 - scaled(FLOATS)),
    "8 bits, unchanged": ({"pixels": DARK, "bits": 8, "RescaleSlope": 1, "RescaleIntercept": 0}, DARK),
    "a negative of 8 bits": ({"pixels": DARK, "bits": 8, **NEGATIVE}, 255 - DARK),
    "a rescale, then the first window (PS3.3 C.11.2.1.2)": (
        {**RESCALED, "WindowCenter": [3000, 1], "WindowWidth": [2000, 1]},
        ((FLOATS * 2 - 1000 - (3000 - 0.5)) / (2000 - 1) + 0.5).clip(0, 1) * 255,
    ),
    "a window without a width": ({**RESCALED, "WindowCenter": 3000, "WindowWidth": 0}, scaled(FLOATS)),
    "a VOI table before a window": (
        {"VOILUTSequence": table(4096, 0, 16, SQUARES), "WindowCenter": 1, "WindowWidth": 2},
        scaled(FLOATS**2),
    ),
    "a sigmoid": (
        {"WindowCenter": [2000, 1], "WindowWidth": [1500, 1], "VOILUTFunction": ["SIGMOID", "LINEAR"]},
        scaled(1 / (1 + np.exp(-4 * (FLOATS - 2000) / 1500))),
    ),
    "a gray palette": ({"pixels": EIGHT, "bits": 8, **PALETTE}, scaled(255.0 - EIGHT)),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_pictures_are_those_of_the_standard(tmp_path: Path, kind: str) -> None:
    header, expected = SHOWN[kind]
    shown = decode_upright(write(tmp_path / "a.dcm", **header))
    np.testing.assert_allclose(shown, expected, atol=0 if expected.dtype == np.uint8 else 1)


def test_a_frame_is_not_square_and_not_small(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP[:, :40].copy())
    assert decode_upright(path).shape == upright_size(path) == (64, 40)
    for header in ({"PixelSpacing": [0.3, 0.1]}, {"PixelAspectRatio": [3, 1]}):  # three times as high as wide
        tall = write(tmp_path / "b.dcm", RAMP.repeat(3, axis=1), **header)
        np.testing.assert_allclose(decode_upright(tall), decode_upright(write(tmp_path / "c.dcm")), atol=2)
    with pytest.raises(BrokenImageError, match="40 x 64 px is smaller than the 64 px that it is decoded to"):
        decode_square(path, 64)


@pytest.mark.parametrize("name", ["MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_jp2klossless"])
def test_one_image_in_many_transfer_syntaxes(name: str) -> None:
    reference = decode_square(SHIPPED / "MR_small_implicit.dcm", 64)
    assert len(np.unique(reference)) > 100
    np.testing.assert_array_equal(decode_square(SHIPPED / f"{name}.dcm", 64), reference)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("examples_rgb_color", r"DICOM in colour \(RGB\)"),
        ("examples_palette", r"DICOM in colour \(PALETTE COLOR\)"),
        ("rtdose", "DICOM of 15 frames, expected one"),
        ("reportsi", r"DICOM object without a picture \(SR\)"),
        ("waveform_ecg", r"DICOM object without a picture \(ECG\)"),
        ("MR_truncated", "DICOM that is cut off: 8,130 of 8,192 bytes of pixels"),
        ("JPEGLSNearLossless_16", r"no installed decoder reads \(JPEG-LS Lossy"),
        ("badVR", "DICOM of 15 frames, expected one"),
        ("meta_missing_tsyntax", "does not say how many rows and columns"),
    ],
)
def test_what_cannot_be_used_says_why(name: str, reason: str) -> None:
    with pytest.raises(BrokenImageError, match=reason):
        decode_square(SHIPPED / f"{name}.dcm", 8)


def test_every_file_that_pydicom_ships_is_an_image_or_has_a_reason() -> None:
    files = sorted(path for path in SHIPPED.iterdir() if path.suffix == ".dcm")
    assert len(files) > 50
    for path in files:
        try:
            assert decode_square(path, 8).shape == (8, 8)
        except BrokenImageError as error:
            assert str(error).strip()


COLOUR, OF_THREE = np.stack([EIGHT, EIGHT, EIGHT[::-1]]), {"Rows": SIZE, "Columns": SIZE, "SamplesPerPixel": 3}
OF_THREE |= {"PlanarConfiguration": 1, "PhotometricInterpretation": "RGB"}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"pixels": None, "Modality": "KO", "SOPClassUID": "1.2.3"}, r"DICOM object without a picture \(KO\)"),
        ({"pixels": None, "EncryptedAttributesSequence": [Dataset()]}, "it is encrypted"),
        ({"pixels": None}, "cut off: its pixels are missing"),  # as of a download that broke off
        ({"pixels": None, "SOPClassUID": "1.2.3", "Rows": 64}, "cut off: its pixels are missing"),
        ({"pixels": COLOUR, "bits": 8, **OF_THREE}, r"DICOM in colour \(RGB\), expected gray"),
    ],
)
def test_only_objects_without_a_picture_are_not_broken(tmp_path: Path, header: dict[str, Any], reason: str) -> None:
    with pytest.raises(BrokenImageError, match=reason) as caught:
        decode_square(write(tmp_path / "a.dcm", **header), SIZE)
    assert isinstance(caught.value, NoXRayError) == ("without a picture" in reason)


RISING = np.arange(4096, dtype=np.uint16).tobytes()
NEUTRAL, YBR = np.stack([EIGHT, *[np.full_like(EIGHT, 128)] * 2], axis=-1), {"PhotometricInterpretation": "YBR_FULL"}
OF_8_BITS = {"BitsStored": 8, "HighBit": 7}
# Of the ramp of 12 bits, whose picture is known: what differs from a sound header, and the pixels where they differ.
SAME_PICTURE: dict[str, dict[str, Any]] = {
    "12 bits at the top of 16": {"pixels": RAMP << 4, "HighBit": 15},
    "12 bits in the middle, others in use": {"pixels": (RAMP << 2) | 0x8001, "HighBit": 13},
    "an overlay in the upper bits": {"pixels": RAMP | ((RAMP % 7 == 0) * np.uint16(0x4000))},
    "too few bits": {"BitsStored": 8, "HighBit": 7},
    "more bits than there are": {"BitsStored": 20, "HighBit": 19},
    "a high bit below the bits": {"HighBit": 3},
    "signed, the sign not extended": {"pixels": ((RAMP.astype(np.int16) - 2048) & 0xFFF), "PixelRepresentation": 1},
    "rescale without values": {"RescaleSlope": "", "RescaleIntercept": ""},
    "a slope alone": {"RescaleSlope": "2"},
    "a slope of zero": {"RescaleSlope": "0", "RescaleIntercept": "0"},
    "a modality table of 12 bits": {"ModalityLUTSequence": table(4096, 0, 12, RISING)},
    "a modality table that is short": {"ModalityLUTSequence": table(4096, 0, 16, RISING[:999])},
    "a modality table of 0 entries, 65536": {"ModalityLUTSequence": table(0, 0, 16, RISING * 16)},
    "a table of 8 bits": {"pixels": EIGHT, **OF_8_BITS, "VOILUTSequence": table(256, 0, 8, bytes(range(256)))},
    "a VOI table without a descriptor": {"VOILUTSequence": [Dataset()]},
    "no VOI table in its sequence": {"VOILUTSequence": []},
    "a VOI table beside the picture": {"VOILUTSequence": table(4096, 30000, 16, RISING)},
    "a first window without values": {"WindowCenter": ["", "2048"], "WindowWidth": ["", "4096"]},
    "a negative window": {"WindowCenter": 2048, "WindowWidth": -4096},
    "a window of 1": {"WindowCenter": 2048, "WindowWidth": 1},
    "a window beside the picture": {"WindowCenter": -50000, "WindowWidth": 400},
    "a center without a width": {"WindowCenter": 2048},
    "two functions": {"VOILUTFunction": ["LINEAR", "SIGMOID"], "WindowCenter": 2048, "WindowWidth": 4096},
    "an unknown function": {"VOILUTFunction": "LOGARITHMIC", "WindowCenter": 2048, "WindowWidth": 4096},
    "an exact function": {"VOILUTFunction": "linear_exact", "WindowCenter": 2047.5, "WindowWidth": 4095},
    "in lower case, with a space": {"PhotometricInterpretation": "monochrome 2"},
    "empty": {"PhotometricInterpretation": ""},
    "no samples and representation": {"SamplesPerPixel": None, "PixelRepresentation": None, "NumberOfFrames": ""},
    "no frames": {"NumberOfFrames": 0},
    "16 frames of which one is there": {"NumberOfFrames": 16},
    "no bits": {"BitsAllocated": None, "BitsStored": None, "HighBit": None},
    "an identity presentation": {"PresentationLUTShape": "IDENTITY"},
    "padding without a value": {"PixelPaddingValue": None},
    "three equal samples": {"pixels": GRAYS, "SamplesPerPixel": 3},
    "equal red, green and blue": {"pixels": GRAYS, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    "three, inverted": {"pixels": 4095 - GRAYS, "SamplesPerPixel": 3, "PhotometricInterpretation": "MONOCHROME1"},
    "equal planes": {"pixels": np.stack([RAMP] * 3), "SamplesPerPixel": 3, "PlanarConfiguration": 1},
    "luminance with neutral colours": {"pixels": NEUTRAL, **OF_8_BITS, "SamplesPerPixel": 3, **YBR},
    "32 bits": {"pixels": RAMP.astype(np.uint32) * 70000, "BitsStored": 32, "HighBit": 31},
    "7 of 8 bits": {"pixels": (RAMP // 32).astype(np.uint8), "BitsStored": 7, "HighBit": 6},
}


@pytest.fixture
def any_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pydicom write what the standard does not allow."""
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)


@pytest.mark.usefixtures("any_header")
@pytest.mark.parametrize("kind", SAME_PICTURE)
def test_headers_that_are_a_little_wrong_do_not_change_the_picture(tmp_path: Path, kind: str) -> None:
    changes = dict(SAME_PICTURE[kind])
    pixels = changes.pop("pixels", RAMP)
    header = {"Rows": SIZE, "Columns": SIZE, "PlanarConfiguration": 0, **changes}
    square = decode_square(write(tmp_path / "a.dcm", pixels, **header), SIZE)
    levels = 128 if "7 of" in kind else 256 if pixels.dtype == np.uint8 else 4096
    np.testing.assert_allclose(square, scaled(RAMP.astype(float) * levels // 4096), atol=2)


@pytest.mark.parametrize("syntax", ["", "1.2.3.4"])
def test_an_unknown_transfer_syntax_is_not_compressed_unless_the_pixels_are(tmp_path: Path, syntax: str) -> None:
    path = write(tmp_path / "a.dcm")
    expected, dataset = decode_square(path, SIZE), pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(decode_square(path, SIZE), expected)
    path.write_bytes(path.read_bytes().replace(RAMP.tobytes(), b"\xfe\xff\x00\xe0" + RAMP.tobytes()[4:]))
    with pytest.raises(BrokenImageError, match="does not say how its pixels are compressed"):
        decode_square(path, SIZE)


def test_a_decimal_comma_is_one_and_words_are_no_numbers(tmp_path: Path) -> None:
    header = {"WindowCenter": "1111.1", "WindowWidth": "2222.2", "RescaleSlope": "3333.3"}
    content = write(tmp_path / "a.dcm", **header).read_bytes()
    for written, expected in (
        ([b"1024,5", b"2048,0", b"0,5   "], ((RAMP / 2 - 1024) / 2047 + 0.5).clip(0, 1) * 255),
        ([b"AUTO  ", b"AUTO  ", b"none  "], scaled(RAMP.astype(float))),
    ):
        changed = content
        for old, new in zip(header.values(), written, strict=True):
            changed = changed.replace(old.encode(), new)
        (tmp_path / "b.dcm").write_bytes(changed)
        np.testing.assert_allclose(decode_square(tmp_path / "b.dcm", SIZE), expected, atol=2)


@pytest.mark.usefixtures("any_header")
@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big"])
@pytest.mark.parametrize("has_meta", [True, False])
def test_files_without_a_preamble_are_read(tmp_path: Path, syntax: str, has_meta: bool) -> None:
    dataset = pydicom.dcmread(write(tmp_path / "a.dcm", VOILUTSequence=table(4096, 0, 12, RISING)))
    if syntax == "big":
        dataset.PixelData = RAMP.byteswap().tobytes()
        dataset.VOILUTSequence[0].LUTData = np.arange(4096, dtype=">u2").tobytes()
    syntaxes = {"implicit": ImplicitVRLittleEndian, "explicit": ExplicitVRLittleEndian, "big": ExplicitVRBigEndian}
    dataset.file_meta.TransferSyntaxUID = syntaxes[syntax]
    pydicom.dcmwrite(tmp_path / "IM01", dataset, implicit_vr=syntax == "implicit", little_endian=syntax != "big")
    content = (tmp_path / "IM01").read_bytes()[132:]
    group_length = 12 + int.from_bytes(content[8:12], "little")
    (tmp_path / "IM01").write_bytes(content if has_meta else content[group_length:])
    assert image_files(tmp_path).tolist() == ["IM01", "a.dcm"]
    np.testing.assert_array_equal(decode_square(tmp_path / "IM01", SIZE), decode_square(tmp_path / "a.dcm", SIZE))


def test_pixels_may_be_floats(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", BitsAllocated=32)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.FloatPixelData = (RAMP / 4096).astype(np.float32).tobytes()
    dataset.save_as(path)
    np.testing.assert_allclose(decode_square(path, SIZE), scaled(RAMP.astype(float)), atol=1)


def test_files_are_found_by_magic_number_and_headers_fill_columns_where_no_table_does(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"PatientSex": "F", "PatientAge": "045Y", "ViewPosition": "PA", "PatientName": "Doe^Jane"}
    write(tmp_path / "a.dcm", PatientID="p1", **facts)
    write(tmp_path / "1.2.840.55", PatientID="p1", PatientAge="006M")
    write(tmp_path / "IM0001", PatientID="p2", PatientSex="M")
    write(tmp_path / "b.DCM")
    (tmp_path / "README").write_text("not an image, " * 20)
    (tmp_path / "v1.2").write_bytes(b"x")
    columns = read_folder(tmp_path)
    assert columns.paths.tolist() == ["1.2.840.55", "IM0001", "a.dcm", "b.DCM"]
    assert columns.groups.tolist() == ["p1", "p2", "p1", "b.DCM"]
    assert columns.details.columns.tolist() == ["sex", "age", "view"]  # nothing else, such as a name
    assert columns.details["age"].fillna(0).tolist() == [0.5, 0, 45, 0]
    assert columns.details["view"].fillna("").tolist() == ["", "", "PA", ""]
    (tmp_path / "labels.csv").write_text("file,label,patient,age\na.dcm,x,q9,50\nIM0001,y,,\nb.DCM,y,,\n")
    columns = read_folder(tmp_path)
    assert columns.groups.tolist() == ["q9", "p2", "q9", "b.DCM"]  # the first two files have one patient's header
    assert columns.details["age"].fillna(0).tolist() == [0.5, 0, 50, 0]
    assert columns.details["sex"].fillna("").tolist() == ["", "Male", "Female", ""]


@pytest.mark.usefixtures("any_header")
def test_what_headers_of_real_devices_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coded = Dataset()
    coded.CodeMeaning = "left lateral"
    write(tmp_path / "a.dcm", PatientAge="51", ViewPosition="LL")
    write(tmp_path / "b.dcm", PatientAge="ADULT", ViewCodeSequence=[coded])
    write(tmp_path / "c.dcm", PatientAge="013M", PatientOrientation=["A", "F"])
    write(tmp_path / "d.dcm", PatientAge="62", PatientOrientation=["L", "F"], Modality="CT")
    assert read_folder(tmp_path).paths.tolist() == ["d.dcm"]
    said = capsys.readouterr().err
    assert "left out lateral films: 3 (a.dcm, b.dcm, c.dcm)" in said
    assert "1 of 4 ages are not understood: 'ADULT' (1)" in said and "than radiographs: 1 CT" in said
    assert read_folder(tmp_path, laterals=True).details["age"].fillna(0).tolist() == [51, 0, 1.083, 62]


def padded(value: int, source: np.ndarray = RAMP) -> tuple[np.ndarray, np.ndarray]:
    """The ramp whose left third is padding, and what is shown of it: there, the lowest value of the rest."""
    stored = source.copy()
    stored[:, : SIZE // 3] = value
    shown = stored.astype(float)
    shown[:, : SIZE // 3] = stored[:, SIZE // 3 :].min()
    return stored, shown


LIMITED = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 65000, "PixelPaddingRangeLimit": 65535}


@pytest.mark.parametrize(
    ("value", "bits", "header", "shown"),
    [
        (65535, 16, {"PixelPaddingValue": 65535}, FLOATS),
        (65535, 16, LIMITED, -FLOATS),
        (0xF830, 12, {"PixelPaddingValue": 0xF830}, FLOATS),  # in bits that are not stored
    ],
)
def test_padding_does_not_squeeze_the_tissue(tmp_path: Path, value: int, bits: int, header: Any, shown: Any) -> None:
    path = write(tmp_path / "a.dcm", padded(value)[0], bits=bits, **header)
    np.testing.assert_allclose(decode_square(path, SIZE), scaled(padded(0, shown)[1]), atol=1)


@pytest.mark.usefixtures("any_header")
@pytest.mark.parametrize(("stored", "bits", "vr", "value"), [(-20000, 16, "US", 45536), (65535, 16, "SS", -1)])
@pytest.mark.parametrize("limit", [False, True])
def test_padding_is_known_by_its_bits(tmp_path: Path, stored: int, bits: int, vr: str, value: int, limit: bool) -> None:
    pixels, expected = padded(stored, RAMP.astype(np.int32) - 1000 * (stored < 0))
    pixels[0, 0] += (1 if stored < 0 else -1) * limit
    path = write(tmp_path / "a.dcm", pixels.astype("<i4").astype("<u2"), bits=bits, PixelRepresentation=int(stored < 0))
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", vr, value)
    if limit:
        dataset.add_new("PixelPaddingRangeLimit", vr, value + (1 if stored < 0 else -1))
    dataset.save_as(path)
    np.testing.assert_allclose(decode_square(path, SIZE), scaled(expected), atol=1)
