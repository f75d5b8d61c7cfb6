"""The built-in synthetic X-rays: layouts of the real data, from a seed, whole or absent; copies only where planted."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from data_config import data_config, opened
from folders import touch
from PIL import Image

from dataset_loader.phantoms import dataset
from dataset_loader.phantoms.dataset import SOURCES, draw, ensure_chexpert_phantoms, ensure_phantoms
from dataset_loader.phantoms.film import MARKER_SHARE
from dataset_loader.phantoms.plans import CLASS_SHARES, MARKED_CLASS, XRay, class_counts
from dataset_loader.phantoms.signs import SIGNS
from dataset_loader.readers.chexpert_dataset import FINDINGS, read_chexpert
from dataset_loader.readers.covid_dataset import read_covid
from dataset_loader.readers.folder_dataset import TABLE, read_folder
from dataset_loader.synthetic import RECORD
from dataset_loader.xrays import read_columns
from utils.config import UserError

SIZE = 64
CLASSES = tuple(CLASS_SHARES)
DEFAULT_FINDINGS = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
REQUEST: dict[str, Any] = {"images": 400, "size": SIZE, "seed": 5}


@pytest.fixture(scope="module")
def covid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_phantoms(tmp_path_factory.mktemp("phantoms"), **REQUEST)


@pytest.fixture(scope="module")
def chexpert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_chexpert_phantoms(tmp_path_factory.mktemp("phantoms"), patients=60, size=SIZE, seed=5)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_covid_layout_has_its_classes_and_a_mask_for_each_image(covid: Path) -> None:
    columns = read_covid(covid)
    assert columns.label_names == tuple(CLASS_SHARES)
    assert np.bincount(columns.labels).tolist() == list(class_counts(400).values()) == [80, 100, 160, 60]
    for name, mask_name in zip(columns.paths[::17], columns.masks[::17], strict=True):
        assert read(columns.root / name).shape == read(columns.root / mask_name).shape == (SIZE, SIZE)
        assert set(np.unique(read(columns.root / mask_name))) == {0, 255}


def test_the_planted_copies_and_no_other_images_are_duplicates(covid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(covid / TABLE, keep_default_na=False)
    copies = table[table["copy_of"] != ""]
    assert len(table) == 400 and 4 <= len(copies) <= 8
    shares = [(table["part"] == part).mean() for part in ("train", "val", "test")]
    assert np.allclose(shares, [0.5, 0.25, 0.25], atol=0.02)
    for layout in ("covid", "folder"):  # with drawn parts, and with those of the table
        xrays = opened(layout, covid)
        found = xrays.duplicates
        pairs = {frozenset(pair) for pair in zip(found["file"], found["other"], strict=True)}
        assert pairs == {frozenset(pair) for pair in zip(copies["file"], copies["copy_of"], strict=True)}
        assert len(np.unique(xrays.columns.groups)) == 400 - len(copies)  # everybody else is on one image
        part = dict(zip(xrays.columns.paths, xrays.parts, strict=True))
        assert all(part[file] == part[other] for file, other in zip(found["file"], found["other"], strict=True))
    said = capsys.readouterr().err
    assert "too good" not in said and "more images join" not in said  # no warning of a leak
    copy, original = next(zip(copies["file"], copies["copy_of"], strict=True))
    assert not np.array_equal(read(covid / copy), read(covid / original))


def test_masks_lie_on_dark_lungs(covid: Path) -> None:
    for path in sorted((covid / "Normal" / "masks").iterdir())[:60]:
        mask = read(path) > 0
        image = read(path.parent.parent / "images" / path.name).astype(float)
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        between = image[box][~mask[box]]  # heart, spine, chest wall, diaphragm
        assert 0.08 < mask.mean() < 0.6
        assert np.median(image[mask]) < np.median(between)
        halves = mask[:, : SIZE // 2].sum(), mask[:, SIZE // 2 :].sum()
        assert min(halves) > 0.15 * sum(halves)


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_grows_with_its_severity_and_shows_in_the_lungs(name: str) -> None:
    def drawn(severity: float) -> tuple[np.ndarray, np.ndarray]:
        xrays = [XRay("", (n, 0), (n, 1), (n, 2), {name: severity} if severity else {}) for n in range(12)]
        pictures, lungs = draw(xrays, (SIZE, SIZE))
        return pictures.astype(float), lungs

    def change(severity: float) -> np.ndarray:
        return np.abs(drawn(severity)[0] - healthy)

    healthy, lungs = drawn(0.0)
    faint, plain = change(0.3), change(1.0)
    assert 0.5 < faint[lungs].mean() < plain[lungs].mean()
    assert plain[lungs].mean() > 2 * plain[~lungs].mean()


def test_chexpert_layout_groups_studies_by_patient_and_has_every_kind_of_label(chexpert: Path) -> None:
    columns = read_chexpert(chexpert)
    assert len(np.unique(columns.groups)) == 60 and len(columns) > 1.3 * 60
    assert all(read(columns.root / name).shape == (SIZE, round(1.2 * SIZE)) for name in columns.paths[::9])
    values = columns.labels[:, [FINDINGS.index(name) for name in DEFAULT_FINDINGS]]
    assert np.isnan(values).any() and {-1, 0, 1} <= set(np.unique(values[~np.isnan(values)]))
    assert ((values == 1).sum(0) >= 5).all()
    assert not (chexpert.parent / dataset.COVID_ROOT).exists()  # one layout is drawn without the other


def test_pixels_depend_on_the_seed_alone(covid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = hashes(covid)
    monkeypatch.setattr(dataset, "usable_cores", lambda: 1)
    again = hashes(ensure_phantoms(tmp_path / "again", **REQUEST))
    assert again == found
    images = [digest for name, digest in found.items() if "images/" in name]
    assert len(set(images)) == 400  # no two pictures are the same
    other = hashes(ensure_phantoms(tmp_path / "other", images=40, size=SIZE, seed=6))
    assert not set(images) & set(other.values())


def test_unlabelled_images_show_other_people_but_for_planted_copies_of_held_out_ones(tmp_path: Path) -> None:
    root = ensure_phantoms(tmp_path, images=80, unlabelled=200, size=SIZE, seed=5)
    columns = read_folder(root)
    labelled, unlabelled = columns.labelled(), columns.labelled(False)
    assert np.bincount(labelled.labels).tolist() == list(class_counts(80).values())
    assert all(path.startswith(f"{CLASSES[k]}/") for path, k in zip(labelled.paths, labelled.labels, strict=True))
    assert all((root / mask).is_file() for mask in labelled.masks)
    assert len(unlabelled) == 202 and all(path.startswith("Unlabelled/") for path in unlabelled.paths)
    (also,) = opened("folder", root, []).also
    table = pd.read_csv(root / TABLE, keep_default_na=False)
    copies = table[(table["copy_of"] != "") & (table["label"] == "")]
    left_out = set(zip(also.left_out["file"], also.left_out["other"], strict=True))
    assert left_out == set(zip(copies["file"], copies["copy_of"], strict=True))
    assert len(also) == 200 and len(left_out) == 2


def test_a_second_call_draws_nothing_and_another_request_is_refused(
    covid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "draw", lambda *_: pytest.fail("drawn again"))
    before = hashes(covid)
    assert ensure_phantoms(covid.parent, **REQUEST) == covid
    others = {"seed": 6, "images": 401, "size": 128, "planted_marker": True, "unlabelled": 8}
    for key, value in others.items():
        with pytest.raises(UserError, match=f"{key}.*another folder"):
            ensure_phantoms(covid.parent, **(REQUEST | {key: value}))
    assert hashes(covid) == before


@pytest.mark.parametrize(
    ("files", "guess"),
    [
        (["thesis.txt"], "choose an empty or new folder"),
        ([f"{dataset.COVID_ROOT}/thesis.txt"], "choose an empty or new folder"),
        (["labels.csv", "a.png"], "did you mean --dataset folder\\?"),
        (["2019/a.png"], "did you mean --dataset folder\\?"),
        ([f"{dataset.COVID_ROOT}/{name}/images/1.png" for name in "ab"], "did you mean --dataset folder"),
        (["COVID/images/a.png", "Normal/images/a.png"], "did you mean --dataset covid\\?"),
        ([f"train/{k}/{n}.png" for k in ("NORMAL", "SICK") for n in range(5)], "--dataset folder --labels folders"),
        (["train.csv", "train/p1/study1/view1.jpg"], "did you mean --dataset chexpert\\?"),
        (["batch 1/train.csv"], "did you mean --dataset chexpert\\?"),
        (["Data_Entry_2017_v2020.csv", "images/1.png"], "did you mean --dataset nih\\?"),
    ],
)
def test_nothing_is_drawn_beside_a_persons_files(tmp_path: Path, files: list[str], guess: str) -> None:
    touch(tmp_path, *files)
    before = sorted(tmp_path.rglob("*"))
    for name in ("phantom", "phantom_marker", "phantom_chexpert"):
        with pytest.raises(UserError, match=guess) as refused:
            read_columns(data_config(dataset=name, data_root=str(tmp_path)))
        assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_phantoms_among_ones_own_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ensure_phantoms(tmp_path, images=40, size=SIZE)
    touch(tmp_path, "notes.txt")
    assert ensure_phantoms(tmp_path, images=40, size=SIZE) == root
    touch(tmp_path, "films/a.png")
    assert read_folder(tmp_path).paths.tolist() == ["films/a.png"]
    told = capsys.readouterr().err
    assert f"40 of the 41 images below {tmp_path} are synthetic" in told and str(root) in told
    with pytest.raises(UserError, match="did you mean --dataset folder"):
        ensure_phantoms(tmp_path, images=40, size=SIZE)


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(dataset, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_phantoms(tmp_path, images=40, size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == [f".{dataset.COVID_ROOT}.lock"]
    stale = tmp_path / f".{dataset.COVID_ROOT}.partial" / "COVID" / "images" / "COVID-99.png"
    stale.parent.mkdir(parents=True)  # as a killed process leaves it
    stale.write_bytes(b"half an image")
    root = ensure_phantoms(tmp_path, images=40, size=SIZE)
    assert len(list(root.glob("*/images/*.png"))) == 40
    assert (root / RECORD).exists()


def test_a_planted_marker_follows_the_class_and_is_the_only_change(covid: Path, tmp_path: Path) -> None:
    planted = ensure_phantoms(tmp_path, **REQUEST, planted_marker=True)
    table = pd.read_csv(planted / SOURCES)
    extent = round(MARKER_SHARE * SIZE)
    for name, source in zip(table["file"], table["source"], strict=True):
        rows, cols = np.nonzero(read(planted / name) != read(covid / name))
        assert bool(len(rows)) == (source == "marked")
        assert not len(rows) or (rows.min() >= SIZE - extent - 2 and cols.max() < extent + 2)
    marked = (table["source"] == "marked").to_numpy()
    of_class = table["file"].str.startswith(f"{MARKED_CLASS}/").to_numpy()
    assert marked[of_class].mean() > 0.8
    assert marked[~of_class].mean() < 0.15
    assert not (covid / SOURCES).exists()
