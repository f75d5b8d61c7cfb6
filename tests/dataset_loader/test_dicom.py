"""DICOM: the files that pydicom ships and small ones made here, against the standard's arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
import pytest
from pydicom.config import IGNORE, settings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dataset_loader import image_store
from dataset_loader.columns import Columns
from dataset_loader.decoding import BrokenImageError, decode_square, decode_upright, upright_size
from dataset_loader.image_files import image_files
from dataset_loader.readers.folder_dataset import read_folder

SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
SIZE = 64
RAMP = np.linspace(0, 4095, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)


def write(path: Path, pixels: np.ndarray | None = RAMP, bits: int = 12, **header: object) -> Path:
    """A digital radiograph with the pixels [H, W], or [frames, H, W], and some attributes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3", "DX"
    if pixels is not None:
        dataset.Rows, dataset.Columns = pixels.shape[-2:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.itemsize, bits, bits - 1
        dataset.PixelRepresentation, dataset.PixelData = 0, pixels.tobytes()
    for name, value in header.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def scaled(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [0.5, 99.5])
    return ((values - low) / (high - low) * 255).clip(0, 255)


def test_12_bits_are_scaled_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    expected = scaled(RAMP.astype(float))
    np.testing.assert_allclose(decode_square(write(tmp_path / "a.dcm"), SIZE), expected, atol=1)
    negative = write(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(decode_square(negative, SIZE), 255 - expected, atol=1)


def test_8_bits_arrive_unchanged(tmp_path: Path) -> None:
    gray = (RAMP // 32).astype(np.uint8)  # 0 to 127
    plain = write(tmp_path / "a.dcm", gray, bits=8, RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(decode_upright(plain), gray)
    negative = write(tmp_path / "b.dcm", gray, bits=8, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode_upright(negative), 255 - gray)


def test_rescale_then_window(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2: y = (x - (c - 0.5)) / (w - 1) + 0.5, clipped to 0..1."""
    header = {"RescaleSlope": 2, "RescaleIntercept": -1000, "RescaleType": "US"}
    path = write(tmp_path / "a.dcm", **header, WindowCenter=[3000, 1], WindowWidth=[2000, 1])
    y = ((RAMP * 2.0 - 1000 - (3000 - 0.5)) / (2000 - 1) + 0.5).clip(0, 1) * 255
    np.testing.assert_allclose(decode_square(path, SIZE), y, atol=1)
    useless = write(tmp_path / "b.dcm", **header, WindowCenter=3000, WindowWidth=0)
    np.testing.assert_allclose(decode_square(useless, SIZE), scaled(RAMP.astype(float)), atol=1)


def test_a_voi_lut_is_applied_before_a_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], (np.arange(4096) ** 2 // 256).astype(np.uint16).tobytes()
    path = write(tmp_path / "a.dcm", VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    np.testing.assert_allclose(decode_square(path, SIZE), scaled(RAMP.astype(float) ** 2), atol=1)


def test_a_frame_is_not_square_and_not_small(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP[:, :40].copy())
    assert decode_upright(path).shape == upright_size(path) == (64, 40)
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
        ("reportsi", r"DICOM without pixels \(SR\)"),
        ("waveform_ecg", "DICOM without pixels"),
        ("MR_truncated", "less than expected"),
        ("JPEGLSNearLossless_16", r"no installed decoder reads \(JPEG-LS Lossy"),
        ("badVR", "invalid literal"),
        ("no_meta", "not an image"),
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


def test_encrypted_attributes_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", None, EncryptedAttributesSequence=[Dataset()])
    with pytest.raises(BrokenImageError, match=r"without pixels \(encrypted\)"):
        decode_square(path, SIZE)


def folder(root: Path) -> Columns:
    facts: dict[str, Any] = {"PatientSex": "F", "PatientAge": "045Y", "ViewPosition": "PA", "PatientName": "Doe^Jane"}
    write(root / "a.dcm", PatientID="p1", **facts)
    write(root / "1.2.840.55", PatientID="p1", PatientAge="006M")
    write(root / "IM0001", PatientID="p2", PatientSex="M")
    write(root / "b.DCM")
    (root / "README").write_text("not an image, " * 20)
    (root / "v1.2").write_bytes(b"x")
    return read_folder(root)


def test_files_are_found_by_magic_number_and_headers_fill_the_columns(tmp_path: Path) -> None:
    columns = folder(tmp_path)
    assert columns.paths.tolist() == ["1.2.840.55", "IM0001", "a.dcm", "b.DCM"]
    assert columns.groups.tolist() == ["p1", "p2", "p1", "b.DCM"]
    assert columns.details.columns.tolist() == ["sex", "age", "view"]  # nothing else, such as a name
    assert columns.details["sex"].fillna("").tolist() == ["", "Male", "Female", ""]
    assert columns.details["age"].fillna(0).tolist() == [0.5, 0, 45, 0]
    assert columns.details["view"].fillna("").tolist() == ["", "", "PA", ""]


def test_a_table_wins_over_headers(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label,patient,age\na.dcm,x,q9,50\nIM0001,y,,\nb.DCM,y,,\n")
    columns = folder(tmp_path)
    assert columns.groups.tolist() == ["q9", "p2", "q9", "b.DCM"]  # the first two files have one patient's header
    assert columns.details["age"].fillna(0).tolist() == [0.5, 0, 50, 0]
    assert columns.details["sex"].fillna("").tolist() == ["", "Male", "Female", ""]


def test_what_headers_of_real_devices_say_about_age_and_view(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "writing_validation_mode", IGNORE)
    coded = Dataset()
    coded.CodeMeaning = "left lateral"
    write(tmp_path / "a.dcm", PatientAge="51", ViewPosition="LL")
    write(tmp_path / "b.dcm", PatientAge="ADULT", ViewCodeSequence=[coded])
    write(tmp_path / "c.dcm", PatientAge="013M", PatientOrientation=["A", "F"])
    write(tmp_path / "d.dcm", PatientAge="62", PatientOrientation=["L", "F"])
    assert read_folder(tmp_path).paths.tolist() == ["d.dcm"]
    said = capsys.readouterr().err
    assert "left out lateral films: 3 (a.dcm, b.dcm, c.dcm)" in said
    assert "1 of 4 ages are not understood: 'ADULT' (1)" in said
    assert read_folder(tmp_path, laterals=True).details["age"].fillna(0).tolist() == [51, 0, 1.083, 62]


def test_one_patient_for_all_is_none(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        write(tmp_path / name, PatientID="ANONYMOUS")
    assert read_folder(tmp_path).groups.tolist() == ["a.dcm", "b.dcm"]
    assert image_files(tmp_path).tolist() == ["a.dcm", "b.dcm"]


def test_padding_does_not_squeeze_the_tissue(tmp_path: Path) -> None:
    padded = RAMP.copy()
    padded[:, : SIZE // 3] = 65535
    expected = padded.astype(float)
    expected[:, : SIZE // 3] = padded[:, SIZE // 3 :].min()
    path = write(tmp_path / "a.dcm", padded, bits=16, PixelPaddingValue=65535)
    np.testing.assert_allclose(decode_square(path, SIZE), scaled(expected), atol=1)
    negative = -padded.astype(float)
    negative[:, : SIZE // 3] = negative[:, SIZE // 3 :].min()
    header = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 65000, "PixelPaddingRangeLimit": 65535}
    path = write(tmp_path / "b.dcm", padded, bits=16, **header)
    np.testing.assert_allclose(decode_square(path, SIZE), scaled(negative), atol=1)


def test_files_of_another_modality_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, modality in {"a": "DX", "b": "CT", "c": "CT"}.items():
        write(tmp_path / f"{name}.dcm", Modality=modality)
    assert len(read_folder(tmp_path)) == 3
    assert "than radiographs: 2 CT" in capsys.readouterr().err


def test_another_decoder_decodes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.dcm")
    first = image_store._key(tmp_path, ["a.dcm"], SIZE)
    monkeypatch.setattr(image_store, "decoders", lambda: ["another"])
    assert image_store._key(tmp_path, ["a.dcm"], SIZE) != first
