"""External tests: a network on all images of another collection, over the classes that both have."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from finetuning_config import finetuning_config
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT, ensure_chexpert_phantoms, ensure_phantoms
from dataset_loader.synthetic import RECORD
from downstream_task.clinic.operating_points import choose_threshold
from downstream_task.finetuning import finetune
from downstream_task.finished_runs import OpenedData, find_finished
from utils.config import RUNS_ROOT, UserError

pytestmark = pytest.mark.usefixtures("narrow")

TEST = "downstream_task/confusion_matrix.py"
SMALL = {"method": "linear", "img_res": 32, "threads": 1}


@pytest.fixture(scope="module")
def trained(phantoms: Path) -> Iterator[Path]:
    """A finished linear probe of four classes under runs/; what this module writes is deleted afterwards."""
    data = {"label_fraction": 0.5, "run_name": "trained_here", "data_root": str(phantoms / COVID_ROOT)}
    yield finetune(finetuning_config(**SMALL, **data)).folder
    for name in ("trained_here", "test/trained_here", "external"):
        shutil.rmtree(RUNS_ROOT / name, ignore_errors=True)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other X-rays: of two known classes, and of one that the network does not know."""
    root = ensure_phantoms(tmp_path_factory.mktemp("elsewhere"), images=160, size=64, seed=1)
    (root / RECORD).unlink()
    shutil.rmtree(root / "Viral Pneumonia")
    (root / "Lung_Opacity").rename(root / "Tuberculosis")
    (root / "COVID").rename(root / "Covid ")  # names count without case and blanks
    for file in sorted(root.glob("*/*/*.png")):
        file.rename(file.with_name(f"elsewhere_{file.name}"))
    return root


def recalls(table: pd.DataFrame, classes: list[str]) -> tuple[float, float]:
    """Mean recall of the classes in a table of predictions, and its variance for independent images."""
    names = np.array([column[2:] for column in table.filter(like="p ")])
    called = names[table.filter(like="p ").to_numpy().argmax(1)]
    found = np.array([(called[table["label"] == name] == name).mean() for name in classes])
    counts = np.array([(table["label"] == name).sum() for name in classes])
    return float(np.mean(found)), float((found * (1 - found) / counts).sum() / len(classes) ** 2)


def test_score_and_drop_are_over_the_shared_classes(trained: Path, elsewhere: Path, script: Any) -> None:
    flags = ("--runs", "runs/trained_here", "--external", f"covid:{elsewhere}", "--threads", "1")
    done = script(TEST, *flags)
    assert done.returncode == 0, done.stderr
    folder = RUNS_ROOT / "external" / f"covid-{elsewhere.parent.name}-{elsewhere.name}" / "trained_here"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["missing"] == ["Lung_Opacity", "Viral Pneumonia"]
    assert "no images of: Lung_Opacity, Viral Pneumonia" in done.stdout
    unknown = len(list(elsewhere.glob("Tuberculosis/images/*")))
    assert f"left out: {unknown} images of classes that the network does not know" in done.stdout
    there = pd.read_csv(folder / "predictions.csv")
    files = [
        file.relative_to(elsewhere).as_posix()
        for name in ("Covid ", "Normal")
        for file in elsewhere.glob(f"{name}/images/*")
    ]
    assert sorted(there["file"]) == sorted(files)
    assert summary["images"] == len(files)

    here = pd.read_csv(RUNS_ROOT / "test" / "trained_here" / "predictions.csv").query("label in ['COVID', 'Normal']")
    (internal, var_here), (external, var_there) = (recalls(table, ["COVID", "Normal"]) for table in (here, there))
    assert summary["internal"][0] == pytest.approx(internal)
    assert summary["balanced_accuracy"][0] == summary["outside"][0] == pytest.approx(external)
    drop, low, high = summary["drop"]
    assert drop == pytest.approx(internal - external)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(var_here + var_there), rel=0.25)
    assert script(TEST, *flags).stdout == done.stdout, "the same command prints the stored result"

    tested = RUNS_ROOT / "test" / "trained_here"
    points = pd.read_csv(tested / "operating_points.csv").query("`class` == 'COVID' and rule == 'Youden'")
    val = pd.read_csv(trained / "predictions_val.csv")
    p = softmax(
        np.log(val.filter(like="p ")) / json.loads((tested / "summary.json").read_text())["temperature"], axis=1
    )
    expected = choose_threshold((val["label"] == "COVID").to_numpy(float), np.asarray(p)[:, 0], "Youden")
    np.testing.assert_allclose(points["threshold"], expected)  # of validation, at the temperature
    assert (tested / "conformal.csv").exists()
    for figure in ("roc", "reliability"):
        assert (tested / "figures" / f"{figure}.png").exists()


def test_a_collection_that_was_trained_on_or_has_other_labels_is_refused(
    trained: Path, phantoms: Path, script: Any
) -> None:
    for entry, sentence in {
        f"covid:{phantoms / COVID_ROOT}": "was trained on",
        f"chexpert:{phantoms / CHEXPERT_ROOT}": "needs images of two classes",
        "covid:/nowhere": "found no folder /nowhere",
        "covdi": "covid",
        str(phantoms): f"folder:{phantoms}",
    }.items():
        done = script(TEST, "--runs", "runs/trained_here", "--external", entry, "--threads", "1")
        assert done.returncode == 1
        assert sentence in done.stderr


def test_findings_that_only_the_network_knows_do_not_count(phantoms: Path, tmp_path: Path) -> None:
    data = {"dataset": "chexpert", "data_root": str(phantoms / CHEXPERT_ROOT), "findings": ["Edema", "Cardiomegaly"]}
    run = finetune(finetuning_config(**SMALL, **data, label_fraction=1.0, run_name="external/of_findings"))
    [finished] = find_finished(str(run.folder))
    root = ensure_chexpert_phantoms(tmp_path, patients=40, size=64, seed=1)
    config = finetuning_config(**{**SMALL, **data, "data_root": str(root)}, run_name="unused")
    xrays = OpenedData(torch.device("cpu")).of(config)
    names = tuple("Else" if name == "Cardiomegaly" else name for name in xrays.columns.label_names)
    xrays = replace(xrays, columns=replace(xrays.columns, label_names=names))
    targets, rows, shared = finished.shared_targets(xrays)
    assert shared == ["Edema"]
    none_is_positive = np.where(xrays.columns.labels == 1, 0, xrays.columns.labels)
    with pytest.raises(UserError, match="positive and negative"):
        finished.shared_targets(replace(xrays, columns=replace(xrays.columns, labels=none_is_positive)))
    assert np.isnan(targets.values[:, 1]).all()
    scored = finished.look(xrays, targets, rows, "")
    p = targets.probabilities(scored.logits)
    known = ~np.isnan(targets.values[:, 0])
    assert targets.score(targets.values, p) == pytest.approx(roc_auc_score(targets.values[known, 0], p[known, 0]))
