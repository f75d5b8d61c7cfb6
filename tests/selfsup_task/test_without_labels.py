"""Pretraining on images of which none is labelled, or none for validation."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dataset_loader.phantoms.dataset import COVID_ROOT
from utils.config import RUNS_ROOT

pytestmark = pytest.mark.usefixtures("narrow", "quick")

SMALL = ["--start", "random", "--num-epochs", "1", "--views", "2", "--projector-dims", "16", "--warmup-epochs", "0"]
SMALL += ["--recipe", "short"]


def test_probes_are_skipped_and_the_output_says_so(phantoms: Path, tmp_path: Path, name: str, script: Any) -> None:
    for number, file in enumerate(sorted((phantoms / COVID_ROOT).rglob("images/*.png"))[:12]):
        shutil.copy(file, tmp_path / f"{number}.png")
    flags = ["--dataset", "folder", "--data-root", str(tmp_path), "--img-res", "16", "--store-res", "32"]
    flags += ["--backbone", "resnet18"]
    done = script("selfsup_task/train_barlow_twins.py", *flags, *SMALL, "--batch-size", "6", "--run-name", name)
    assert done.returncode == 0, done.stderr
    assert "probes             skipped: the X-rays have no labels" in done.stdout
    assert "next: give labels in labels.csv" in done.stdout
    assert (RUNS_ROOT / name / "resnet18_final_state_dict.pt").exists()
    summary = json.loads((RUNS_ROOT / name / "summary.json").read_text())
    assert summary["images"] == 12 and "metric" not in summary
    compare = "downstream_task/trained_vs_no_trained_compare.py"
    refused = script(compare, *flags, "--features-res", "0", "--run-name", f"{name}_compared")
    assert refused.returncode == 1 and "nothing is labelled" in refused.stderr
    assert not (RUNS_ROOT / f"{name}_compared").exists()


def test_without_validation_images_probes_are_skipped_and_a_comparison_is_refused(
    phantoms: Path, name: str, script: Any
) -> None:
    flags = ["--dataset", "covid", "--data-root", str(phantoms / COVID_ROOT), "--img-res", "16", "--store-res", "32"]
    flags += ["--val-share", "0", "--batch-size", "64", "--backbone", "resnet18"]
    done = script("selfsup_task/train_barlow_twins.py", *flags, *SMALL, "--run-name", name)
    assert done.returncode == 0, done.stderr
    assert "probes             skipped: the validation part is empty (val_share)" in done.stdout
    assert "A comparison needs validation images" in done.stdout and "next" not in done.stdout
    compare = "downstream_task/trained_vs_no_trained_compare.py"
    refused = script(compare, *flags, "--features-res", "0", "--encoders", "random", "--run-name", f"{name}_compared")
    assert refused.returncode == 1 and "error: the validation part has no images" in refused.stderr
