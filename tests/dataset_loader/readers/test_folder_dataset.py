"""Any folder of images with a table, as radiologists write them and as they go wrong; nothing is lost silently."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.readers.folder_dataset import read_folder
from utils.config import UserError

FILES = ("a.png", "deep/b.JPG", "deep/er/c (1).tif", "d.gif", "e.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images, a mask, and what is not an X-ray."""
    for name in (*FILES, "deep/masks/b.png", ".hidden.png", ".git/x.png", "notes.txt", "lungs/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def read(root: Path, *lines: str) -> Columns:
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return read_folder(root)


def test_without_a_table_everything_is_unlabelled(root: Path) -> None:
    columns = read_folder(root)
    assert columns.paths.tolist() == sorted([*FILES, "lungs/a.png"])
    assert columns.labels.shape == (6, 0) and columns.label_names == ()
    assert set(columns.official) == {UNLABELLED}
    assert columns.groups.tolist() == columns.paths.tolist()
    assert len(columns.labelled()) == 6 and len(columns.labelled(False)) == 0


def test_links_odd_names_and_closed_folders_do_not_stop_the_rest(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "deep" / "up").symlink_to(root, target_is_directory=True)
    (root / "again").symlink_to(root / "lungs", target_is_directory=True)
    (root / "closed").mkdir()
    with open(os.fsencode(root) + b"/caf\xe9.png", "wb"):
        pass
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    paths = read_folder(root).paths.tolist()
    assert len(paths) == len(FILES) + 1, "lungs/a.png under one of its two names, and nothing below the link upwards"
    said = capsys.readouterr().err
    assert "left out 1 (caf?.png), whose names are not UTF-8" in said
    assert "left out folders that cannot be read: 1" in said


def test_classes_and_what_is_known_beside_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = read(
        root,
        "File,Label,patient,mask,sex,age,view,source,part,Ward,ICU",
        "./a.png,sick,p1,lungs/a.png,F,51,PA,Berlin,Test,W 3,1",
        'deep\\b.JPG,well,p2,,m,"7,5",AP,,valid,,0',
        f"{root}/deep/x/../er/c (1).tif,well,,none.png,Other,,,,train,,0",
        "d.gif,,p1,,,,,,,,",
        "gone.png,sick,p3,,,,,,,,",
    )
    assert columns.label_names == ("sick", "well")
    assert dict(zip(columns.paths, columns.labels, strict=True)) == {
        "a.png": 0, "deep/b.JPG": 1, "deep/er/c (1).tif": 1, "d.gif": -1, "e.png": -1,
    }  # fmt: skip
    assert dict(zip(columns.paths, columns.official, strict=True)) == {
        "a.png": "test", "deep/b.JPG": "val", "deep/er/c (1).tif": "train", "d.gif": UNLABELLED, "e.png": UNLABELLED,
    }  # fmt: skip
    assert columns.groups.tolist() == ["p1", "p1", "p2", "deep/er/c (1).tif", "e.png"]
    assert columns.masks.tolist() == ["lungs/a.png", None, None, None, None]
    details = columns.details
    assert details.columns.tolist() == ["sex", "age", "view", "source", "Ward", "ICU"]
    assert details["sex"].fillna("").tolist() == ["Female", "", "Male", "Other", ""]
    assert details["age"].fillna(0).tolist() == [51, 0, 7.5, 0, 0]
    assert details["Ward"].fillna("").tolist() == ["W 3", "", "", "", ""]
    assert columns.labelled().paths.tolist() == ["a.png", "deep/b.JPG", "deep/er/c (1).tif"]
    assert columns.labelled(False).paths.tolist() == ["d.gif", "e.png"]
    said = capsys.readouterr().err
    assert "rows without a file, left out: 1 (gone.png)" in said
    assert "masks that do not exist, left out: 1 (none.png)" in said
    assert "3 labelled images, classes sick, well" in said


def test_findings_are_told_from_details(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = read(
        root,
        "file;Nodule;Effusion;Age;kVp;Comment",
        "a.png;1;-1;60;120;clear",
        "d.gif;0;;1;;",
        "e.png;;;0;90;0",
    )
    nan = np.nan
    assert columns.label_names == ("Nodule", "Effusion")
    labelled = columns.labelled()
    assert labelled.paths.tolist() == ["a.png", "d.gif", "e.png"]  # a row of blanks is labelled: nothing mentioned
    np.testing.assert_array_equal(labelled.labels, np.array([[1, -1], [0, nan], [nan, nan]], dtype=np.float32))
    assert columns.details.columns.tolist() == ["age", "kVp", "Comment"]
    assert "findings Nodule, Effusion" in capsys.readouterr().err


def test_held_out_images_without_a_label_are_not_pretrained_on(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = read(root, "file,label,part", "a.png,x,", "e.png,y,", "d.gif,,test", "deep/b.JPG,x,", "lungs/a.png,y,")
    assert "d.gif" not in columns.paths
    assert "1 images of the official validation or test part left out" in capsys.readouterr().err


def test_unread_kinds_of_images_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("scan.nii.gz", "deep/photo.HEIC"):
        (root / name).touch()
    assert len(read_folder(root)) == 6
    assert "left out 2 (deep/photo.HEIC, scan.nii.gz), of a kind of image that is not read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,label", "a.png,x"], "no column 'file', but name, label"),
        (["file,label", "a.png,x", "e.png,y", "a.png,y"], r"lists 1 \(a.png\) more than once"),
        (["file,label", "a.png,x", "./a.png,y"], "more than once"),
        (["file,label", "../a.png,x"], "line 2, column 'file', holds '../a.png'; expected a path below"),
        (["file,label", "/else/a.png,x"], "holds '/else/a.png'"),
        (["file,label", "C:\\x\\a.png,x"], "holds 'C:"),
        (["file,label", ",x"], "holds ''"),
        (["file,label,mask", "a.png,x,../m.png"], "column 'mask', holds"),
        (["file,label", "a.png,x"], "only the class 'x'"),
        (["file,label"], "no class"),
        (["file,label", "a.png,clear lungs", "e.png,a nodule", "d.gif,scars"], "3 different labels for 3 images"),
        (["file,label", "a,x", "b,x", "c,y", "d,y"], "no row for any image .* names 'a', and there is 'a.png'"),
        (["file,label,part", "a.png,x,", "e.png,y,fold 1", "d.gif,x,", "deep/b.JPG,y,"], "holds 'fold 1' as 'part'"),
        (["file,Nodule", "a.png,yes", "e.png,no"], "neither a column 'label' nor one for each finding"),
        (["file,Nodule", "a.png,1", "e.png,0", "d.gif,yes"], "holds 'yes' as 'Nodule' in line 4"),
        (["file,Nodule", "a.png,1", "e.png,0", "d.gif,2"], "holds '2' as 'Nodule' in line 4"),
    ],
)
def test_a_table_that_cannot_be_understood_is_one_sentence(root: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(root, *lines)


def test_a_folder_without_images_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="found no image below"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="found no folder"):
        read_folder(tmp_path / "nowhere")


def test_a_class_without_a_file_is_none(root: Path) -> None:
    columns = read(root, "file,label", "a.png,Normal", "d.gif,COVID", "gone.png,Tuberculosis")
    assert columns.label_names == ("COVID", "Normal")
    assert columns.labels[np.isin(columns.paths, ["a.png", "d.gif"])].tolist() == [1, 0]
