"""Boxes: where they lie in what a network sees, what may be scored, and how maps score, against plain computations."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from finetuning_config import finetuning_config
from PIL import Image
from scipy.stats import t

from dataset_loader.decoding import decode_square
from dataset_loader.readers.nih_dataset import FINDINGS
from downstream_task import finetuning
from downstream_task.classifier import Classifier
from interpretability import grad_cam
from interpretability.boxes import (
    ALL,
    CHANCE,
    MEAN_BOX,
    POINTING,
    RATIO,
    box_scores,
    by_finding,
    find_boxes,
    mean_boxes,
    mean_intervals,
    region_masks,
)
from interpretability.pictures import Picture, coverage, pictures_of_boxes
from self_sup_classes.backbones import Backbone
from utils.config import UserError, make_config
from utils.logging_utils import Run

TABLE = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
PATIENTS = 24


def save(path: Path, size: tuple[int, int], spot: tuple[int, int, int, int] | None, seed: int = 0) -> None:
    """Write a noisy X-ray of (width, height), with a bright spot x, y, w, h in pixels of the file."""
    gray = np.random.default_rng(seed).integers(40, 120, size[::-1]).astype(np.uint8)
    if spot:
        x, y, w, h = spot
        gray[y : y + h, x : x + w] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gray).save(path)


def nih(root: Path, rows: list[tuple[str, str, int]], boxes: list[tuple[Any, ...]]) -> str:
    """Write both tables of images that are there, or not; return the boxes'."""
    lines = [f"{name},{finding},0,{patient},50,M,PA\n" for name, finding, patient in rows]
    (root / "Data_Entry_2017.csv").write_text(TABLE + "".join(lines))
    (root / "BBox_List_2017.csv").write_text(BOXES + "".join(f"{','.join(map(str, box))},,,\n" for box in boxes))
    return str(root / "BBox_List_2017.csv")


@pytest.mark.parametrize(
    ("size", "spot", "box"),
    [
        ((256, 256), (16, 100, 60, 20), (64, 400, 240, 80)),  # a small copy of the 1,024 px that boxes are measured in
        ((1024, 1024), (64, 400, 240, 80), (64, 400, 240, 80)),
    ],
)
def test_a_box_lies_where_its_pixels_are_seen(tmp_path: Path, size: Any, spot: Any, box: Any) -> None:
    save(tmp_path / "images" / "a.png", size, spot)
    films, _ = find_boxes(nih(tmp_path, [("a.png", "Nodule", 1)], [("a.png", "Nodule", *box)]), "", FINDINGS)
    picture = pictures_of_boxes(films.table)[0]
    side = min(size)
    seen = decode_square(picture.path, side) > 200
    np.testing.assert_array_equal(coverage(picture.boxes, side) > 0.5, seen)  # type: ignore[arg-type]  # it has boxes
    assert coverage(picture.boxes, 32).mean() == pytest.approx(seen.mean(), abs=1e-4)  # type: ignore[arg-type]
    whole = picture.region(picture.gray().shape)  # type: ignore[arg-type]
    assert whole is not None and (picture.gray()[whole] == 255).all() and whole.sum() == seen.sum()


def test_what_cannot_be_scored_is_counted_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "images" / "wide.png", (400, 200), None)
    save(tmp_path / "images" / "b.png", (128, 128), None)
    (tmp_path / "images" / "text.png").write_text("no image")
    boxes = [
        ("wide.png", "Mass", 80, 50, 80, 50),
        *[("b.png", "Mass", 900, 10, 200, 50), ("b.png", "Hernia", 1, 1, 9, 9), ("gone.png", "Mass", 1, 1, 9, 9)],
        *[("text.png", "Mass", 1, 1, 9, 9), ("b.jpg", "Infiltrate", 512, 0, 256, 512)],
    ]
    rows = [
        ("wide.png", "Mass", 1),
        ("b.png", "Mass|Infiltration", 2),
        ("gone.png", "Mass", 3),
        ("text.png", "Mass", 4),
    ]
    films, _ = find_boxes(nih(tmp_path, rows, boxes), "", ["Mass", "Infiltration"])
    assert films.left_out["kind"].tolist() == ["shape", "beyond", "finding", "missing", "broken"]
    assert films.table["label"].tolist() == ["Infiltration"]
    np.testing.assert_allclose(films.table[["left", "top", "right", "bottom"]].to_numpy(float), [[0.5, 0, 0.75, 0.5]])
    assert "pixels of the published 1024 x 1024 images" in capsys.readouterr().err


def pictures(count: int) -> list[Picture]:
    """Two findings in turn, three pictures of a patient, boxes with sides of a tenth or more."""
    low, size = np.random.default_rng(1).random((2, count, 2)) * [[[0.8]], [[1]]]
    boxes = np.concatenate([low, low + 0.1 + size * (0.9 - low)], axis=1)
    return [
        Picture(Path(f"{n}.png"), str(n), ("Mass", "Nodule")[n % 2], f"p{n // 3}", boxes=boxes[n : n + 1])
        for n in range(count)
    ]


def test_chance_has_the_boxs_share_of_the_area_and_a_map_that_knows_it_wins() -> None:
    several = pictures(12)
    masks = region_masks(several, 50)
    even, empty = box_scores(torch.full((12, 20, 20), 3.0), several), box_scores(torch.zeros(12, 9, 9), several)
    area = [(b[2] - b[0]) * (b[3] - b[1]) for picture in several if picture.boxes is not None for b in picture.boxes]
    for scores in (even, empty):
        np.testing.assert_allclose(scores[POINTING], area, rtol=1e-4)
        np.testing.assert_allclose(scores[RATIO], 1, rtol=1e-4)
    assert set(even["empty"]) == {False} and set(empty["empty"]) == {True}
    inside = box_scores(masks.floor() + 1e-9, several)
    np.testing.assert_allclose(inside[POINTING], 1, rtol=1e-4)
    np.testing.assert_allclose(inside[RATIO], 1 / inside["box_area"], rtol=1e-2)


def test_the_mean_box_is_of_the_findings_other_patients() -> None:
    several = [*pictures(9), Picture(Path("x"), "x", "Hernia", "p0", boxes=np.array([[0, 0, 0.5, 0.5]]))]
    masks = region_masks(several, 10)
    found = mean_boxes(masks, several)
    for n, picture in enumerate(several):
        others = [
            m for m, o in zip(masks, several, strict=True) if o.label == picture.label and o.group != picture.group
        ]
        expected = torch.stack(others).mean(0) if others else torch.ones(10, 10)
        torch.testing.assert_close(found[n], expected)


def test_means_and_paired_differences_with_their_intervals() -> None:
    generator, count = np.random.default_rng(0), 60
    values = generator.normal(2, 1, count).clip(0)
    kinds, groups = np.full(count, "Mass"), np.arange(count).astype(str)
    mean, low, high = mean_intervals({("a", ""): values}, kinds, groups)["a", ""]
    reach = t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * reach, rel=0.15) and low < mean < high
    doubled = mean_intervals({("a", ""): values.repeat(2)}, kinds.repeat(2), groups.repeat(2))["a", ""]
    assert doubled[2] - doubled[1] == pytest.approx(high - low, rel=0.1), "two boxes of a patient are not two patients"
    missed = mean_intervals({("a", ""): np.zeros(count)}, kinds, groups, shares=True)["a", ""]
    assert missed[0] == missed[1] == 0 and missed[2] == pytest.approx(1 - 0.025 ** (1 / count))
    nearly = {(name, ""): np.where(values > 1, 0, 0.01) for name in ("a", CHANCE)}  # no hit, some maps without evidence
    bounds = mean_intervals(nearly, kinds, groups, shares=True)
    assert bounds["a", ""][2] == pytest.approx(missed[2]) and bounds[CHANCE, ""][2] < 0.01

    several = pictures(30)
    tables = {
        "net": box_scores(torch.rand(30, 16, 16, generator=torch.Generator().manual_seed(0)), several),
        CHANCE: box_scores(torch.ones(30, 16, 16), several),
    }
    scores: Any = by_finding(tables, [CHANCE]).set_index(["finding", "quantity", "network", "minus"])
    for quantity in (POINTING, RATIO):
        gap: Any = tables["net"][quantity] - tables[CHANCE][quantity]
        of_finding = gap.groupby(tables["net"]["finding"]).mean()
        for finding, expected in {**of_finding, ALL: of_finding.mean()}.items():
            row = scores.loc[finding, quantity, "net", CHANCE]
            assert row["value"] == pytest.approx(expected) and row["low"] < row["value"] < row["high"]
            mine, chance = (scores.loc[finding, quantity, name, ""]["value"] for name in ("net", CHANCE))
            assert mine - chance == pytest.approx(row["value"])
    assert scores.loc[ALL].iloc[0][["boxes", "patients"]].tolist() == [30, 10]


@pytest.fixture
def spots(tmp_path: Path) -> str:
    """Films of PATIENTS, two each: one with a bright spot in a box of its own, called Nodule, and one without any."""
    generator, rows, boxes = np.random.default_rng(0), [], []
    for patient in range(1, PATIENTS + 1):
        x, y = (int(edge) for edge in generator.integers(0, 48, 2))
        for visit, spot in enumerate([(x, y, 16, 16), None]):
            name = f"{patient:08d}_{visit:03d}.png"
            save(tmp_path / "nih" / "images" / name, (64, 64), spot, seed=2 * patient + visit)
            rows.append((name, "No Finding" if visit else "Nodule", patient))
        boxes.append((rows[-2][0], "Nodule", 16 * x, 16 * y, 256, 256))
    return nih(tmp_path / "nih", rows, boxes)


@pytest.fixture
def score(name: str) -> Any:
    """main() with boxes and changes; its runs are this test's."""
    own = {**grad_cam.config, "run_name": f"{name}/boxes"}
    return lambda **changes: grad_cam.main(make_config(grad_cam.MapsConfig, {**own, **changes}))


def test_patients_of_the_training_are_left_out_and_maps_find_the_others_boxes(
    half_as_wide: None, spots: str, score: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finetuning_config(
        dataset="nih", data_root=str(Path(spots).parent), findings=["Nodule"], img_res=32, store_res=0, recipe="none",
        epochs=0, min_steps=60, head="zeros", backbone_lr_factor=1.0, val_share=0.3, run_name="net",
    )  # fmt: skip
    with mock.patch.object(finetuning, "Run", lambda name, config, kind: Run(name, config, kind, tmp_path / "runs")):
        trained = finetuning.finetune(config, show_progress=False)
    split = pd.read_csv(trained.folder / "split.csv", dtype=str)
    held_out = set(split.loc[split["part"] != "train", "group"])
    assert 5 <= len(held_out) < PATIENTS
    asked = {"checkpoints": [str(trained.folder)], "boxes": spots, "method": "occlusion", "patch": 8, "stride": 4}
    run = score(**asked, sanity_check=False)
    assert run.summary["left_out"] == f"{PATIENTS - len(held_out)} seen"
    table: Any = pd.read_csv(run.folder / "boxes.csv", dtype={"group": str})
    assert set(table["group"]) == held_out and set(table["network"]) == {"net", MEAN_BOX, CHANCE}
    assert set(pd.read_csv(run.folder / "rejected.csv")["kind"]) == {"seen"}
    means: Any = table.groupby("network")[[POINTING, RATIO, "box_area"]].mean()
    assert means[POINTING]["net"] > 0.7 and means[RATIO]["net"] > 3, means
    assert means[POINTING][CHANCE] == pytest.approx(1 / 16) and means[RATIO][CHANCE] == pytest.approx(1)
    assert (run.folder / "figures" / "boxes.png").exists() and (run.folder / "figures" / "panel.png").exists()
    said = capsys.readouterr().out
    assert "Pointing game" in said and f"Nodule ({len(held_out)})" in said
    assert score(**asked, sanity_check=False).folder == run.folder


def test_weights_from_elsewhere_are_compared_and_what_is_not_known_of_them_is_said(
    half_as_wide: None, spots: str, score: Any, tmp_path: Path
) -> None:
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = Classifier(Backbone("resnet18", 1), 2).net
        torch.nn.init.normal_(net.fc.weight)  # type: ignore[arg-type]  # its head
        torch.save(net.state_dict(), tmp_path / f"net{seed}.pt")
    described = {"classes": ["Mass", "Nodule"], "multilabel": True, "img_res": 32, "sanity_check": False}
    checkpoints = [str(tmp_path / f"net{seed}.pt") for seed in (0, 1)]
    run = score(checkpoints=checkpoints, boxes=spots, **described, ids="none")
    assert [note.partition(" ")[0] for note in run.summary["notes"]] == ["net0", "net1"]
    scores = pd.read_csv(run.folder / "box_scores.csv", keep_default_na=False)
    assert set(scores["minus"]) == {"", "net0", MEAN_BOX, CHANCE} and set(scores["finding"]) == {"Nodule", ALL}
    texts = [path.read_text() for path in run.folder.glob("*.csv")]
    assert not any("00000001_000" in text for text in texts)
    refused = [
        ({"only": ["Hernia"]}, "only"),
        ({"classes": ["Hernia", "Mass"]}, "none of the 24 files can be used .24 finding."),
        ({"boxes": f"{spots}.gz"}, "no file"),
        ({"images": [spots]}, "leave out --images"),
    ]
    for changes, said in refused:
        with pytest.raises(UserError, match=said):
            score(**{"checkpoints": checkpoints, "boxes": spots, **described, **changes})
