"""Each benchmark runs, at a tiny size."""

import gzip
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT
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


def test_the_bound(script: Any) -> None:
    tiny = ["--sizes", "32", "--batch-size", "4", "--rounds", "1", "--projector-dims", "8", "--precisions", "float32"]
    ended = script(f"{HERE}/bench_bound.py", *tiny)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].split()[:2] == ["32", "float32"]


def test_a_gpu(script: Any) -> None:
    tiny = ["--backbones", "resnet18", "--sizes", "32", "--batch-size", "4", "--projector-dims", "8", "--images", "8"]
    short = ["--views", "4", "--steps", "1", "--rounds", "1", "--device", "cpu", "--variants", "float32", "no graphs"]
    ended = script(f"{HERE}/bench_gpu.py", *tiny, *short)
    assert ended.returncode == 0, ended.stderr
    *_, measured, refused = ended.stdout.splitlines()
    assert refused.split(maxsplit=2) == ["no", "graphs", "needs a CUDA GPU"]
    rate, milliseconds, hours = (float(re.split(r"[\s,]+", measured)[column]) for column in (1, 4, -2))
    assert rate == pytest.approx(4 / milliseconds * 1000, rel=0.1)  # printed with one decimal
    assert hours == pytest.approx(21165 * 300 / rate / 3600, rel=0.1)


def test_micro_batches(script: Any) -> None:
    tiny = ["--img-res", "32", "--batch-sizes", "8", "--micro-batch-size", "4", "--max-whole", "0", "--steps", "1"]
    ended = script(f"{HERE}/bench_micro_batches.py", *tiny, "--projector-dims", "8")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].split()[:2] == ["8", "4"]


def test_a_collection(phantoms: Path, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = (phantoms / CHEXPERT_ROOT / "train.csv").read_bytes()
    (tmp_path / "chexpert_labels").mkdir()
    (tmp_path / "chexpert_labels" / "train.csv.gz").write_bytes(gzip.compress(table, mtime=0))
    shutil.copytree(phantoms / CHEXPERT_ROOT / "train", tmp_path / "train")
    monkeypatch.setenv("CXR_DATA", str(tmp_path))
    ended = script(f"{HERE}/bench_collection.py", "--images", "30", "--searched", "50", "--checked", "50")
    assert ended.returncode == 0, ended.stderr
    stages = {line[:24].strip(): line[24:].split()[0] for line in ended.stdout.splitlines()[1:]}
    assert stages["decoding to 64 px"] == "30" and stages["leak check"] == "50"


@pytest.mark.slow
def test_pretraining() -> None:
    tiny = ["--img-res", "32", "--batch-size", "4", "--projector", "8", "--loss-widths", "8", "--rounds", "1"]
    command = [sys.executable, f"{HERE}/bench_pretraining.py", *tiny, "--no-ablations"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPO_ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "ours against classic: x" in ended.stdout
