"""The main job as a user runs it: the command, its files, resuming after a kill, and what goes wrong."""

import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision import models

from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT
from utils.config import REPO_ROOT, RUNS_ROOT

pytestmark = pytest.mark.usefixtures("narrow", "quick")

TRAIN = "selfsup_task/train_barlow_twins.py"
SMALL = ["--img-res", "16", "--store-res", "32", "--batch-size", "48", "--num-epochs", "2", "--lr", "1e-3"]
SMALL += ["--backbone", "resnet18", "--start", "random", "--warmup-epochs", "1"]
SMALL += ["--projector-dims", "32", "--probe-every", "2", "--checkpoint-minutes", "0"]
SCRIPTS = sorted(
    path.relative_to(REPO_ROOT).as_posix()
    for path in (REPO_ROOT / "selfsup_task").glob("*.py")
    if "run_script(" in path.read_text(encoding="utf-8")
)


def typed(name: str, data: Path, *more: str) -> list[str]:
    dataset = "chexpert" if data.name == CHEXPERT_ROOT else "covid"
    return [*SMALL, "--dataset", dataset, "--data-root", str(data), "--run-name", name, *more]


@pytest.fixture(scope="module")
def finished(
    narrow: None, quick: None, phantoms: Path, script: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any]:
    """The name of a run of the COVID layout, and what its command said."""
    folder = tmp_path_factory.mktemp("finished")
    name = f"{folder.parent.name}/{folder.name}"
    return name, script(TRAIN, *typed(name, phantoms / COVID_ROOT))


def timeless(folder: Path) -> pd.DataFrame:
    rows = pd.read_csv(folder / "metrics.csv")
    return rows.drop(columns="time/images_per_second")


def test_a_run_leaves_what_its_readme_says_and_is_not_repeated(
    finished: tuple[str, Any], phantoms: Path, script: Any
) -> None:
    name, done = finished
    assert done.returncode == 0, done.stderr
    assert "synthetic X-rays" in done.stdout
    assert "linear probe" in done.stdout
    folder = RUNS_ROOT / name
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "environment.json",
        "split.csv",
        "metrics.csv",
        "resnet18_final_state_dict.pt",
        "summary.json",
        "figures/views.png",
        "figures/recipe.png",
        "figures/curves.png",
        "figures/cross_correlation.png",
    } <= files
    assert "checkpoint.pt" not in files
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["synthetic"] is True
    assert summary["epochs"] == 2
    plain = models.get_model("resnet18")
    plain.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    plain.load_state_dict(torch.load(folder / "resnet18_final_state_dict.pt", weights_only=True), strict=True)
    split = pd.read_csv(folder / "split.csv")
    assert summary["images"] == (split["part"] == "train").sum()

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = script(TRAIN, *typed(name, phantoms / COVID_ROOT))
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    weights = folder / "resnet18_final_state_dict.pt"
    weights.rename(folder.parent / "moved.pt")
    gone = script(TRAIN, *typed(name, phantoms / COVID_ROOT))
    (folder.parent / "moved.pt").rename(weights)
    assert gone.returncode == 1
    assert "is finished, but resnet18_final_state_dict.pt is not there any more; restore it" in gone.stderr

    other = script(TRAIN, *typed(name, phantoms / COVID_ROOT, "--lr", "0.5"))
    assert other.returncode == 1
    assert "lr (0.001 there, 0.5 now)" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    # the command that it prints last is one for the same images and the new encoder
    following = shlex.split(done.stdout.rpartition("next: ")[2])
    for flag, value in {"--dataset": "covid", "--store-res": "32", "--data-root": str(phantoms / COVID_ROOT)}.items():
        assert following[following.index(flag) + 1] == value
    assert f"runs/{name}/resnet18_final_state_dict.pt" in following


@pytest.mark.skipif(not hasattr(os, "fork") or torch.cuda.is_available(), reason="forks, which CUDA does not allow")
def test_a_run_killed_in_the_middle_resumes_to_the_same_end(
    finished: tuple[str, Any], name: str, phantoms: Path, script: Any
) -> None:
    whole, killed, data = RUNS_ROOT / finished[0], RUNS_ROOT / name, phantoms / COVID_ROOT
    process = multiprocessing.get_context("fork").Process(target=script, args=(TRAIN, *typed(name, data)))
    process.start()
    deadline = time.monotonic() + 300
    while not (killed / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert (killed / "checkpoint.pt").exists()
    assert not (killed / "summary.json").exists()
    resumed = script(TRAIN, *typed(name, data))
    assert "resuming" in resumed.stderr
    pd.testing.assert_frame_equal(timeless(whole), timeless(killed), check_exact=True)
    first, second = (
        torch.load(folder / "resnet18_final_state_dict.pt", weights_only=True) for folder in (whole, killed)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_chexperts_layout_trains_by_patient_and_its_findings_are_probed(name: str, phantoms: Path, script: Any) -> None:
    done = script(TRAIN, *typed(name, phantoms / CHEXPERT_ROOT))
    assert done.returncode == 0, done.stderr
    folder = RUNS_ROOT / name
    split = pd.read_csv(folder / "split.csv")
    assert len(split["group"].unique()) < len(split)  # patients have several images
    assert len(split[["group", "part"]].drop_duplicates()) == len(set(split["group"]))
    assert all("frontal" in file for file in split["file"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["images"] == (split["part"] == "train").sum()
    assert (summary["metric"], summary["chance"]) == ("auroc", 0.5)


@pytest.mark.parametrize("path", SCRIPTS)
def test_help_and_a_wrong_flag_answer_before_the_slow_imports(path: str) -> None:
    look = "import runpy, sys\nsys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    look += "finally: print(sorted({'torch', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    for word, code in (("--help", 0), ("--num-epoch", 1)):
        done = subprocess.run([sys.executable, "-c", look, str(REPO_ROOT / path), word], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert done.stdout.endswith("[]\n")


def test_a_mistake_is_one_sentence_on_stderr_and_leaves_nothing(name: str, phantoms: Path, script: Any) -> None:
    done = script(TRAIN, *typed(name, phantoms / "absent"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for word in ("absent", "Kaggle", "--dataset phantom"):
        assert word in done.stderr
    assert not (RUNS_ROOT / name).exists()
