"""Each benchmark runs, at a tiny size."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from dataset_loader.phantoms.dataset import COVID_ROOT
from utils.config import REPO_ROOT

HERE = "tests/benchmarks"


def test_the_linear_probe(phantoms: Path, script: Any) -> None:
    data = ["--dataset", "covid", "--data-root", str(phantoms / COVID_ROOT)]
    ended = script(f"{HERE}/bench_linear_probe.py", *data, "--epochs", "1", "--rounds", "1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("re-run: ")


def test_saliency(script: Any) -> None:
    ended = script(f"{HERE}/bench_saliency.py", "--images", "4", "--img-res", "32", "--rounds", "1")
    assert ended.returncode == 0, ended.stderr
    assert "Grad-CAM by autograd.grad" in ended.stdout


def test_small_images(script: Any) -> None:
    ended = script(f"{HERE}/bench_small_images.py", "--batch-size", "16", "--img-res", "32", "--rounds", "1")
    assert ended.returncode == 0, ended.stderr
    assert "32 px: " in ended.stdout


def test_pretraining() -> None:
    tiny = ["--img-res", "32", "--batch-size", "4", "--projector", "8", "--loss-widths", "8", "--rounds", "1"]
    command = [sys.executable, f"{HERE}/bench_pretraining.py", *tiny, "--no-ablations"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPO_ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "ours against classic: x" in ended.stdout
