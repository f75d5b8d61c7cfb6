"""The built-in synthetic X-rays: two trees in the layouts of the real data, from a seed, whole or absent."""

import csv
import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset_loader.chexpert_dataset import read_chexpert
from dataset_loader.covid_dataset import read_covid
from dataset_loader.phantoms import dataset as phantom_dataset
from dataset_loader.phantoms.anatomy import Anatomy, Chest, Pose
from dataset_loader.phantoms.dataset import CovidImage, class_counts, ensure_phantoms
from dataset_loader.phantoms.patients import consensus, plan_patient, report
from dataset_loader.phantoms.signs import SIGNS, Findings
from dataset_loader.phantoms.views import MARKER_SHARE
from utils.config import UserError

SIZE = 96
REQUEST: dict[str, Any] = {"covid_images": 60, "chexpert_patients": 40, "size": SIZE, "seed": 5}
CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,"
    "Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,"
    "Fracture,Support Devices"
)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "phantom"
    ensure_phantoms(folder, **REQUEST)
    return folder


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def table(folder: Path, part: str) -> list[dict[str, str]]:
    with (folder / "CheXpert-v1.0-small" / f"{part}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_covid_tree_has_the_layout_the_imbalance_and_a_mask_an_image(phantoms: Path) -> None:
    columns = read_covid(phantoms / "COVID-19_Radiography_Dataset")
    assert columns.label_names == ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    assert np.bincount(columns.labels).tolist() == [10, 17, 29, 4]  # 3616, 6012, 10192, 1345 of 21165
    assert all(mask is not None for mask in columns.masks)
    for name, mask_name in zip(columns.paths[::7], columns.masks[::7], strict=True):
        assert read(columns.root / name).shape == (SIZE, SIZE)
        assert set(np.unique(read(columns.root / mask_name))) == {0, 255}


@pytest.mark.parametrize("total", [4, 5, 11, 24, 300, 2000, 21165])
def test_class_counts_add_up_and_leave_no_class_empty(total: int) -> None:
    counts = class_counts(total)
    assert sum(counts.values()) == total
    assert min(counts.values()) >= 1
    if total == 21165:
        assert counts == phantom_dataset.CLASS_SIZES


def test_chexpert_tree_lists_every_image_under_the_real_header(phantoms: Path) -> None:
    header = (phantoms / "CheXpert-v1.0-small" / "train.csv").read_text().splitlines()[0]
    assert header == CHEXPERT_HEADER
    listed = {row["Path"] for part in ("train", "valid") for row in table(phantoms, part)}
    on_disk = {path.relative_to(phantoms).as_posix() for path in phantoms.rglob("*.jpg")}
    assert listed == on_disk
    shapes = {read(phantoms / path).shape for path in sorted(listed)[:30]}
    assert shapes == {(96, 115), (115, 96)}
    frontal = read_chexpert(phantoms / "CheXpert-v1.0-small")
    assert 0 < len(frontal) < len(listed)


def test_header_is_that_of_the_real_table() -> None:
    real = Path(os.environ.get("CXR_DATA", "")) / "chexpert_labels" / "train.csv.gz"
    if "CXR_DATA" not in os.environ or not real.exists():
        pytest.skip("CXR_DATA does not point at the real label table")
    with gzip.open(real, "rt") as file:
        assert file.readline().strip() == CHEXPERT_HEADER


def test_patients_have_studies_lateral_views_and_unsure_labels(phantoms: Path) -> None:
    rows = table(phantoms, "train")
    studies = {row["Path"].rsplit("/", 1)[0] for row in rows}
    patients = {study.rsplit("/", 1)[0] for study in studies}
    assert len(patients) == 36
    assert len(studies) > 1.3 * len(patients)
    lateral = [row for row in rows if row["Frontal/Lateral"] == "Lateral"]
    assert 0.1 < len(lateral) / len(rows) < 0.4
    assert all(row["AP/PA"] == "" and row["Path"].endswith("_lateral.jpg") for row in lateral)
    assert {row["AP/PA"] for row in rows if row["Frontal/Lateral"] == "Frontal"} == {"AP", "PA"}
    labels = {row[name] for row in rows for name in CHEXPERT_HEADER.split(",")[5:]}
    assert labels == {"1.0", "0.0", "-1.0", ""}
    agreed = {row[name] for row in table(phantoms, "valid") for name in CHEXPERT_HEADER.split(",")[5:]}
    assert agreed == {"1.0", "0.0"}


def test_patient_keeps_the_anatomy_and_changes_the_pose() -> None:
    views = max((plan_patient(0, number, "train", SIZE, "root") for number in range(1, 12)), key=len)
    assert len(views) >= 3
    assert len({view.anatomy for view in views}) == 1
    assert len({view.pose for view in views}) == len(views)


def test_labels_say_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    plain = [report({"Edema": 0.9}, rng) for _ in range(200)]
    faint = [report({"Edema": 0.1}, rng) for _ in range(200)]
    absent = [report({"Support Devices": 1.0}, rng) for _ in range(200)]
    assert np.mean([labels["Edema"] == 1 for labels in plain]) > 0.8
    assert np.mean([labels["Edema"] == -1 for labels in faint]) > 0.4
    assert {labels["Edema"] for labels in absent} == {None, 0.0}
    assert all(labels["No Finding"] is None for labels in plain)
    assert all(labels["No Finding"] == 1 for labels in absent)
    agreed = consensus({"Edema": 0.1})
    assert {name for name, value in agreed.items() if value == 1} == {"Edema", "Lung Opacity"}


def test_masks_lie_on_dark_lungs(phantoms: Path) -> None:
    for path in sorted((phantoms / "COVID-19_Radiography_Dataset" / "Normal" / "masks").iterdir()):
        mask = read(path) > 0
        image = read(path.parent.parent / "images" / path.name).astype(float)
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        between = image[box][~mask[box]]  # heart, spine, chest wall, diaphragm
        assert 0.12 < mask.mean() < 0.5
        assert image[mask].mean() < between.mean() - 20
        halves = mask[:, : SIZE // 2].sum(), mask[:, SIZE // 2 :].sum()
        assert min(halves) > 0.25 * sum(halves)


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_grows_with_its_severity_within_the_lungs(name: str) -> None:
    def amount(severity: float) -> float:
        total = 0.0
        for seed in range(6):
            rng = np.random.default_rng(seed)
            chest = Chest(Anatomy.draw(rng), Pose.draw(rng), (SIZE, SIZE), rng)
            signs = Findings(chest, rng)
            SIGNS[name](signs, severity)
            changed = np.abs(signs.fluid) + np.abs(signs.lines) + np.abs(1 - signs.vessels)
            total += float((changed * chest.lung).sum() / chest.lung.sum())
        return total

    assert 0 < amount(0.1) < 0.8 * amount(0.9)


def test_brightness_tells_no_class(phantoms: Path) -> None:
    root = phantoms / "COVID-19_Radiography_Dataset"
    means = {name: [read(p).mean() for p in (root / name / "images").iterdir()] for name in class_counts(60)}
    spread = np.std(means["Normal"])
    assert all(abs(np.mean(values) - np.mean(means["Normal"])) < spread for values in means.values())


def test_pixels_depend_on_seed_and_index_alone(phantoms: Path, tmp_path: Path) -> None:
    found = hashes(phantoms)
    ensure_phantoms(tmp_path / "two", **REQUEST, workers=2)
    assert hashes(tmp_path / "two") == found
    CovidImage("COVID", 3, SIZE, 5, planted_marker=False).save(tmp_path)
    CovidImage("COVID", 3, SIZE, 6, planted_marker=False).save(tmp_path / "other")
    alone, other = (read(f / "COVID/images/COVID-3.png") for f in (tmp_path, tmp_path / "other"))
    image = phantoms / "COVID-19_Radiography_Dataset/COVID/images/COVID-3.png"
    assert np.array_equal(alone, read(image))
    assert not np.array_equal(alone, other)
    assert len(set(found.values())) == len(found)  # no two pictures or tables are the same


def test_second_call_draws_nothing(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom_dataset, "_draw_trees", lambda *_: pytest.fail("drawn again"))
    covid, chexpert = ensure_phantoms(phantoms, **REQUEST)
    assert covid == phantoms / "COVID-19_Radiography_Dataset"
    assert chexpert == phantoms / "CheXpert-v1.0-small"


@pytest.mark.parametrize("change", [{"seed": 6}, {"covid_images": 61}, {"size": 128}, {"planted_marker": True}])
def test_another_request_is_refused_and_changes_nothing(phantoms: Path, change: dict[str, Any]) -> None:
    before = hashes(phantoms)
    with pytest.raises(UserError, match=f"{next(iter(change))}.*another folder"):
        ensure_phantoms(phantoms, **(REQUEST | change))
    assert hashes(phantoms) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds no finished phantoms"):
        ensure_phantoms(tmp_path / "mine", **REQUEST)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("change", [{"covid_images": 3}, {"chexpert_patients": 1}, {"size": 16}, {"seed": -1}], ids=str)
def test_senseless_requests_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="at least"):
        ensure_phantoms(tmp_path / "phantom", **(REQUEST | change))


def test_an_interrupted_write_leaves_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[str, Any] = {"covid_images": 6, "chexpert_patients": 2, "size": 64}
    save, folder = CovidImage.save, tmp_path / "phantom"

    def save_until_interrupted(image: CovidImage, root: Path) -> None:
        if image.name == "Normal":
            raise KeyboardInterrupt
        save(image, root)

    with monkeypatch.context() as patched:
        patched.setattr(CovidImage, "save", save_until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_phantoms(folder, **small)
    assert [path.name for path in tmp_path.iterdir()] == [".phantom.lock"]
    stale = tmp_path / ".phantom.partial" / "COVID-19_Radiography_Dataset" / "COVID" / "images" / "COVID-9.png"
    stale.parent.mkdir(parents=True)  # as a killed process leaves it
    stale.write_bytes(b"half an image")
    covid, _ = ensure_phantoms(folder, **small)
    assert len(list(covid.glob("*/images/*.png"))) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == [".phantom.lock", "phantom"]


def test_planted_marker_follows_the_class_and_is_the_only_change(phantoms: Path, tmp_path: Path) -> None:
    covid, _ = ensure_phantoms(tmp_path / "planted", **(REQUEST | {"planted_marker": True}))
    marked: dict[bool, list[bool]] = {True: [], False: []}  # by whether the class is COVID
    extent = round(MARKER_SHARE * SIZE)
    for path in sorted(covid.glob("*/images/*.png")):
        plain = phantoms / path.relative_to(tmp_path / "planted")
        changed = read(path) != read(plain)
        marked[path.parent.parent.name == "COVID"].append(bool(changed.any()))
        rows, cols = np.nonzero(changed)
        assert not changed.any() or (rows.min() >= SIZE - extent - 2 and cols.max() < extent + 2)
        assert not changed.any() or read(path)[changed].min() == 255
    assert np.mean(marked[True]) > 0.7
    assert np.mean(marked[False]) < 0.2


def test_a_script_without_a_main_guard_gets_its_phantoms(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from dataset_loader.phantoms.dataset import ensure_phantoms\n"
        f"folder = Path({str(tmp_path / 'phantom')!r})\n"
        "ensure_phantoms(folder, covid_images=30, chexpert_patients=2, size=64, workers=2)\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("phantom/*/*/images/*.png"))) == 30
