"""Arms side by side, on the phantoms and on made-up curves: tables, sentence, the test part."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dataset_loader.phantoms.dataset import COVID_ROOT
from downstream_task.label_savings import labels_needed
from downstream_task.train_models_with_frozen_parts import config as FROZEN_DEFAULTS
from downstream_task.trained_vs_no_trained_compare import config as DEFAULTS
from downstream_task.trials import arm_names
from selfsup_task.pretrain_config import derived_name
from selfsup_task.train_barlow_twins import config as PRETRAIN_DEFAULTS
from utils.config import REPO_ROOT, UserError
from utils.wording import savings_sentence

COMPARE = "downstream_task/trained_vs_no_trained_compare.py"
TEST = "downstream_task/confusion_matrix.py"
FROZEN = "downstream_task/train_models_with_frozen_parts.py"


def test_defaults_name_the_encoder_that_the_default_pretraining_leaves() -> None:
    left: Any = PRETRAIN_DEFAULTS
    expected = f"runs/{derived_name(left)}/{left['backbone']}_final_state_dict.pt"
    assert expected in DEFAULTS["encoders"]
    assert expected in FROZEN_DEFAULTS["encoders"]


def test_scripts_from_labels_to_the_test_part(
    phantoms: Path, script: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = f"ci/{tmp_path.name}-{tmp_path.parent.name}"
    data = ["--dataset", "covid", "--data-root", str(phantoms / COVID_ROOT), "--threads", "1"]
    small = ["--img-res", "32", "--store-res", "32", "--num-steps", "2", "--evaluations", "1", "--batch-size", "8"]
    request.addfinalizer(lambda: shutil.rmtree(REPO_ROOT / "runs" / name, ignore_errors=True))
    request.addfinalizer(lambda: shutil.rmtree(REPO_ROOT / "runs" / "test" / name, ignore_errors=True))
    arms = ["--encoders", "random", "--draws", "2", "--run-name", f"{name}/compare"]
    compared = script(COMPARE, *data, *small, *arms, "--fractions", "0.1", "0.5")
    assert compared.returncode == 0, compared.stderr
    folder = REPO_ROOT / "runs" / name / "compare"
    summary = pd.read_csv(folder / "summary.csv")
    assert len(summary) == 2 * 2 * 2
    assert (folder / "figures" / "label_efficiency.png").exists()
    curves = pd.read_csv(folder / "curves.csv")
    assert (np.diff(curves[["low", "mean", "high"]].to_numpy(), axis=1) >= 0).all()
    subsets = [set(pd.read_csv(folder / run / "split.csv")["part"]) for run in map(str, summary["run"])]
    assert all(parts == {"train", "val", "test"} for parts in subsets)
    one = str(summary["run"].iloc[0])
    tested = script(TEST, "--runs", f"runs/{name}/compare/{one}", "--threads", "1")
    assert tested.returncode == 0, tested.stderr
    result = REPO_ROOT / "runs" / "test" / name / "compare" / one
    split = pd.read_csv(folder / one / "split.csv")
    predictions = pd.read_csv(result / "predictions.csv")
    assert set(predictions["file"]) == set(split["file"][split["part"] == "test"])
    scores = pd.read_csv(result / "scores.csv").set_index("score")
    accuracy = (predictions.filter(like="p ").to_numpy().argmax(1) == pd.Categorical(predictions["label"]).codes).mean()
    assert scores.loc["accuracy", "value"] == pytest.approx(accuracy)
    assert (result / "figures" / "confusion_matrix.png").exists()
    whole = script(TEST, "--runs", f"runs/{name}/compare", "--threads", "1")
    assert whole.returncode == 0, whole.stderr
    assert "Label efficiency on the test part (synthetic)" in whole.stdout
    summary_file = folder / one / "summary.json"
    summary_file.write_text(summary_file.read_text().replace('"split_hash": "', '"split_hash": "0'))
    shutil.rmtree(result)
    changed = script(TEST, "--runs", f"runs/{name}/compare/{one}", "--threads", "1")
    assert changed.returncode == 1
    assert "files came or went" in changed.stderr


def test_frozen_parts_script(phantoms: Path, script: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name = f"ci/{tmp_path.name}-{tmp_path.parent.name}"
    request.addfinalizer(lambda: shutil.rmtree(REPO_ROOT / "runs" / name, ignore_errors=True))
    flags = ["--dataset", "covid", "--data-root", str(phantoms / COVID_ROOT), "--threads", "1", "--img-res", "32"]
    flags += ["--store-res", "32", "--num-steps", "2", "--evaluations", "1", "--batch-size", "8", "--draws", "1"]
    flags += ["--encoders", "random", "--parts", "fc", "all", "--label-fraction", "0.2", "--run-name", name]
    done = script(FROZEN, *flags)
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(REPO_ROOT / "runs" / name / "table.csv")["trainable"]) == ["fc", "all"]


def test_mistakes_are_one_sentence(script: Any) -> None:
    fresh = ["--run-name", "ci/nothing", "--encoders", "random"]
    absent = script(COMPARE, *fresh, "runs/none/x_state_dict.pt")
    assert absent.returncode == 1
    assert absent.stderr.strip().splitlines()[-1].startswith("error: there is no file")
    twice = script(COMPARE, *fresh, "--fractions", "0.1", "0.1")
    assert "with a value more than once" in twice.stderr
    nothing = script(TEST, "--runs", "runs/ci/nothing")
    assert nothing.returncode == 1
    assert "names no finished fine-tuning run" in nothing.stderr


def test_arms_are_named_after_their_runs_and_never_twice() -> None:
    encoders = ["random", "imagenet:weights/x.pth", "runs/pretrain/covid/resnet18_best_state_dict.pt"]
    assert list(arm_names(encoders)) == ["random", "imagenet", "pretrained"]
    assert list(arm_names([*encoders, "a/chexpert/r_best_state_dict.pt"])) == [
        "random",
        "imagenet",
        "covid",
        "chexpert",
    ]
    with pytest.raises(UserError, match="both named 'covid'"):
        arm_names(["a/covid/r_best_state_dict.pt", "b/covid/r_best_state_dict.pt"])


def test_label_savings_on_a_known_curve() -> None:
    steady = np.ones((50, 3))
    curve = [(n, np.full(3, level), level * steady) for n, level in ((10, 0.5), (100, 0.7), (1000, 0.8))]
    needed = labels_needed(0.6 * steady, np.full(3, 0.6), curve)
    assert needed["reference_needs"] == pytest.approx(10**1.5)  # half-way between 10 and 100 on the log scale
    assert needed["reference_needs_low"] == needed["reference_needs_high"] == pytest.approx(10**1.5)
    assert labels_needed(0.9 * steady, np.full(3, 0.9), curve)["reference_needs"] == np.inf
    assert labels_needed(0.4 * steady, np.full(3, 0.4), curve)["reference_needs"] == 0
    assert labels_needed(0.5 * steady, np.full(3, 0.5), curve)["reference_needs"] == pytest.approx(10)
    row = {"labels": 10, **labels_needed(0.9 * steady, np.full(3, 0.9), curve)}
    assert savings_sentence(row, "covid", "random", 10, 1000) == (
        "With 10 labels covid reaches what random needs more than 1,000 for (95% of resamples more than 1,000 to more "
        "than 1,000)."
    )
