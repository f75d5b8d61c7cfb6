"""The scans as a user runs them: small, killed and run again; what they refuse; cells that run out of memory."""

import importlib
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

from dataset_loader.phantom_dataset import COVID_ROOT
from selfsup_task import resources
from selfsup_task.scan_base import PRETRAINING, SCAN_BASE
from selfsup_task.timing import StepTimes
from utils.config import REPO_ROOT, UserError

RUNS = REPO_ROOT / "runs" / "tests"
SMALL = {"img_res": 32, "store_res": 32, "batch_size": 64, "threads": 1, "projector_dims": [16]}
GRID = {"lambdas": [5e-3], "projectors": ["16-16"]}


@pytest.fixture
def names(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    test = request.node.name.translate(str.maketrans("[]/", "---"))
    folders = [RUNS / f"{os.getpid()}-{test}-{n}" for n in range(2)]
    yield [folder.relative_to(REPO_ROOT / "runs").as_posix() for folder in folders]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def small(name: str, phantoms: Path, **changes: Any) -> dict[str, Any]:
    finetune = {**SCAN_BASE["finetune"], "num_steps": 2, "evaluations": 1, "batch_size": 8}
    data = {"dataset": "covid", "data_root": str(phantoms / COVID_ROOT), "run_name": name}
    return {**SMALL, "finetune": finetune, **data, **changes}


def scan(script: str, changes: dict[str, Any]) -> None:
    """The script's main with its own config, changed in the keys that it has."""
    module = importlib.import_module(f"selfsup_task.{script}")
    module.main({**module.config, **{key: value for key, value in changes.items() if key in module.config}})


def flags(config: dict[str, Any], prefix: str = "") -> list[str]:
    """The same changes as a user types them."""
    typed: list[str] = []
    for key, value in config.items():
        if isinstance(value, dict):
            typed += flags(value, f"{prefix}{key}.")
        elif not isinstance(value, bool):
            values = value if isinstance(value, list) else [value]
            typed += [f"--{prefix}{key.replace('_', '-')}", *map(str, values)]
    return typed


def test_a_killed_scan_ends_with_the_table_of_an_undisturbed_one(
    names: list[str], phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "scan_best_hyperparameters"
    scan(script, small(names[0], phantoms, **GRID))
    printed = capsys.readouterr()
    assert "best by linear on validation, one run each, synthetic: lambda0.005_p" in printed.out
    assert "1 of 1 trials to run" in printed.err
    path = REPO_ROOT / "selfsup_task" / f"{script}.py"
    typed = small(names[1], phantoms, **GRID)
    command = [sys.executable, str(path), *flags({key: typed[key] for key in typed if key != "projector_dims"})]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    begun = REPO_ROOT / "runs" / names[1] / "lambda0.005_p16-16" / "pretrain" / "checkpoint.pt"
    while not begun.exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (begun.parent.parent / "summary.json").exists()
    scan(script, small(names[1], phantoms, **GRID))
    undisturbed, resumed = (pd.read_csv(REPO_ROOT / "runs" / name / "summary.csv") for name in names)
    pd.testing.assert_frame_equal(undisturbed, resumed, check_exact=True)
    assert list((REPO_ROOT / "runs" / names[1] / "figures").glob("*.png"))


def test_transformations_and_another_scan_in_their_folder(names: list[str], phantoms: Path) -> None:
    scan("scan_best_transformations", small(names[0], phantoms, recipes=["base"]))
    with pytest.raises(UserError, match="holds a run with another config: "):
        scan("scan_best_hyperparameters", small(names[0], phantoms, **GRID))
    table = pd.read_csv(REPO_ROOT / "runs" / names[0] / "summary.csv")
    assert table["trial"].tolist() == ["base"]
    assert table[["linear", "full"]].notna().to_numpy().all()


def test_learning_rates(names: list[str], phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"schedulers": ["cosine"], "num_epochs": 1, "range_steps": 10}
    scan("scan_optimal_lr", small(names[0], phantoms, **changes))
    assert "pretraining: the smoothed loss falls steepest at lr" in capsys.readouterr().out
    assert (REPO_ROOT / "runs" / names[0] / "range_finetuning" / "figures" / "lr_range.png").exists()
    assert (REPO_ROOT / "runs" / names[0] / "schedulers" / "summary.csv").exists()


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        ("scan_best_transformations", {"recipes": ["bas"]}, "did you mean 'base'"),
        ("scan_best_transformations", {"only": ["bas"]}, "did you mean 'base'"),
        ("scan_best_transformations", {"recipes": []}, "has no trials"),
        ("scan_best_hyperparameters", {"projectors": ["12x"]}, "such as 512-1024"),
        ("scan_best_hyperparameters", {"pretrain_on": "all"}, "must be unseen"),
        ("scan_best_hyperparameters", {"backbone": "resnet19"}, "did you mean 'resnet18'"),
        ("scan_best_hyperparameters", {"finetune": {"lr": 1.0}}, "config lacks findings"),
        ("scan_best_hyperparameters", {"batch_size": 1000}, "batch_size is 1000 but there are"),
        ("check_bt_resources", {"batch_sizes": [1000]}, "batch_size is 1000 but there are"),
        ("scan_optimal_lr", {"tasks": ["finetune"]}, "did you mean 'finetuning'"),
        ("check_bt_resources", {"backbones": []}, "has no trials"),
    ],
)
def test_what_cannot_be_scanned_is_refused(
    names: list[str], phantoms: Path, script: str, changes: dict[str, Any], message: str
) -> None:
    config = small(names[0], phantoms)
    with pytest.raises(UserError, match=message):
        scan(script, {**config, **changes})
    assert not (REPO_ROOT / "runs" / names[0]).exists()


def cell(**changes: Any) -> Any:
    return {**PRETRAINING, "run_name": "", **changes}


def _dies(config: Any, answer: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _has_a_bug(config: Any, answer: Any) -> None:
    answer.send(("error", "ZeroDivisionError: division by zero"))


def test_a_cell_without_memory_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_measure_here", _dies)
    row = resources.measure(cell(), 1000, 1)
    assert row["out_of_memory"] is True
    assert "memory" in row["reason"]


def test_a_cell_without_memory_does_not_end_the_scan(
    names: list[str], phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(config: Any) -> dict[str, Any]:
        if config["img_res"] == 32:
            raise resources.OutOfMemory("not enough memory")
        return {"times": StepTimes(0.0, 0.1, 0.5, 10**9)._asdict(), "store": 0.001, "bytes_on_gpu": 0}

    monkeypatch.setattr(resources, "_in_a_process", measured)
    scan("check_bt_resources", small(names[0], phantoms, resolutions=[32, 48], backbones=["resnet18"], batch_sizes=[8]))
    folder = REPO_ROOT / "runs" / names[0]
    table = pd.read_csv(folder / "summary.csv").set_index("trial")
    assert table["out_of_memory"].to_dict() == {"resnet18_1ch_32px_b8": True, "resnet18_1ch_48px_b8": False}
    assert not table["error"].notna().to_numpy().any()
    assert table.loc["resnet18_1ch_48px_b8", "images_per_second"] == 16
    assert (folder / "figures" / "resources.png").exists()


def test_another_failure_is_not_called_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_measure_here", _has_a_bug)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        resources.measure(cell(), 1000, 1)


def test_what_counts_as_out_of_memory() -> None:
    assert resources.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert resources.is_out_of_memory(MemoryError())
    try:
        torch.empty(2**58)
    except RuntimeError as error:
        assert resources.is_out_of_memory(error)
    assert not resources.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not resources.is_out_of_memory(ValueError("out of memory"))


def test_a_forecast_counts_the_store_the_steps_and_what_is_probed() -> None:
    times = StepTimes(reading=0.0, views=0.1, step=2.0, memory=0)
    config = cell(batch_size=100, probe_every=1)
    steps, probed = 8 * 3, 4 * (500 + 100) + 4 * 800
    assert resources.forecast(times, 0.5, config, 1000, 3) == pytest.approx(500 + 2 * (steps + probed / 6 / 100))
