"""ChestX-ray14's table, test list and folders of images, as they are downloaded."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from folders import touch

from dataset_loader.readers.nih_dataset import FINDINGS, patients_named, read_boxes, read_nih
from dataset_loader.splits import places_of
from utils.config import UserError

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def make_tree(root: Path, patients: int = 20) -> Path:
    """Two images of each patient; the first folder holds the first half, and the last five patients are the test."""
    lines, tested = [HEADER], []
    for patient in range(1, patients + 1):
        for visit in range(2):
            name = f"{patient:08d}_{visit:03d}.png"
            found = "No Finding" if visit else "Cardiomegaly|Effusion"
            lines.append(f"{name},{found},{visit},{patient},{40 + patient},{'MF'[visit]},PA,2682,2749,0.143,0.143,")
            touch(root, f"images_{1 + 2 * (patient - 1) // patients:03d}/images/{name}")
            tested += [name] if patient > patients - 5 else []
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    (root / "test_list.txt").write_text("\r\n".join(tested))
    return root


def test_findings_patients_and_the_official_test_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = read_nih(make_tree(tmp_path))
    assert len(columns) == 40 and len(set(columns.groups)) == 20
    assert columns.paths[0] == "images_001/images/00000001_000.png"
    assert columns.paths[-1] == "images_002/images/00000020_001.png"
    assert columns.label_names == FINDINGS and len(FINDINGS) == 14
    first = np.zeros(14, dtype=np.float32)
    first[[FINDINGS.index("Cardiomegaly"), FINDINGS.index("Effusion")]] = 1
    np.testing.assert_array_equal(columns.labels[:2], [first, np.zeros(14)])
    assert columns.details["sex"].tolist()[:2] == ["Male", "Female"]
    assert columns.details["age"].tolist()[:3] == [41, 41, 42]
    assert set(columns.details["view"]) == {"PA"}
    parts = places_of(columns, seed=0)  # whatever the fold
    assert set(columns.groups[parts == "test"]) == {str(patient) for patient in range(16, 21)}
    assert 2 <= (parts == "val").sum() <= 6
    assert not set(columns.groups[parts == "val"]) & set(columns.groups[parts == "train"])
    assert capsys.readouterr().err == ""


def test_ages_in_months_and_days_and_lists_from_another_editor(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    table, tested = root / "Data_Entry_2017.csv", root / "test_list.txt"
    text = table.read_text().replace(",41,", ",058Y,").replace(",42,", ",013M,").replace(",43,", ",011D,")
    table.write_text(text.replace("Cardiomegaly|Effusion", "cardiomegaly | Effusion"))
    tested.write_text(tested.read_text(), encoding="utf-16")
    (root / "images_001" / "images" / "00000001_000.png").rename(root / "00000001_000.JPG")
    columns = read_nih(root)
    assert columns.details["age"].round(2).tolist()[:7] == [58, 58, 1.08, 1.08, 0.03, 0.03, 44]
    np.testing.assert_array_equal(columns.labels[0], np.isin(FINDINGS, ["Cardiomegaly", "Effusion"]))
    tested.write_text("\n".join(f"images/{name[:-4]}" for name in tested.read_text(encoding="utf-16").split()))
    assert (columns.named_parts == "test").sum() == (read_nih(root).named_parts == "test").sum() == 10


def test_a_partial_download_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path)
    shutil.rmtree(root / "images_002")
    (root / "images_001" / "images").rename(root / "images")
    touch(root, "images/other.png", "images/00000003_007.png", "small/00000003_000.png")
    (root / "test_list.txt").unlink()
    columns = read_nih(root)
    assert len(columns.labelled()) == 20 and set(columns.labelled().named_parts) == {""}
    extra = columns.labelled(False)
    assert extra.paths.tolist() == ["images/00000003_007.png", "images/other.png"]
    assert extra.groups.tolist() == ["3", "images/other.png"] and (columns.labelled().groups == "3").sum() == 2
    assert columns.left_out["file"].tolist() == ["small/00000003_000.png"]
    said = capsys.readouterr().err
    assert "rows without a file, left out: 20 (00000011_000.png, " in said
    assert "without a label, as" in said and "left out 1 (small/00000003_000.png)" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Effusion", "Efusion", "'Efusion' in line 2"),
        ("Patient ID", "ID", "lacks the column 'Patient ID'"),
        ("_00", "_10", "found no image of"),
        (
            "0.143,\n",
            "0.143,\n00000001_000.JPG,No Finding,0,1,41,M,PA,,,,,\n",
            "contradicts itself about 'images_001/im",
        ),
    ],
)
def test_a_table_that_is_not_the_nihs_is_a_users_error(tmp_path: Path, old: str, new: str, said: str) -> None:
    table = make_tree(tmp_path) / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(UserError, match=said):
        read_nih(tmp_path)


def test_a_test_list_of_other_images_is_refused(tmp_path: Path) -> None:
    (make_tree(tmp_path) / "test_list.txt").write_text("1.png")
    with pytest.raises(UserError, match=r"test_list\.txt names none of the images of"):
        read_nih(tmp_path)


def test_a_root_one_level_off_is_pointed_out(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "nih")
    for wrong in (tmp_path, root / "images_001"):
        with pytest.raises(UserError, match=f"did you mean {root.resolve()}\\?"):
            read_nih(wrong)


def test_boxes_as_they_are_published(tmp_path: Path) -> None:
    columns, path = read_nih(make_tree(tmp_path)), tmp_path / "BBox_List_2017.csv"
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    good = "00000001_000.png,Infiltrate,225.08,547.02,86.78,79.19,,,\n00000099_000.png,Mass,1,2,3,4,,,\n"
    path.write_text(header + good)
    boxes = read_boxes(path, columns)
    assert boxes.index.tolist() == [2, 3]
    assert boxes["file"].tolist() == ["images_001/images/00000001_000.png", "00000099_000.png"]
    assert boxes["finding"].tolist() == ["Infiltration", "Mass"]
    np.testing.assert_array_equal(boxes[[*"xywh"]], [[225.08, 547.02, 86.78, 79.19], [1, 2, 3, 4]])
    assert patients_named([*boxes["file"], "a/00000099_001.jpg", "other.png"]) == {"1", "99"}
    cases = [
        (header.replace("w,h]", "w"), good, r"lacks the column 'h\]'"),
        (header, good.replace("Mass", "Lump"), "'Lump' in line 3"),
        (header, good.replace("1,2,3,4", "1,2,3,0"), "box in line 3"),
        (header, good.replace("86.78", "wide"), "box in line 2"),
    ]
    for first, rows, said in cases:
        path.write_text(first + rows)
        with pytest.raises(UserError, match=said):
            read_boxes(path, columns)
