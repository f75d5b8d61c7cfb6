"""Any folder of images with a table, as radiologists write them and as they go wrong; nothing is lost silently."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import touch

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.readers.folder_dataset import read_folder
from utils.config import UserError

FILES = ("a.png", "deep/b.JPG", "deep/er/c (1).tif", "d.gif", "e.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images, a mask, and what is not an X-ray."""
    return touch(tmp_path, *FILES, "deep/masks/b.png", ".hidden.png", ".git/x.png", "notes.txt", "lungs/a.png")


def read(root: Path, *lines: str) -> Columns:
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return read_folder(root)


def test_without_a_table_everything_is_unlabelled(root: Path) -> None:
    columns = read_folder(root)
    assert columns.paths.tolist() == sorted([*FILES, "lungs/a.png"])
    assert columns.labels.shape == (6, 0) and columns.label_names == ()
    assert set(columns.named_parts) == {UNLABELLED}
    assert columns.groups.tolist() == columns.paths.tolist()
    assert len(columns.labelled()) == 6 and len(columns.labelled(False)) == 0


def test_links_odd_names_and_closed_folders_do_not_stop_the_rest(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(root, "scan.nii.gz", "deep/photo.HEIC", "closed/a.png", "#1.png", "#1.png#", "2.png~")
    (root / "PICT0001").write_bytes(b"\xff\xd8\xff\xe0")
    (root / "gone.png").symlink_to("/nowhere/gone.png")
    (root / "deep" / "up").symlink_to(root, target_is_directory=True)
    (root / "again").symlink_to(root / "lungs", target_is_directory=True)
    os.mkdir(os.fsencode(root) + b"/\xe9")
    for name in (b"/caf\xe9.png", b"/\xe9/a.png"):
        with open(os.fsencode(root) + name, "wb"):
            pass
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    paths = read_folder(root).paths.tolist()
    assert len(paths) == len(FILES) + 2, "lungs/a.png under one of its two names, and nothing below the link upwards"
    assert paths[0] == "#1.png"
    said = capsys.readouterr().err
    assert "left out 2 (caf?.png, ?), whose names are not UTF-8" in said
    assert "left out folders that cannot be read: 1" in said
    assert "left out 2 (deep/photo.HEIC, scan.nii.gz), of a kind that is not read" in said
    assert "left out 1 (gone.png), links to files that are not there" in said
    assert "left out 1 (PICT0001), PNG or JPEG without the suffix" in said


def test_classes_and_what_is_known_beside_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = read(
        root,
        "File,Label,patient,mask,sex,age,view,source,part,Ward,ICU",
        "./a.png,sick,p1,lungs/a.png,F,51,PA,Berlin,Test,W 3,1",
        'deep\\b.JPG,well,p2,,m,"7,5",AP,,valid,,0',
        f"{root}/deep/x/../er/c (1).tif,well,,none.png,Other,,,,train,,0",
        "d.gif,,p1,,,,,,,,",
        "gone.png,a class of no file,p3,,,,,,,,",
        "a.png,SICK ,p1,lungs/a.png,F,51,PA,Berlin,Test,W 3,1",
        "d.gif,,p1,,,,,,,,",
    )
    assert columns.label_names == ("sick", "well")
    read_as = zip(columns.paths, columns.labels, columns.named_parts, columns.groups, columns.masks, strict=True)
    assert list(read_as) == [
        ("a.png", 0, "test", "p1", "lungs/a.png"),
        ("d.gif", -1, UNLABELLED, "p1", None),
        ("deep/b.JPG", 1, "val", "p2", None),
        ("deep/er/c (1).tif", 1, "train", "deep/er/c (1).tif", None),
        ("e.png", -1, UNLABELLED, "e.png", None),
    ]
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
    assert "says the same in 2 more rows (line 7): read once" in said
    assert "3 labelled images, classes sick, well" in said


def test_findings_are_told_from_details(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a.png;1;-1;60;120;clear;case", "d.gif;0;;1;;;control", "e.png;;;0;90;0;case"]
    columns, nan = read(root, "file;Nodule;Effusion;Age;kVp;Comment;case", *lines), np.nan
    assert columns.label_names == ("Nodule", "Effusion")
    labelled = columns.labelled()
    assert labelled.paths.tolist() == ["a.png", "d.gif", "e.png"]  # a row of blanks is labelled: nothing mentioned
    np.testing.assert_array_equal(labelled.labels, np.array([[1, -1], [0, nan], [nan, nan]], dtype=np.float32))
    assert columns.details.columns.tolist() == ["age", "kVp", "Comment", "case"]
    assert len(set(columns.groups)) == len(columns)
    said = capsys.readouterr().err
    assert "findings Nodule, Effusion" in said
    assert "column 'case' is not read as 'patient': it holds 'case', 'control'" in said


def test_columns_as_other_people_call_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = read(
        root,
        "Image Index;Diagnosis;Patient ID;Gender;Age_years;View-Position;Dataset;Hospital;Scanner;smoker",
        "a.png;sick;p1;w;062J;p.a.;training;Mitte;X;yes",
        "deep/b;sick;p1;M;13 months;AP;Test;Nord;Y;no",
        "D.GIF;well;n/a;unbekannt;?;pa;test;Nord;X;no",
        "e.png;well;p2;2;51,5;;valid;Nord;X;yes",
    )
    assert columns.label_names == ("sick", "well")
    labelled = columns.labelled()
    assert labelled.paths.tolist() == ["a.png", "d.gif", "deep/b.JPG", "e.png"]
    assert labelled.groups.tolist() == ["p1", "d.gif", "p1", "p2"]
    assert labelled.named_parts.tolist() == ["train", "test", "test", "val"]
    details = labelled.details.astype(object).fillna("")
    assert details["sex"].tolist() == ["Female", "", "Male", "Female"]
    assert details["age"].tolist() == [62, "", 1.083, 51.5]
    assert details["view"].tolist() == ["PA", "PA", "AP", ""]
    assert details["source"].tolist() == ["Mitte", "Nord", "Nord", "Nord"]
    assert details["smoker"].tolist() == ["yes", "no", "no", "yes"]
    said = capsys.readouterr().err
    assert "reading 'Image Index' as file, 'Diagnosis' as label, 'Patient ID' as patient, 'Gender' as sex" in said
    assert "'Dataset' as part, 'Hospital' as source" in said
    assert "files found under another spelling or folder: 2 (deep/b for deep/b.JPG, D.GIF for d.gif)" in said
    assert "column 'sex': read as blank: 'unbekannt' (1)" in said
    assert "sex 1 is read as male, 2 as female" in said
    assert "other columns kept as details: Scanner, smoker" in said


def test_what_does_not_fit_or_looks_mistyped_is_a_warning(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = read(
        root,
        "file,Edema,TB,patinet,fold,position,dataset,mrn,Patient",
        "a.png,TRUE,yes,p1,0,3,Mitte,7,p8",
        "d.gif,FALSE,no,p1,1,4,Mitte,7,p9",
        "e.png,1,?,p2,2,3,Nord,8,p8",
    )
    assert columns.label_names == ("Edema", "TB")
    labelled = columns.labelled()
    np.testing.assert_array_equal(labelled.labels, np.array([[1, 1], [0, 0], [1, -1]], dtype=np.float32))
    assert labelled.groups.tolist() == ["p8", "p9", "p8"] and set(labelled.named_parts) == {""}
    assert labelled.details["source"].tolist() == ["Mitte", "Mitte", "Nord"]
    said = capsys.readouterr().err
    assert "column 'fold' is not read as 'part': it holds '0', '1', '2'" in said
    assert "column 'position' is not read as 'view'" in said
    assert "column 'mrn' is not read: 'Patient' is the patient" in said
    assert "findings are read as 1 for 'TRUE', 'yes'; 0 for 'FALSE', 'no'; -1 for '?'" in said
    assert "other columns kept as details: patinet, fold, position, mrn" in said
    mistyped = ["a.png,u,1,F,p1,0,0", "d.gif,v,0,M,p2,1,1", "e.png,v,0,M,p2,0,1"]
    columns = read(root, "file,lable,Mass,gendr,patinet,is_test,male", *mistyped)
    assert columns.label_names == ("Mass",)  # nor a mistyped mask; is_test and male are no findings
    said = capsys.readouterr().err
    for column, meant in {"lable": "label", "gendr": "sex", "patinet": "patient"}.items():
        assert f"column {column!r} is not read as {meant!r}, which may have been meant" in said
    for column, meant in {"is_test": "part", "male": "sex"}.items():
        assert f"column {column!r} is not read; if it tells the {meant}, write that as words" in said
    assert "'mask'" not in said


def test_class_names_that_look_equal_are_one_class(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / unicodedata.normalize("NFD", "Füße.png")).touch()
    columns = read(
        root, "file,label", "a.png,Tbc", "d.gif,tbc", "e.png,No\u00a0 \u200bfinding", "B.jpg,no  finding",
        "Füße.png,Tbc", "lungs/a.png,unknown", "deep/er/c (1).tif,none",
    )  # fmt: skip
    assert columns.label_names == ("No finding", "Tbc", "none")
    assert [sum(columns.labels == label) for label in (0, 1, 2)] == [2, 3, 1]
    said = capsys.readouterr().err
    assert "'tbc' (1) read as the class 'Tbc'" in said and "read as blank: 'unknown' (1)" in said
    lines = ["a.png,1", "d.gif,1.0", "e.png,SARS\u20112", "deep/b.JPG,SARS-2", "Füße.png,1+SARS-2", "lungs/a.png,1"]
    columns = read(root, "file,label", *lines)
    assert columns.label_names == ("1", "1+SARS-2", "SARS-2")
    assert "1 (1+SARS-2) join the names of several classes" in capsys.readouterr().err


def test_films_of_one_study_without_a_patient_are_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(root, "file,label,accession,patient", "a.png,x,7,", "d.gif,y,7,", "e.png,x,8,", "lungs/a.png,y,9,p")
    assert "labels.csv: 2 films share a study, but no patient is named" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["labels.xlsx", "Labels.ods", "labels.csv.gz", "label.csv"])
def test_labels_in_another_kind_of_file_are_refused(root: Path, name: str) -> None:
    (root / name).touch()
    with pytest.raises(UserError, match=f"holds {name}, but no labels.csv; save it as CSV"):
        read_folder(root)


def test_another_table_is_named_and_its_case_does_not_matter(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "films.xlsx").touch()
    read_folder(root)
    assert "has no labels.csv, so nothing is labelled; not read: 1 (films.xlsx)" in capsys.readouterr().err
    (root / "LABELS.CSV").write_text("file,label\na.png,x\ne.png,y\n")
    assert len(read_folder(root).labelled()) == 2


def test_lateral_films_are_left_out_and_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["file,label,view", "a.png,x,PA", "d.gif,x,Left lateral", "e.png,y,AP supine", "deep/b.JPG,y,swimmer"]
    columns = read(root, *lines, "lungs/a.png,y,L")
    assert set(columns.paths) == {"a.png", "e.png", "deep/b.JPG", "deep/er/c (1).tif"}
    said = capsys.readouterr().err
    assert "left out lateral films: 2 (d.gif, lungs/a.png); --laterals takes them all the same" in said
    assert "1 of 6 views are not understood: 'swimmer' (1)" in said
    assert len(read_folder(root, laterals=True)) == 6


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,class,diagnosis", "a.png,x,u", "e.png,y,v"], "several columns for 'label': 'class', 'diagnosis'"),
        (
            ["file,class,Edema,Mass", "a.png,x,1,0", "e.png,y,0,1"],
            "'class', which may be the label, and .* Edema, Mass",
        ),
        (["filename,label", "gone.png,x", "lost.png,y"], "no column 'file', but filename, label"),
        (["file,label,patient", "a.png,x,7.2E+05", "e.png,y,3"], "a spreadsheet has shortened the id"),
        (
            ["file,label", "a.png,x", "e.png,y", "a.png,y"],
            "about 'a.png': column 'label' holds 'x' in line 2 and 'y' in",
        ),
        (["file,label", "a.png,x", "./A.PNG,y"], "contradicts itself about 'a.png'"),
        (
            ["file,label,note", 'a.png,x,"5 cm', "d.gif,y,", 'e.png,x,7"'],
            "the row 'd.gif,y,' lies in a cell of another",
        ),
        (["file,label", "../a.png,x"], "line 2, column 'file', holds '../a.png'; expected a path below"),
        (["file,label", "/else/a.png,x"], "holds '/else/a.png'"),
        (["file,label", "C:\\x\\a.png,x"], "holds 'C:"),
        (["file,label", ",x"], "holds ''"),
        (["file,label,mask", "a.png,x,../m.png"], "column 'mask', holds"),
        (["file,label", "a.png,x"], "only the class 'x'"),
        (["file,label", "a.png,x", "gone.png,y"], r"only the class 'x' .* in the rows of files that exist \(1\)"),
        (["file,label"], "no class"),
        (["file,label", "a.png,clear lungs", "e.png,a nodule", "d.gif,scars"], "3 different labels for 3 images"),
        (["file,label", "u,x", "v,x", "w,y", "x,y"], "no row for any image .* names 'u', and there is 'a.png'"),
        (["file,label", "x,x", "b,y"], "names 'b', and there is 'deep/b.JPG'; .* with the folders below it"),
        (["file,label,part", "a.png,x,", "e.png,y,fold 1", "d.gif,x,", "deep/b.JPG,y,"], "holds 'fold 1' as 'part'"),
        (["file,Nodule", "a.png,big", "e.png,small"], "neither a column 'label' nor one for each finding"),
        (["file,Nodule", "a.png,1", "e.png,no", "d.gif,big"], "holds 'big' as 'Nodule' in line 4"),
        (["file,Nodule", "a.png,1", "e.png,0", "d.gif,x"], "holds 'x' as 'Nodule' in line 4"),
        (["file,Nodule", "a.png,1", "e.png,0", "d.gif,2"], "holds '2' as 'Nodule' in line 4"),
    ],
)
def test_a_table_that_cannot_be_understood_is_one_sentence(root: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(root, *lines)


def test_a_folder_without_images_is_one_sentence(tmp_path: Path) -> None:
    for root, said in ((touch(tmp_path, "notes.txt"), "found no image below"), (tmp_path / "x", "found no folder")):
        with pytest.raises(UserError, match=said):
            read_folder(root)
