"""The scans as a user runs them: small, killed and run again; what they refuse; cells that run out of memory."""

import importlib
import json
import math
import signal
from pathlib import Path
from typing import Any

import dying
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.phantoms.dataset import COVID_ROOT
from selfsup_task import resources
from selfsup_task.check_bt_resources import grids
from selfsup_task.hyper_utils import by_setting
from selfsup_task.pretraining import PretrainConfig
from selfsup_task.resources import Costs
from selfsup_task.scan_base import SCAN_BASE
from selfsup_task.scan_best_hyperparameters import draw as draw_grid
from selfsup_task.scan_plots import heat_maps
from selfsup_task.train_barlow_twins import config as PRETRAINING
from utils import signals
from utils.config import RUNS_ROOT, UserError, make_config
from utils.logging_utils import Run

pytestmark = pytest.mark.usefixtures("narrow", "few_resamples")

SMALL = {"img_res": 16, "store_res": 32, "batch_size": 64, "threads": 1, "projector_dims": [16], "num_epochs": 2}
SMALL |= {"backbone": "resnet18", "start": "random"}  # what needs no download
SMALL |= {"checkpoint_minutes": 0.0, "jobs": 1, "seeds": [0]}  # a checkpoint after each step
GRID = {"lambdas": [5e-3], "projectors": ["16-16"]}
UNREAD: Any = None  # a cell's config where the measuring process does not look at it
COSTS = Costs(decoding=0.01, reading=0.1, views=0.3, step=0.5, peak_memory=2_000_000_000, stored_on_gpu=100)


@pytest.fixture
def small(phantoms: Path, name: str, quick: None) -> dict[str, Any]:
    """What every scan here changes; its run name is this test's alone."""
    finetune = {**SCAN_BASE["finetune"], "num_labels": 40, "min_steps": 2, "batch_size": 8}
    return {
        **SMALL,
        "finetune": finetune,
        "dataset": "covid",
        "data_root": str(phantoms / COVID_ROOT),
        "run_name": name,
    }


def arguments(script: str, changes: dict[str, Any], prefix: str = "") -> list[str]:
    """The changes as a user types them, those keys that the script has."""
    typed: list[str] = []
    known = importlib.import_module(f"selfsup_task.{script}").config
    for key, value in changes.items():
        if isinstance(value, dict) and key in known:
            typed += arguments(script, value, f"{key}.")
        elif not isinstance(value, bool | dict) and (prefix or key in known):
            values = value if isinstance(value, list) else [value]
            typed += [f"--{prefix}{key.replace('_', '-')}", *map(str, values)]
    return typed


@pytest.fixture
def scan(script: Any) -> Any:
    """scan(name, changes): run the script in this process; what it printed. UserError where it ends with one."""

    def run(name: str, changes: dict[str, Any]) -> str:
        done = script(f"selfsup_task/{name}.py", *arguments(name, changes))
        if done.returncode:
            raise UserError(done.stderr)
        return done.stdout

    return run


def weights_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*.pt"))


def test_a_stopped_scan_ends_with_the_table_of_an_undisturbed_one(
    small: dict[str, Any], scan: Any, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "scan_best_hyperparameters"
    whole, stopped = ({**small, **GRID, "run_name": f"{small['run_name']}/{run}"} for run in ("whole", "stopped"))
    printed = scan(name, whole)
    assert "one run each" in printed and "best by linear: lambda0.005_p16-16" in printed
    save = Run.save_checkpoint

    def save_and_stop(run: Run, *arguments: Any) -> None:
        save(run, *arguments)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save_and_stop)
        assert script(f"selfsup_task/{name}.py", *arguments(name, stopped)).returncode == 143
    signals._signals.number = 0  # a new process has none
    folder = RUNS_ROOT / stopped["run_name"]
    assert (folder / "lambda0.005_p16-16_s0" / "pretrain" / "checkpoint.pt").exists()
    assert not (folder / "lambda0.005_p16-16_s0" / "error.txt").exists()
    assert not (folder / "lambda0.005_p16-16_s0" / "summary.json").exists()
    scan(name, stopped)
    undisturbed, resumed = (pd.read_csv(RUNS_ROOT / one["run_name"] / "summary.csv") for one in (whole, stopped))
    pd.testing.assert_frame_equal(undisturbed, resumed, check_exact=True)
    assert undisturbed[["barlow_lambda", "projector_dims"]].to_numpy().tolist() == [[5e-3, "16-16"]]
    assert (folder / "figures" / "hyperparameters.png").exists()
    assert not weights_in(folder)


FILES = ("config", "summary")


def test_learning_rates(small: dict[str, Any], scan: Any) -> None:
    changes = {**small, "schedulers": ["cosine"], "num_epochs": 1, "range_steps": 10}
    assert "pretraining: the smoothed loss falls steepest at lr" in scan("scan_optimal_lr", changes)
    root = RUNS_ROOT / small["run_name"]
    assert (root / "range_finetuning" / "figures" / "lr_range.png").exists()
    assert (root / "schedulers" / "summary.csv").exists()
    with pytest.raises(UserError, match="holds another run"):
        scan("scan_optimal_lr", {**changes, "run_name": f"{small['run_name']}/schedulers"})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("scan_best_hyperparameters", {"projectors": ["12x"]}, "such as 512-1024"),
        ("scan_best_hyperparameters", {"pretrain_on": "all"}, "must be unseen"),
        ("scan_best_hyperparameters", {"batch_size": 1000}, "batch_size is 1000 but there are"),
        ("scan_optimal_lr", {"schedulers": ["warmup+cosine"], "num_epochs": 1}, "needs 2 epochs or more"),
        ("check_bt_resources", {"channels": [2]}, "channels is 2; an X-ray has 1"),
        ("check_bt_resources", {"backbones": []}, "there are no trials"),
    ],
)
def test_what_cannot_be_scanned_is_refused(
    small: dict[str, Any], scan: Any, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        scan(name, {**small, **changes})
    assert not (RUNS_ROOT / small["run_name"]).exists()


def test_both_heat_maps_show_their_own_score() -> None:
    varied = {"barlow_lambda": [0.0005, 0.005], "projector_dims": ["512", "512"]}
    scores = {"linear": [0.2, 0.1], "full": [0.4, 0.3], "linear_spread": 0.0, "seeds": 1, "metric": "auroc"}
    figure = draw_grid(pd.DataFrame({"setting": ["a", "b"], **varied, **scores, "synthetic": False}), [0.25])
    shown = {ax.get_title(): [text.get_text() for text in ax.texts] for ax in figure.axes if ax.texts}
    assert list(shown.values()) == [["0.100", "0.200"], ["0.300", "0.400"]]  # the larger lambda on top
    assert next(iter(shown)) == "linear probe"
    assert "one run each; the start, linear probe: 0.250" in figure.get_suptitle()


def test_the_worse_half_is_dropped_after_a_third_and_the_best_is_what_the_next_pretraining_takes(
    small: dict[str, Any], scan: Any, script: Any
) -> None:
    changes = {**small, "recipes": ["base", "none"], "seeds": [0, 1], "num_epochs": 3}
    printed = scan("scan_best_transformations", changes)
    root = RUNS_ROOT / small["run_name"]
    trials, ranking = (pd.read_csv(root / f"{name}.csv") for name in ("summary", "ranking"))
    early = [json.loads((root / "early" / name / "summary.json").read_text())["linear"] for name in trials["trial"]]
    first: Any = trials.assign(early=early).groupby("setting")["early"].mean()
    [dropped] = ranking.loc[ranking["seeds"] == 0, "setting"]
    assert first[dropped] == first.min()
    for _, trial in trials.iterrows():
        epochs = pd.read_csv(root / trial["trial"] / "pretrain" / "metrics.csv")["epoch"].tolist()
        assert epochs == ([0, 1] if trial["setting"] == dropped else [0, 1, 2, 3])
    kept = trials.loc[trials["setting"] != dropped].groupby("setting")["linear"]
    found = ranking.loc[ranking["seeds"] > 0].set_index("setting")
    np.testing.assert_allclose(found["linear"], kept.mean()[found.index])
    np.testing.assert_allclose(found["linear_spread"], (kept.max() - kept.min())[found.index])
    assert "dropped after 1 epochs" in printed and not weights_in(root)
    best = found.index[0]
    for column, method in (("linear", "linear"), ("full", "finetune")):
        config, one = (json.loads((root / f"{best}_s0" / method / f"{part}.json").read_text()) for part in FILES)
        assert trials.loc[trials["trial"] == f"{best}_s0", column].tolist() == [one["score"]]
        assert (config["method"], config["trainable"], one["labels"]) == (method, "all", 40)
        assert config["encoder"].endswith(f"{small['run_name']}/{best}_s0/pretrain/resnet18_final_state_dict.pt")
    starts = [json.loads((root / f"start_s{seed}" / "linear" / "summary.json").read_text()) for seed in (0, 1)]
    assert f"the start (random), linear: {np.mean([one['score'] for one in starts]):.3f}" in printed
    # the same command again trains nothing, although the weights are gone; another scan is refused
    assert scan("scan_best_transformations", changes) == printed
    with pytest.raises(UserError, match="holds a run with another config: "):
        scan("scan_best_hyperparameters", {**small, **GRID})
    assert json.loads((root / "best.json").read_text()) == {"pretraining": {"recipe": best}}
    # a pretraining takes it, and flags win over it
    name, train = f"{small['run_name']}/next", "selfsup_task/train_barlow_twins.py"
    flags = arguments("train_barlow_twins", {**small, "run_name": name, "num_epochs": 1, "warmup_epochs": 0})
    flags += ["--start", "random", "--backbone", "resnet18", "--from", str(root / "best.json")]
    assert script(train, *flags).returncode == 0
    assert json.loads((RUNS_ROOT / name / "config.json").read_text())["recipe"] == best
    assert "did you mean 'base'" in script(train, *flags, "--recipe", "bas").stderr
    refused = script("selfsup_task/scan_best_transformations.py", "--from", str(root / "best.json"))
    assert "whose 'recipe' this script does not have" in refused.stderr


def test_settings_that_the_seeds_do_not_tell_apart_are_marked() -> None:
    rows = [("a", 0.60, 0.62, 0.64), ("b", 0.59, 0.61, 0.63), ("c", 0.50, 0.52, 0.51), ("d", 0.39, 0.42, 0.41)]
    trials = pd.DataFrame(
        [
            {
                "trial": f"{name}_s{seed}",
                "setting": name,
                "seed": seed,
                "linear": score,
                "full": score,
                "metric": "auroc",
            }
            for name, *scores in rows
            for seed, score in enumerate(scores)
        ]
    ).assign(metric="auroc", synthetic=False)
    start = [0.40, 0.41, 0.42]
    ranking = by_setting(trials.iloc[::-1], start)
    assert [*zip(ranking["setting"], ranking["note"], strict=True)] == [
        *[("a", ""), ("b", "like the best"), ("c", ""), ("d", "like the start")]
    ]
    groups = [scores for _, *scores in rows] + [start]
    within = stats.f_oneway(*groups)  # Fisher's least significant difference has the same variance
    variance = np.mean([np.var(scores, ddof=1) for scores in groups])
    least = stats.t.ppf(0.975, 10) * np.sqrt(variance * 2 / 3)
    assert within.pvalue < 0.01 and 0.01 < least < 0.10  # b and d are nearer than this, c is not


def cell(**changes: Any) -> PretrainConfig:
    return make_config(PretrainConfig, {**PRETRAINING, **changes})


def columns_of(named: list[str]) -> Columns:
    """The columns of as many images of two classes, with the parts that the source gives."""
    paths, count = np.arange(len(named)).astype(str), len(named)
    labels, none = np.arange(count) % 2, np.full(count, None)
    return Columns(Path(), paths, labels, ("a", "b"), paths, none, np.array(named), pd.DataFrame(index=range(count)))


def test_a_row_of_known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "measure_apart", lambda config: COSTS)
    row = resources.measure(cell(batch_size=10), columns_of([""] * 1000), forecast_epochs=2)
    assert row["bottleneck"] == "views (60%)"
    assert row["images_per_second"] == 20
    assert row["peak_memory_gb"] == pytest.approx(2.0001)


def test_a_forecast_is_the_store_once_and_epochs_that_cost_the_same() -> None:
    def seconds(epochs: int, **changes: Any) -> float:
        config = cell(**{"batch_size": 10, "probe_every": 1, **changes})
        columns = columns_of(["", "train", "val", UNLABELLED] * 500)  # 1,400 of them are for pretraining
        return resources.forecast(COSTS, config, columns, epochs)

    epoch, store, steps = seconds(21) - seconds(20), 2000 * COSTS.decoding, 1400 / 10 * COSTS.step
    assert seconds(40) - seconds(20) == pytest.approx(20 * epoch)
    assert steps < epoch < 2 * steps  # health and probes cost less than the steps
    assert store < seconds(20) - 20 * epoch < store + epoch  # the random network is measured too
    assert seconds(20, probe_every=20) < seconds(20) < seconds(20, pretrain_on="all")


def test_the_forecasts_grid_by_size_and_batch() -> None:
    settings = {f"{size}px_b{batch}": (size, batch) for size in (32, 64) for batch in (8, 16)}
    configs = {
        name: {"backbone": "resnet18", "in_channels": 1, "img_res": size, "batch_size": batch}
        for name, (size, batch) in settings.items()
    }
    ends = {"out_of_memory": [False, True, None, False], "error": ["", "", "no such layer", ""]}
    grid = grids(pd.DataFrame({"trial": list(configs), "hours": [1.0, None, None, 4.0], **ends}), configs)
    assert grid["resnet18, 1 channel"].to_numpy().tolist() == [[1, math.inf], [-math.inf, 4]]
    figure = heat_maps(grid, "Forecast", "hours", "{:.0f}")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "out of\nmemory", "failed", "4"]


def test_a_cell_whose_process_dies_lacks_memory_and_one_with_a_bug_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_costs", dying.dies)
    row = resources.measure(UNREAD, columns_of([""] * 1000), 1)
    assert row["out_of_memory"] is True and "memory" in row["reason"]
    monkeypatch.setattr(resources, "_costs", dying.has_a_bug)
    with pytest.raises(ZeroDivisionError, match="by zero"):
        resources.measure(UNREAD, columns_of([""] * 1000), 1)


def test_a_cell_without_memory_does_not_end_the_scan(
    small: dict[str, Any], scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(config: PretrainConfig) -> Costs:
        if config.img_res == 32:
            raise MemoryError("not enough memory")
        return COSTS

    monkeypatch.setattr(resources, "measure_apart", measured)
    cells = {"resolutions": [32, 48], "backbones": ["resnet18"], "batch_sizes": [8], "device": "cpu"}
    scan("check_bt_resources", {**small, **cells})
    folder = RUNS_ROOT / small["run_name"]
    table = pd.read_csv(folder / "summary.csv").set_index("trial")
    assert table["out_of_memory"].to_dict() == {"resnet18_1ch_32px_b8": True, "resnet18_1ch_48px_b8": False}
    assert table[["backbone", "in_channels", "img_res", "batch_size"]].loc["resnet18_1ch_48px_b8"].tolist() == [
        *("resnet18", 1, 48, 8)
    ]
    assert not table["error"].notna().to_numpy().any()
    assert table.loc["resnet18_1ch_48px_b8", "images_per_second"] == 16
    assert (folder / "figures" / "resources.png").exists()
    assert "1 threads" in json.loads((folder / "environment.json").read_text())["device"]  # those of the cells
