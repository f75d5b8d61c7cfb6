"""External tests: a network on all images of another collection, over the classes that both have."""

import json
import shutil
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
from downstream_task.clinic.external import compared_with_test, shared_targets
from downstream_task.clinic.tables import choose_threshold
from downstream_task.finetuning import finetune
from downstream_task.finished_runs import OpenedData, find_finished
from downstream_task.predictions import Predicted, predicted, read_predictions
from utils.config import RUNS_ROOT, UserError

pytestmark = pytest.mark.usefixtures("narrow")

TEST = "downstream_task/confusion_matrix.py"
SMALL = {"method": "linear", "way": "linear", "img_res": 32, "threads": 1}


@pytest.fixture(scope="module")
def trained(narrow: None, phantoms: Path) -> Path:
    """A finished linear probe of four classes under runs/."""
    data = {"num_labels": 90, "run_name": "trained_here", "data_root": str(phantoms / COVID_ROOT)}
    return finetune(finetuning_config(**SMALL, **data)).folder


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

    own: Any = pd.read_csv(trained / "predictions.csv")
    assert set(there["part"]) == {"test"}
    head = ["fold", "draw", "arm", "way", "labels", "start"]
    assert there[head].drop_duplicates().to_numpy().tolist() == own[head].drop_duplicates().to_numpy().tolist()
    here = own[(own["part"] == "test") & own["label"].isin(["COVID", "Normal"])]
    (internal, var_here), (external, var_there) = (recalls(table, ["COVID", "Normal"]) for table in (here, there))
    assert summary["internal"][0] == pytest.approx(internal)
    assert summary["balanced_accuracy"][0] == summary["outside"][0] == pytest.approx(external)
    drop, low, high = summary["drop"]
    assert drop == pytest.approx(internal - external)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(var_here + var_there), rel=0.25)
    assert script(TEST, *flags).stdout == done.stdout, "the same command prints the stored result"

    val = own[own["part"] == "val"]
    temperature = json.loads((RUNS_ROOT / "test" / "trained_here" / "summary.json").read_text())["temperature"]
    assert summary["temperature"] == temperature, "the network keeps the one of its own validation rows"
    p = np.asarray(softmax(np.log(val.filter(like="p ")) / temperature, axis=1))
    points = pd.read_csv(folder / "operating_points.csv").query("`class` == 'COVID' and rule == 'Youden'")
    expected = choose_threshold((val["label"] == "COVID").to_numpy(float), p[:, 0], "Youden")
    np.testing.assert_allclose(points["threshold"], expected)
    assert set(points["validation_labels"]) == {len(val)}
    for file in ("conformal.csv", "figures/roc.png", "figures/reliability.png"):
        assert (folder / file).exists()

    shutil.copytree(trained, weightless := trained.with_name("trained_elsewhere"))
    for file in weightless.glob("*.pt"):
        file.unlink()
    without = script(TEST, "--runs", str(weightless), *flags[2:])
    assert without.returncode == 1 and "no run that is named has kept its weights" in without.stderr
    both = script(TEST, "--runs", "runs/trained_here", str(weightless), *flags[2:])
    assert both.returncode == 0 and "left out: 1 runs without weights" in both.stdout
    before = (trained / "predictions.csv").read_bytes()
    own.assign(start=1).to_csv(trained / "predictions.csv", index=False)
    shutil.rmtree(RUNS_ROOT / "test" / "trained_here")
    other = script(TEST, *flags)
    assert other.returncode == 1 and "was made from other data: predictions" in other.stderr
    (trained / "predictions.csv").write_bytes(before)
    shutil.rmtree(RUNS_ROOT / "test" / "trained_here")


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
    run = finetune(finetuning_config(**SMALL, **data, run_name="external/of_findings"))
    [finished] = find_finished(str(run.folder))
    root = ensure_chexpert_phantoms(tmp_path, patients=40, size=64, seed=1)
    config = finetuning_config(**{**SMALL, **data, "data_root": str(root)}, run_name="unused")
    xrays = OpenedData(torch.device("cpu")).of(config)
    names = tuple("Else" if name == "Cardiomegaly" else name for name in xrays.columns.label_names)
    xrays = replace(xrays, columns=replace(xrays.columns, label_names=names))
    targets, rows = shared_targets(finished, xrays)
    assert len(rows) == len(xrays) and np.isnan(targets.values[:, 1]).all()
    none_is_positive = np.where(xrays.columns.labels == 1, 0, xrays.columns.labels)
    with pytest.raises(UserError, match="positive and negative"):
        shared_targets(finished, replace(xrays, columns=replace(xrays.columns, labels=none_is_positive)))
    generator = np.random.default_rng(0)
    groups, p = xrays.columns.groups.astype(str), generator.random(targets.values.shape)
    there = Predicted(targets.names, targets.values, p, groups, pd.DataFrame(index=rows), np.zeros(len(rows)))
    here = predicted(read_predictions(run.folder / "predictions.csv"), "test")
    compared = compared_with_test(here, there)
    for name, side in (("internal", here), ("outside", there)):
        known = ~np.isnan(side.labels[:, 0])
        edema = roc_auc_score(side.labels[known, 0], side.probabilities[known, 0])
        assert compared[name][0] == pytest.approx(edema)
    assert compared["missing"] == ["Cardiomegaly"]
