"""Which files of a folder are X-rays, and what is said of the others."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dataset_loader.image_files import image_files, is_mask

MASKS = """
    masks/a.png  COVID/masks/a.png  Train/COVID/lung masks/a.png  Train/COVID/infection masks/a.png  Lung_Masks/a.png
    ManualMask/leftMask/a.png  masks/COVID/a.png  masks (1)/a.png  mask_png/a.png  segmentation/a.png
    Segmentations/a.png  Ground-truths/a.png  labelsTr/a.png
    a_mask.png  2019/a-mask.png  mask_a.png  A_0001_0_MASK.png  a_leftMask.png
    a_mask_2.png  a_mask1.png  a_seg.png  images/a_mask.png  images_masks/a.png
"""
XRAYS = """
    a.png  2019/a1.png  images/a.png  masked/a.png  a_masked.png  unmasked.png  Chest X-ray Masks and Labels/CXR/a.png
    Chest X-ray Masks and Labels/a.png  xrays_with_masks/2019/a.png  Lung Segmentation/CXR_png/a.png
    Lung Segmentation/test/a.png  Infection Segmentation Data/Train/COVID/images/a.png  masks/images/a.png
    labels/a.png  segment1/a.png  images_and_masks/images/a.png
"""


def lines(names: str) -> list[str]:
    return [name for line in names.splitlines() for name in line.split("  ") if name]


@pytest.mark.parametrize(("names", "expected"), [(MASKS, True), (XRAYS, False)])
def test_masks_are_known_by_name(names: str, expected: bool) -> None:
    assert [name for name in lines(names) if is_mask(name) != expected] == []


def test_masks_are_left_out_and_counted_by_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("A/images/1.png", "A/lung masks/1.png", "A/lung masks/2.png", "B/1.png", "B/1_mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / name)
    assert image_files(tmp_path).tolist() == ["A/images/1.png", "B/1.png"]
    told = capsys.readouterr().err
    assert "3 masks, by the names of files or folders, are no X-rays: 2 in A/lung masks, 1 in B" in told


def save_object(path: Path, sop_class: str, has_meta: bool = True, implicit: bool = False) -> None:
    """A DICOM object without pixels."""
    dataset = Dataset()
    dataset.ImageType, dataset.SOPClassUID, dataset.SOPInstanceUID = ["ORIGINAL", "PRIMARY"], sop_class, "1.2.3"
    dataset.Modality = "OT"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not has_meta:
        return dataset.save_as(path, implicit_vr=implicit, little_endian=True)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def test_objects_of_a_hospitals_cd_are_counted_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = "1.2.840.10008.5.1.4.1.1."
    save_object(tmp_path / "DICOMDIR", "1.2.840.10008.1.3.10")
    save_object(tmp_path / "A/KO000000", f"{storage}88.59")
    save_object(tmp_path / "A/report.dcm", f"{storage}88.11", has_meta=False)
    save_object(tmp_path / "A/dose.ima", f"{storage}88.67", has_meta=False, implicit=True)
    save_object(tmp_path / "A/1.2.840.77", f"{storage}11.1", implicit=True)
    for name, sop_class in {"DX": "1.1", "SC.dcm": "7", "private": "9999.77"}.items():
        save_object(tmp_path / "A" / name, f"{storage}{sop_class}")
    save_object(tmp_path / "A/bare", f"{storage}1", has_meta=False, implicit=True)
    (tmp_path / "AUTORUN.INF").write_text("[autorun]")
    assert image_files(tmp_path).tolist() == ["A/DX", "A/SC.dcm", "A/bare", "A/private"]
    told = capsys.readouterr().err
    assert "left out 5 DICOM files that hold no X-ray: 1 Basic Text SR, 1 DICOMDIR, 1 Grayscale" in told
    assert "1 Key Object Selection Document, 1 X-Ray Radiation Dose SR\n" in told
