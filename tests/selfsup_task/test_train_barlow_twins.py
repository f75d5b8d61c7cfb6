"""The main job as a user runs it: the command, its files, resuming after a kill, and what goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision import models

from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT
from utils.config import REPO_ROOT

TRAIN = "selfsup_task/train_barlow_twins.py"
SMALL = ["--img-res", "32", "--store-res", "32", "--batch-size", "48", "--num-epochs", "2", "--lr", "1e-3"]
SMALL += ["--projector-dims", "32", "--probe-every", "2"]
RUNS = REPO_ROOT / "runs" / "tests"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A run name of this test alone, removed afterwards."""
    folder = RUNS / f"{os.getpid()}-{request.node.name.translate(str.maketrans('[]/', '---'))}"
    yield folder.relative_to(REPO_ROOT / "runs").as_posix()
    shutil.rmtree(folder, ignore_errors=True)


def typed(name: str, data: Path, *more: str) -> list[str]:
    dataset = "chexpert" if data.name == CHEXPERT_ROOT else "covid"
    return [*SMALL, "--dataset", dataset, "--data-root", str(data), "--run-name", name, *more]


def command(name: str, data: Path, *more: str) -> list[str]:
    return [sys.executable, str(REPO_ROOT / TRAIN), *typed(name, data, *more)]


def timeless(folder: Path) -> pd.DataFrame:
    rows = pd.read_csv(folder / "metrics.csv")
    return rows.drop(columns="time/images_per_second")


def test_a_run_leaves_what_its_readme_says_and_is_not_repeated(name: str, phantoms: Path, script: Any) -> None:
    done = script(TRAIN, *typed(name, phantoms / COVID_ROOT))
    assert done.returncode == 0, done.stderr
    assert "synthetic X-rays" in done.stdout
    assert "linear probe" in done.stdout
    folder = REPO_ROOT / "runs" / name
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "environment.json",
        "split.csv",
        "metrics.csv",
        "checkpoint.pt",
        "resnet18_best_state_dict.pt",
        "resnet18_final_state_dict.pt",
        "summary.json",
        "figures/views.png",
        "figures/recipe.png",
        "figures/curves.png",
        "figures/cross_correlation.png",
    } <= files
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["synthetic"] is True
    assert summary["epochs"] == 2
    plain = models.resnet18()
    plain.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    plain.load_state_dict(torch.load(folder / "resnet18_final_state_dict.pt", weights_only=True), strict=True)
    split = pd.read_csv(folder / "split.csv")
    assert summary["images"] == (split["part"] == "train").sum()

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = script(TRAIN, *typed(name, phantoms / COVID_ROOT))
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    other = script(TRAIN, *typed(name, phantoms / COVID_ROOT, "--lr", "0.5"))
    assert other.returncode == 1
    assert "lr (0.001 there, 0.5 now)" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_killed_in_the_middle_goes_on_to_the_same_end(name: str, phantoms: Path, script: Any) -> None:
    data, flags = phantoms / COVID_ROOT, ["--checkpoint-every", "1"]
    assert script(TRAIN, *typed(f"{name}/whole", data, *flags)).returncode == 0
    killed = REPO_ROOT / "runs" / name / "killed"
    begun = command(f"{name}/killed", data, *flags)
    process = subprocess.Popen(begun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=os.sep)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (killed / "checkpoint.pt").exists()
    assert not (killed / "summary.json").exists()
    resumed = script(TRAIN, *typed(f"{name}/killed", data, *flags))
    assert "resuming" in resumed.stderr
    whole = killed.parent / "whole"
    pd.testing.assert_frame_equal(timeless(whole), timeless(killed), check_exact=True)
    first, second = (
        torch.load(folder / "resnet18_final_state_dict.pt", weights_only=True) for folder in (whole, killed)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_chexperts_layout_trains_and_its_findings_are_probed(name: str, phantoms: Path, script: Any) -> None:
    done = script(TRAIN, *typed(name, phantoms / CHEXPERT_ROOT))
    assert done.returncode == 0, done.stderr
    split = pd.read_csv(REPO_ROOT / "runs" / name / "split.csv")
    assert len(split[["group", "part"]].drop_duplicates()) == len(set(split["group"]))
    assert all("frontal" in file for file in split["file"])


def test_two_processes_train_together(name: str, phantoms: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(name, phantoms / COVID_ROOT)[1:]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = REPO_ROOT / "runs" / name
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2
    assert (folder / "summary.json").exists()
    assert done.stdout.count("effective rank") == 1


def test_the_module_runs_from_the_root_without_an_install() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "selfsup_task.train_barlow_twins", "--help"],
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
    )
    assert done.returncode == 0
    for flag in ("--data-root", "--img-res", "--num-epochs", "--batch-size", "--run-name"):
        assert flag in done.stdout


def test_a_mistake_is_one_sentence_on_stderr_and_leaves_nothing(name: str, phantoms: Path, script: Any) -> None:
    done = script(TRAIN, *typed(name, phantoms / "absent"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for word in ("absent", "Kaggle", "--dataset phantom"):
        assert word in done.stderr
    assert not (REPO_ROOT / "runs" / name).exists()
