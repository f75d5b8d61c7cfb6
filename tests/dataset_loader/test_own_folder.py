"""A person's own folder through the one door to data: what is labelled, what only pretraining takes."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_config import data_config
from data_config import opened as open_data
from folders import touch
from PIL import Image, ImageEnhance
from radiographs import write_radiograph

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.readers.folder_dataset import read_folder
from downstream_task.shared_keys import TARGETS
from downstream_task.targets import TargetConfig, predictions_table, read_targets
from utils.config import REPO_ROOT, UserError, make_config

opened = partial(open_data, "folder")


@pytest.fixture
def own(tmp_path: Path, phantoms: Path) -> Path:
    """60 images; 40 have a class and a part, the first a darker copy without a label."""
    files = sorted((phantoms / COVID_ROOT).rglob("images/*.png"))[::4]
    rows = []
    for number, file in enumerate(files):
        shutil.copy(file, tmp_path / f"{number:02d}.png")
        part = "test" if number < 5 else "val" if number < 10 else "train"
        rows.append((f"{number:02d}.png", "ab"[number % 2], part))
    with Image.open(files[0]) as image:
        ImageEnhance.Brightness(image.convert("L")).enhance(0.8).save(tmp_path / "copy.png")
    pd.DataFrame(rows[:40], columns=["file", "label", "part"]).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def test_labelled_images_alone_or_with_the_others(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, pretrained = opened(own), opened(own, [])
    assert len(alone) == len(pretrained) == 40 and alone.split_hash == pretrained.split_hash
    assert alone.columns.paths[alone.parts == "test"].tolist() == [f"{number:02d}.png" for number in range(5)]
    assert (alone.parts == "val").sum() == 5 and (alone.of_fold(4).parts == alone.parts).all()
    assert len(alone.pretraining_indices("train")) == 30
    (others,) = pretrained.also
    assert others.paths.tolist() == [f"{number:02d}.png" for number in range(40, 60)]
    assert others.left_out[["file", "other"]].to_numpy().tolist() == [["copy.png", "00.png"]]
    assert "its images without a label: 20 X-rays; 1 near-duplicates of held-out images" in capsys.readouterr().err
    rows = pretrained.pretraining_indices("train")
    assert len(rows) == 50
    with Image.open(own / "59.png") as image:
        wanted = np.asarray(image.convert("L"), dtype=float).mean()
    assert pretrained.batch(torch.from_numpy(rows[-1:])).float().mean().item() == pytest.approx(wanted, abs=2)


def test_what_any_fold_of_a_comparison_holds_out_has_no_copy_among_the_others(own: Path) -> None:
    table = pd.read_csv(own / "labels.csv")
    table.drop(columns="part").to_csv(own / "labels.csv", index=False)
    alone = opened(own)
    place = alone.places[alone.columns.paths == "00.png"][0]  # copy.png shows it, brighter
    other, its = (0, [1, 2]) if place == "val" else ((int(place) + 1) % 5, [(int(place) + 1) % 5, int(place)])
    assert len(opened(own, [], its).also[0]) == 20
    assert len(opened(own, [], [other]).also[0]) == (20 if place == "val" else 21)


def test_films_without_a_row_or_a_study_have_a_blank_one(own: Path) -> None:
    table = pd.read_csv(own / "labels.csv").assign(patient=[f"p{number // 2}" for number in range(40)], study="s1")
    table.loc[3, "study"] = ""
    table.to_csv(own / "labels.csv", index=False)
    xrays = opened(own, [])
    visits = xrays.visits()
    assert len(visits) == 60 and visits[0] == visits[1] and visits[2] != visits[3]
    targets = read_targets(xrays, make_config(TargetConfig, {**TARGETS, "findings": []}))
    written = predictions_table(xrays, targets, np.arange(4), np.ones((4, 2)), {})
    assert written["study"].tolist() == ["s1", "s1", "s1", ""]


def test_a_run_lists_what_the_reader_left_out(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(own / "labels.csv").assign(view="PA")
    table.loc[39, "view"] = "LL"
    table.loc[0, "label"] = ""  # of the test part
    table.to_csv(own / "labels.csv", index=False)
    xrays = opened(own)
    xrays.write_split(own)
    assert len(xrays) == 38
    assert "1 images of the named validation or test part left out" in capsys.readouterr().err
    assert pd.read_csv(own / "left_out.csv").to_numpy().tolist() == [
        ["00.png", "validation or test image without a label"],
        ["39.png", "lateral view"],
    ]


def test_other_images_of_held_out_patients_are_not_taken(own: Path) -> None:
    table = pd.read_csv(own / "labels.csv").assign(patient="")
    table["patient"] = [f"p{number}" for number in range(40)]
    more = pd.DataFrame({"file": ["50.png", "51.png"], "patient": ["p0", "p39"]})  # of test, of train
    pd.concat([table, more]).to_csv(own / "labels.csv", index=False)
    (others,) = opened(own, []).also
    assert "50.png" not in others.paths and "51.png" in others.paths
    assert ["50.png", "p0"] in others.left_out[["file", "other"]].to_numpy().tolist()


@pytest.fixture
def clinic(own: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The films as DICOM, two of each of 20 patients in a table that has lost the zeros of their ids, 1 to 5 held out.

    One is a PNG. 20 more films show patients 1 to 10, one here and one in an archive.
    """
    archive = tmp_path_factory.mktemp("archive")
    table = pd.read_csv(own / "labels.csv")
    for number in [*range(39), *range(40, 60)]:
        file = own / f"{number:02d}.png"
        with Image.open(file) as image:
            gray = np.asarray(image.convert("L"))
        place = (archive if number >= 40 and number % 2 else own) / f"{number:02d}.dcm"
        write_radiograph(place, gray, bits=8, PatientID=f"00{number % 40 // 2 + 1}")
        file.unlink()
    (own / "copy.png").unlink()
    table.loc[:38, "file"] = table["file"].str.replace("png", "dcm")
    table.assign(**{"Patient ID": table.index // 2 + 1}).to_csv(own / "labels.csv", index=False)
    return own, archive


@pytest.mark.parametrize("prefix", ["", "P"])
def test_more_films_of_held_out_patients_are_not_pretrained_on(clinic: tuple[Path, Path], prefix: str) -> None:
    """Ids without their zeros, or pseudonyms that only the films with both ids explain."""
    root, archive = clinic
    table = pd.read_csv(root / "labels.csv")
    table.assign(**{"Patient ID": [f"{prefix}{one}" for one in table["Patient ID"]]}).to_csv(root / "labels.csv")
    xrays = opened(root, [str(archive)])
    assert len(set(xrays.columns.details["patient"])) == 20
    taken = sorted(int(path[:2]) for also in xrays.also for path in also.paths)
    assert taken == list(range(50, 60))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("train", "1 images of the named train part share a patient or a film"),
        ("", "1 more images join the test and val images that the source names"),
    ],
)
def test_copies_of_named_test_images_are_said(
    own: Path, part: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (own / "labels.csv").open("a") as file:
        file.write(f"copy.png,a,{part}\n")
    parts = opened(own).parts.tolist()
    assert len(parts) == 41 and (parts.count("test") == 6 or part == "train")
    assert said in capsys.readouterr().err


def test_without_labels_everything_is_trained_on_and_nothing_is_learned_from_labels(own: Path) -> None:
    (own / "labels.csv").unlink()
    xrays = opened(own, [])
    assert len(xrays.pretraining_indices("train")) == len(opened(own)) == 61
    with pytest.raises(UserError, match=f"nothing is labelled in {own}, .* labels.csv"):
        read_targets(xrays, SimpleNamespace(findings=["Edema"], uncertain="ignore", blank="zero"))  # type: ignore[arg-type]


def test_what_cannot_be_learnt_without_labels_offers_folders_that_are_classes(tmp_path: Path) -> None:
    files = [f"set/{name}/{n}.png" for name in ("NORMAL", "SICK") for n in range(5)]
    xrays: Any = SimpleNamespace(columns=read_folder(touch(tmp_path, *files)))
    config: Any = SimpleNamespace(findings=[], uncertain="ignore", blank="zero")
    with pytest.raises(UserError, match=rf"In {tmp_path}/set, .*\(NORMAL 5, SICK 5\): --labels folders reads them"):
        read_targets(xrays, config)


def test_a_folder_must_be_named() -> None:
    with pytest.raises(UserError, match="--data-root DIR"):
        data_config(dataset="folder", data_root="", store_res=0, img_res=32)


def test_the_example_of_the_readme_is_read(tmp_path: Path) -> None:
    page = (REPO_ROOT / "datasets" / "README.md").read_text(encoding="utf-8")
    lines = [line for line in page[page.index("| file | label") :].split("\n\n")[0].splitlines() if "---" not in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(rows) == 11
    for row in rows[1:]:
        path = tmp_path / row[0]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM" if path.name == "IM0001" else b"")
    (tmp_path / "labels.csv").write_text("\n".join(",".join(row) for row in rows))
    columns = read_folder(tmp_path)
    assert len(columns) == 10 and len(columns.labelled()) == 9
    assert columns.label_names == ("healthy", "oedema")
    assert columns.details.columns.tolist() == ["sex", "age", "view", "ward"]


def test_a_folder_around_synthetic_xrays_is_synthetic(phantoms: Path, own: Path) -> None:
    assert opened(phantoms, []).synthetic and not opened(own).synthetic
