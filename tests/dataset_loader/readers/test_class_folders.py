"""One folder for each class, as torchvision's ImageFolder and public collections have them."""

from pathlib import Path

import pytest
from folders import touch

from dataset_loader.columns import UNLABELLED
from dataset_loader.readers.class_folders import by_folder, like_classes
from dataset_loader.readers.covid_dataset import read_covid
from dataset_loader.readers.folder_dataset import read_folder
from utils.config import UserError


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/1.png", "b/1.png"], [("a", ""), ("b", "")]),
        (["a/2019/1.png", "b/1.png"], [("a", ""), ("b", "")]),
        (["Train/a/1.png", "Val/a/1.png", "Test/b/1.png"], [("a", "train"), ("a", "val"), ("b", "test")]),
        (["training/a/1.png", "validation/b/1.png"], [("a", "train"), ("b", "val")]),
        (["train_set/a/images/1.png", "TestData/b/images/1.png"], [("a", "train"), ("b", "test")]),
        (["a/train/1.png", "b/test/1.png"], [("a", "train"), ("b", "test")]),
        (["train/a/1.png", "chest_xray/train/a/1.png", "1.png"], [("a", "train"), ("", ""), ("", "")]),
        (["a/images/1.png", "a/plots/1.png", "b/images/1.png", "c/1.png"], [("a", ""), ("", ""), ("b", ""), ("", "")]),
        (["a/1.png", "Unlabelled/1.png"], [("a", ""), ("", "")]),
    ],
)
def test_class_and_part_of_a_file(files: list[str], expected: list[tuple[str, str]]) -> None:
    found = by_folder(files, deep=True)
    assert list(zip(found.classes, found.parts, strict=True)) == expected


PARTED = [
    f"{part}/{name}/{n}.png" for part in ("train", "val", "test") for name in ("NORMAL", "SICK") for n in range(6)
]


def test_folders_give_labels_and_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = touch(tmp_path, *PARTED, "loose.png", "train/SICK/masks/1.png", "__MACOSX/train/SICK/1.png")
    columns = read_folder(root, "folders")
    assert columns.label_names == ("NORMAL", "SICK")
    assert "1 (loose.png) in no class folder, so without a label" in capsys.readouterr().err
    assert columns.paths[columns.named_parts == UNLABELLED].tolist() == ["loose.png"]
    assert columns.masks[columns.paths == "train/SICK/1.png"].tolist() == ["train/SICK/masks/1.png"]
    labelled = columns.labelled()
    assert labelled.named_parts.tolist() == [path.split("/")[0] for path in labelled.paths]
    assert [columns.label_names[k] for k in labelled.labels] == [path.split("/")[1] for path in labelled.paths]
    covid = read_covid(root)
    assert (
        covid.paths.tolist() == labelled.paths.tolist() and covid.named_parts.tolist() == labelled.named_parts.tolist()
    )
    assert covid.groups.tolist() == covid.paths.tolist()
    assert "1 (loose.png) in no class folder, left out" in capsys.readouterr().err


def test_folders_that_look_like_classes_are_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = touch(tmp_path / "set", *PARTED, *(f"copy/{file}" for file in PARTED))
    assert len(read_folder(root)) == 72
    assert "(NORMAL 18, SICK 18): --labels folders reads them" in capsys.readouterr().err
    assert len(read_folder(tmp_path)) == 72
    assert f"In {root}, the folders look like classes (NORMAL 18" in capsys.readouterr().err
    (root / "labels.csv").write_text("file,label\ntrain/SICK/1.png,a\ntrain/SICK/2.png,b\n")
    assert read_folder(root).label_names == ("a", "b")
    assert read_folder(root, "folders").label_names == ("NORMAL", "SICK")
    assert "labels.csv is not read, as folders are the classes" in capsys.readouterr().err


def test_folders_that_look_alike_are_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / "train", "Normal/1.png", "Normal/2.png", "SICK/1.png")
    touch(tmp_path / "test", "NORMAL /1.png", "SICK/1.png")
    for columns in (read_folder(tmp_path, "folders"), read_covid(tmp_path)):
        assert columns.label_names == ("Normal", "SICK") and columns.labels.tolist() == [0, 1, 0, 0, 1]
    assert capsys.readouterr().err.count("'NORMAL ' (1) read as the class 'Normal'") == 2


@pytest.mark.parametrize("names", [("2019", "2020"), ("p01", "p02"), ("only",), ("IM1", "IM2"), ("images", "boxes")])
def test_folders_of_years_and_patients_are_not(names: tuple[str, ...]) -> None:
    assert like_classes([f"{name}/{n}.png" for name in names for n in range(9)]) == {}


@pytest.mark.parametrize(
    ("root", "files", "message"),
    [
        ("x", ["1.png"], "no class folder with images"),
        ("x", ["a/1.png"], "only the class 'a'"),
        ("x", ["a/1.png", "b/1.png", "c/images/.DS_Store"], "c holds no images"),
        ("x", ["set/train/a/1.png", "set/train/b/1.png", "zz/1.png"], "inside 'set'.*did you mean {}/set\\?"),
        ("x", ["p/set/a/images/1.png", "p/set/b/images/1.png", "q/1.png"], "did you mean {}/p/set\\?"),
        ("x/a", ["a/1.png", "b/1.png"], "no class folder.*did you mean {}\\?"),
        ("x/a", ["a/images/1.png", "b/images/1.png"], "inside 'images'|only the class 'images'.*did you mean {}\\?"),
    ],
)
def test_what_is_no_set_of_classes_says_what_is(tmp_path: Path, root: str, files: list[str], message: str) -> None:
    touch(tmp_path / "x", *files)
    with pytest.raises(UserError, match=message.format(tmp_path / "x")):
        read_folder(tmp_path / root, "folders")


@pytest.mark.parametrize(
    "junk",
    [
        *("__MACOSX/._a", "__MACOSX/a/images/1.png", ".ipynb_checkpoints/1.png", "@eaDir/1.png", "lost+found/.x"),
        *("$RECYCLE.BIN/$R1.png", "System Volume Information/x", "a/Thumbs.db", "desktop.ini", "b/@eaDir/1.png"),
        *("b/.ipynb_checkpoints/1.png", "from a Mac/._1.png", "b/.DS_Store", "a/images.txt"),
    ],
)
def test_what_systems_leave_behind_is_no_class(tmp_path: Path, junk: str) -> None:
    root = touch(tmp_path, "a/1.png", "b/1.png", junk)
    for columns in (read_covid(root), read_folder(root, "folders"), read_folder(root)):
        assert columns.paths.tolist() == ["a/1.png", "b/1.png"]
    assert read_covid(root).label_names == ("a", "b")
