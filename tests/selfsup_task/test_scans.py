"""The scans as a user runs them: small, killed and run again; what they refuse; cells that run out of memory."""

import importlib
import json
import math
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

from dataset_loader.phantoms.dataset import COVID_ROOT
from selfsup_task import resources
from selfsup_task.scan_base import PRETRAINING, SCAN_BASE
from selfsup_task.scan_best_hyperparameters import draw as draw_grid
from selfsup_task.timing import StepTimes
from utils.config import REPO_ROOT, UserError
from utils.scan_plots import heat_maps

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


def test_transformations_and_another_scan_in_their_folder(
    names: list[str], phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan("scan_best_transformations", small(names[0], phantoms, recipes=["base"]))
    printed = capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run with another config: "):
        scan("scan_best_hyperparameters", small(names[0], phantoms, **GRID))
    table = pd.read_csv(REPO_ROOT / "runs" / names[0] / "summary.csv")
    assert table["trial"].tolist() == ["base"]
    for column, method in (("linear", "linear"), ("full", "finetune")):
        folder = REPO_ROOT / "runs" / names[0] / "base" / method
        config, found = (json.loads((folder / f"{part}.json").read_text()) for part in ("config", "summary"))
        assert table[column].tolist() == [found["score"]]
        assert (config["method"], config["trainable"]) == (method, "all")
        assert config["encoder"].endswith(f"{names[0]}/base/pretrain/resnet18_final_state_dict.pt")
    assert table["full_step"].tolist() == [found["step_best"]]
    folder = REPO_ROOT / "runs" / names[0] / "random" / "linear"
    random, setting = (json.loads((folder / f"{part}.json").read_text()) for part in ("summary", "config"))
    assert (setting["encoder"], setting["random_seed"]) == ("random", config["random_seed"])
    assert f"random weights, linear: {random['score']:.3f}" in printed
    assert ("No trial is better than random weights" in printed) == (table["linear"].max() <= random["score"])
    assert table[["linear", "full"]].notna().to_numpy().all()


def test_learning_rates(names: list[str], phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"schedulers": ["cosine"], "num_epochs": 1, "range_steps": 10}
    scan("scan_optimal_lr", small(names[0], phantoms, **changes))
    assert "pretraining: the smoothed loss falls steepest at lr" in capsys.readouterr().out
    assert (REPO_ROOT / "runs" / names[0] / "range_finetuning" / "figures" / "lr_range.png").exists()
    assert (REPO_ROOT / "runs" / names[0] / "schedulers" / "summary.csv").exists()
    with pytest.raises(UserError, match="holds another run"):
        scan("scan_optimal_lr", small(f"{names[0]}/schedulers", phantoms, **changes))


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
        ("scan_optimal_lr", {"schedulers": ["warmup+cosine"], "num_epochs": 1}, "needs 2 epochs or more"),
        ("check_bt_resources", {"channels": [2]}, "in_channels is 2"),
        ("check_bt_resources", {"projector_dims": [0]}, "projector_dims is"),
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


def test_both_heat_maps_show_their_own_score() -> None:
    scores = {"linear": [0.1, 0.2], "full": [0.3, 0.4], "metric": "auroc", "synthetic": False}
    figure = draw_grid(pd.DataFrame({"trial": ["lambda0.005_p512", "lambda0.0005_p512"], **scores}), 0.25)
    shown = {ax.get_title(): [text.get_text() for text in ax.texts] for ax in figure.axes if ax.texts}
    assert list(shown.values()) == [["0.100", "0.200"], ["0.300", "0.400"]]  # the larger lambda on top
    assert next(iter(shown)) == "linear probe"
    assert "random weights, linear probe: 0.250" in figure.get_suptitle()


def test_cost_and_forecast_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times = StepTimes(reading=0.1, views=0.3, step=0.5, memory=2_000_000_000)
    answer = {"times": times._asdict(), "store": 0.01, "bytes_on_gpu": 100}
    monkeypatch.setattr(resources, "_in_a_process", lambda config: answer)
    row = resources.measure(cell(batch_size=10), num_images=1000, forecast_epochs=2)
    # 2 x 80 steps, and forward passes: (2 + 1) x 800 for health, 500 + 100 for a probe, at a sixth of a pair
    assert row["hours"] == pytest.approx((1000 * 0.01 + (160 + 3000 / 6 / 10) * 0.5) / 3600)
    assert row["bottleneck"] == "views (60%)"
    assert row["images_per_second"] == 20
    assert row["peak_memory_gb"] == pytest.approx(2.0001)


def test_the_forecasts_grid_by_size_and_batch() -> None:
    trials = ["resnet18_1ch_32px_b8", "resnet18_1ch_32px_b16", "resnet18_1ch_64px_b8", "resnet18_1ch_64px_b16"]
    ends = {"out_of_memory": [False, True, None, False], "error": ["", "", "no such layer", ""]}
    grid = resources.grids(pd.DataFrame({"trial": trials, "hours": [1.0, None, None, 4.0], **ends}))
    assert grid["resnet18, 1 channel"].to_numpy().tolist() == [[1, math.inf], [-math.inf, 4]]
    figure = heat_maps(grid, "Forecast", "hours", "{:.0f}")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "out of\nmemory", "failed", "4"]


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
