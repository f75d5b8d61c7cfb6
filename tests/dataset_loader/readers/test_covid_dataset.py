"""The COVID-19 Radiography Database's folders, with all that lies in them."""

from pathlib import Path

import numpy as np
import pytest
from folders import touch
from pydicom import Dataset

from dataset_loader.readers.covid_dataset import read_covid
from utils.config import UserError

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")

# None of these is an X-ray.
DIRT = """
    README.md.txt  COVID.metadata.xlsx  ~$COVID.metadata.xlsx  .DS_Store  Thumbs.png.db  COVID/.DS_Store
    COVID/labels.csv  COVID/images/.DS_Store  COVID/images/._COVID-1.png  COVID/images/.COVID-1.png.swp
    COVID/images/COVID-1.png~  COVID/images/#COVID-1.png#  COVID/images/COVID-1.png.crdownload
    COVID/images/list.csv  COVID/images/list.xlsx  COVID/images/thumbnails/COVID-1.png
    COVID/masks/.COVID-2.png.swp  COVID/masks/COVID-77.png  masks/COVID-1.png  .cache/images/COVID-1.png
    __MACOSX/COVID/images/._COVID-1.png  notes/todo.txt  montage/overview.png
"""


def make_tree(root: Path) -> Path:
    """The real layout: two images a class, a mask for the first."""
    for name in CLASSES:
        touch(root, f"{name}/images/{name}-10.png", f"{name}/images/{name}-2.png", f"{name}/masks/{name}-2.png")
    return root


def test_images_labels_masks_and_groups(tmp_path: Path):
    columns = read_covid(make_tree(tmp_path))
    assert columns.label_names == CLASSES and columns.labels.dtype == np.int64
    assert columns.paths.tolist() == sorted(f"{name}/images/{name}-{n}.png" for name in CLASSES for n in (2, 10))
    assert [CLASSES[label] for label in columns.labels] == [path.split("/")[0] for path in columns.paths]
    masks = [mask for name in CLASSES for mask in (None, f"{name}/masks/{name}-2.png")]
    assert columns.masks.tolist() == masks
    assert columns.groups.tolist() == columns.paths.tolist()
    assert len(columns.details) == 8


def test_only_xrays_are_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clean = read_covid(make_tree(tmp_path / "clean"))
    dirty = read_covid(touch(make_tree(tmp_path / "dirty"), *DIRT.split()))
    assert dirty.paths.tolist() == clean.paths.tolist()
    assert dirty.masks.tolist() == clean.masks.tolist()
    assert dirty.label_names == CLASSES
    assert "montage" in capsys.readouterr().err


def test_any_suffix_of_an_image_in_any_case_with_spaces_and_parentheses(tmp_path: Path):
    files = [f"COVID/images/{name}" for name in ("a (1).PNG", "b.JPG", "c.jpeg", "d.webp", "e.Tif")]
    columns = read_covid(touch(tmp_path, *files, "Normal/images/n.png", "COVID/Masks/a (1).png"))
    assert columns.paths.tolist() == [*files, "Normal/images/n.png"]
    assert columns.masks[0] == "COVID/Masks/a (1).png"


@pytest.mark.parametrize("hidden", [[], ["Normal/.DS_Store"], ["Normal/images/.DS_Store"]])
def test_an_empty_class_is_a_users_error(tmp_path: Path, hidden: list[str]):
    touch(tmp_path, "COVID/images/a.png", "Other/images/a.png", *hidden)
    (tmp_path / "Normal").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"Normal holds no images"):
        read_covid(tmp_path)


def test_the_real_images(real_xrays: Path):
    columns = read_covid(real_xrays / "COVID-19_Radiography_Dataset")
    counts = dict(zip(columns.label_names, np.bincount(columns.labels).tolist(), strict=True))
    assert counts == {"COVID": 700, "Lung_Opacity": 236, "Normal": 700, "Viral Pneumonia": 700}
    assert sum(mask is not None for mask in columns.masks) == 4
    assert all((columns.root / path).is_file() for path in columns.paths)


def test_dicom_headers_name_the_patients(tmp_path: Path) -> None:
    for name in ("COVID", "Normal"):
        for number in range(2):
            header = Dataset()
            header.PatientID = f"P{number}"
            path = tmp_path / name / "images" / f"{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            header.save_as(path, implicit_vr=True, little_endian=True)
    assert read_covid(tmp_path).groups.tolist() == ["P0", "P1"] * 2
