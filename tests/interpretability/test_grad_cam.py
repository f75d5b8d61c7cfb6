"""grad_cam.py as its user runs it: files or the test part, pictures, tables, and what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interpretability import grad_cam
from interpretability.overlays import heat_on, outline, overlay
from utils.config import RUNS_ROOT, UserError, make_config
from utils.files import read_json, write_json
from utils.logging_utils import Run


@pytest.fixture
def explain(plain: Run, name: str) -> Any:
    """main() with the default config and changes, on the network of plain phantoms; its runs are this test's."""

    def run(run_name: str = "maps", **changes: Any) -> Run:
        own = {"checkpoints": [str(plain.folder)], "per_class": 2, "run_name": f"{name}/{run_name}"}
        return grad_cam.main(make_config(grad_cam.MapsConfig, {**grad_cam.config, **own, **changes}))

    return run


def test_panels_tables_and_overlays_of_the_test_part(explain: Any, plain: Run, tmp_path: Path) -> None:
    twin = shutil.copytree(plain.folder, tmp_path / "twin")
    run = explain(checkpoints=[str(plain.folder), str(twin)])
    table = pd.read_csv(run.folder / "saliency.csv")
    assert len(table) == 2 * 4 * 2
    assert set(table["label"]) == {"COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"}
    assert set(table["image"]) <= {
        Path(f).with_suffix("").as_posix().replace("/", "_")
        for f in pd.read_csv(plain.folder / "split.csv").query("part == 'test'")["file"]
    }
    masses = table["lung_mass"].to_numpy(float)
    assert np.isfinite(masses).sum() >= 8  # a map without evidence has no mass
    assert 0 <= np.nanmin(masses) <= np.nanmax(masses) <= 1
    np.testing.assert_allclose(table["lung_mass"] / table["lung_area"], table["lung_mass_over_area"], rtol=1e-4)
    assert len(list((run.folder / "overlays" / "twin").glob("*.png"))) == 8
    assert (run.folder / "figures" / "panel.png").exists()
    assert run.summary["differences"]["twin"]["lung_mass"][0] == pytest.approx(0)
    assert run.summary["checkpoints"]["twin"]["trusted"] in (True, False)
    assert set(pd.read_csv(run.folder / "sanity.csv")["checkpoint"]) == {"plain", "twin"}
    assert list(run.folder.glob("events.out.tfevents.*")), "no panel in TensorBoard"
    assert explain(checkpoints=[str(plain.folder), str(twin)]).summary == run.summary


def test_a_state_dict_from_elsewhere_gives_the_maps_of_its_run(explain: Any, plain: Run, tmp_path: Path) -> None:
    assert plain.summary
    trained, classes = plain.config, plain.summary["classes"]
    copies = [tmp_path / name / "weights.pt" for name in "ab"]
    for copy in copies:
        copy.parent.mkdir()
        shutil.copy(plain.folder / "resnet18_final_state_dict.pt", copy)
    description = {"classes": classes, "img_res": trained["img_res"], "in_channels": trained["in_channels"]}
    files = sorted(Path(trained["data_root"]).glob("Normal/images/*.png"))[:3]
    images = {"images": list(map(str, files)), "sanity_check": False}
    run = explain(**images, run_name="run")
    elsewhere = explain(**images, **description, checkpoints=list(map(str, copies)), run_name="elsewhere")
    found = pd.read_csv(elsewhere.folder / "saliency.csv")
    assert found["checkpoint"].unique().tolist() == ["weights", "b_weights"]
    for _, table in found.groupby("checkpoint"):
        expected = pd.read_csv(run.folder / "saliency.csv")
        assert table["image"].tolist() == expected["image"].tolist()
        np.testing.assert_allclose(table["lung_mass"], expected["lung_mass"], rtol=1e-6)
    with pytest.raises(UserError, match="--images"):
        explain(**description, checkpoints=[str(copies[0])])
    with pytest.raises(UserError, match="twice"):
        explain(**images, **description, checkpoints=[str(copies[0])] * 2)


def test_pictures_and_patients_are_named_as_ids_says(explain: Any, plain: Run, tmp_path: Path) -> None:
    for file in sorted(Path(plain.config["data_root"]).glob("Normal/images/*.png"))[:3]:
        shutil.copy(file, tmp_path / f"miller-{file.name}")
    files = sorted(path.name for path in tmp_path.glob("*.png"))
    pd.DataFrame({"file": files, "patient": ["p1", "p1", "p2"]}).to_csv(tmp_path / "films.csv", index=False)
    for ids in ("hashed", "none"):
        run = explain(images=[str(tmp_path / "films.csv")], ids=ids, run_name=ids, sanity_check=False)
        table: Any = pd.read_csv(run.folder / "saliency.csv", dtype=str)
        assert table["image"].str.match("file-[0-9a-f]{16}$" if ids == "hashed" else "file-[123]$").all()
        assert table["group"].nunique() == 2 and not table["group"].isin(["p1", "p2"]).any()
        assert len([*run.folder.rglob("overlays/*/file-*.png")]) == 3
        assert not [path for path in run.folder.rglob("*") if "miller" in path.name]
        assert "miller" not in (run.folder / "environment.json").read_text()


def test_files_that_cannot_be_used_are_listed_and_the_others_explained(
    explain: Any, plain: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    day = tmp_path / "day"
    day.mkdir()
    good, bad = sorted(Path(plain.config["data_root"]).glob("Normal/images/*.png"))[:2]
    shutil.copy(good, day / "good.png")
    (day / "cut.png").write_bytes(bad.read_bytes()[:-100])
    files = {"images": [str(day)], "sanity_check": False}
    run = explain(**files)
    assert pd.read_csv(run.folder / "saliency.csv")["image"].tolist() == ["good"]
    assert pd.read_csv(run.folder / "rejected.csv")[["file", "kind"]].to_numpy().tolist() == [["cut.png", "broken"]]
    assert "1 files are left out (1 broken): see rejected.csv" in capsys.readouterr().out
    assert explain(**files).folder == run.folder
    shutil.copy(bad, day / "new.png")
    again = explain(**files)
    assert again.folder == run.folder.with_name(f"{run.folder.name}-2")
    assert pd.read_csv(again.folder / "saliency.csv")["image"].tolist() == ["good", "new"]


def test_a_map_lies_on_the_square_that_the_network_saw() -> None:
    corner = np.zeros((4, 4), np.float32)
    corner[0, 0] = 1
    heat = heat_on(corner, (60, 100))
    assert heat.shape == (60, 100)
    assert np.unravel_index(heat.argmax(), heat.shape)[1] >= 20  # the square begins at column 20
    assert not heat[:, :20].any() and not heat[:, 80:].any()
    gray = np.full((60, 100), 90, np.uint8)
    picture = overlay(gray, corner, None)
    assert (picture[:, :20] == 90).all()
    assert (picture[0, 22] != 90).any()


def test_an_outline_is_the_mask_s_own_border() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:20, 5:30] = True
    border = outline(mask)
    assert border.sum() == 2 * 25 + 2 * 8
    assert not (border & ~mask).any()


def test_what_cannot_be_explained_is_refused_and_leaves_nothing(
    explain: Any, plain: Run, name: str, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(plain.folder, tmp_path / "broken")
    weights = broken / "resnet18_final_state_dict.pt"
    summary = read_json(broken / "summary.json") or {}
    write_json(broken / "summary.json", {**summary, "classes": summary["classes"][1:]})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": [str(tmp_path / "x.png")]}, "not an image"),
        ({"images": [str(tmp_path / "empty")]}, "no image below"),
        ({"images": [str(tmp_path / "absent.png")]}, "does not exist"),
        ({"checkpoints": [str(weights)], "classes": ["a", "b"]}, "img-res"),
        ({"checkpoints": [str(weights)], "classes": ["a", "b"], "img_res": 32}, "4 outputs"),
        ({"target": "COVID19"}, "did you mean 'COVID'"),
        ({"only": ["Normals"]}, "did you mean 'Normal'"),
        ({"method": "gradcam"}, "grad_cam"),
        ({"layer": "layer9"}, "layer4"),
        ({"checkpoints": [str(broken)]}, "does not fit"),
        ({"checkpoints": [str(weights.parent.parent)]}, "finished fine-tuning"),
        ({"checkpoints": []}, "checkpoints is empty"),
    ]
    for changes, said in cases:
        with pytest.raises(UserError, match=said):
            explain(**changes)
    assert not (RUNS_ROOT / name).exists()
