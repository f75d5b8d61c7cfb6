"""Each benchmark runs, at a tiny size."""

import gzip
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT
from utils.config import REPO_ROOT

HERE = "tests/benchmarks"


def test_the_bound(script: Any) -> None:
    tiny = ["--sizes", "32", "--batch-size", "4", "--rounds", "1", "--projector-dims", "8", "--precisions", "float32"]
    ended = script(f"{HERE}/bench_bound.py", *tiny)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].split()[:2] == ["32", "float32"]


def test_a_gpu(script: Any) -> None:
    tiny = ["--backbones", "resnet18", "--sizes", "32", "--batch-size", "4", "--projector-dims", "8", "--images", "8"]
    short = ["--views", "2", "--steps", "1", "--rounds", "1", "--device", "cpu", "--variants", "float32", "no graphs"]
    ended = script(f"{HERE}/bench_gpu.py", *tiny, *short)
    assert ended.returncode == 0, ended.stderr
    *_, measured, refused = ended.stdout.splitlines()
    assert measured.startswith("float32") and refused.split(maxsplit=2) == ["no", "graphs", "needs a CUDA GPU"]


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


def test_quality_by_the_minute(phantoms: Path, script: Any, tmp_path: Path) -> None:
    small = ["--data-root", str(phantoms / COVID_ROOT), "--img-res", "32", "--batch-size", "8", "--workers", "0"]
    short = ["--minutes", "0.01", "--probes", "1", "--draws", "2", "--num-labels", "80", "--threads", "1"]
    ended = script(f"{HERE}/bench_time_to_quality.py", *small, *short, "--only", "classic", "--folder", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "classic: balanced accuracy" in ended.stdout and (tmp_path / "scores.png").exists()


@pytest.mark.slow
def test_pretraining() -> None:
    tiny = ["--img-res", "32", "--batch-size", "4", "--projector", "8", "--loss-widths", "8", "--rounds", "1"]
    command = [sys.executable, f"{HERE}/bench_pretraining.py", *tiny, "--no-ablations"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPO_ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "ours against classic: x" in ended.stdout
