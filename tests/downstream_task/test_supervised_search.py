"""The search over supervised training: what it draws, a killed worker, several workers, a broken study."""

import json
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dataset_loader.phantoms.dataset import COVID_ROOT
from downstream_task import scan_best_supervised_hyperparameters as scan
from downstream_task.finetuning import EVALUATIONS
from downstream_task.scan_best_supervised_hyperparameters import open_study, search_figure
from downstream_task.trained_vs_no_trained_compare import config as COMPARISON
from utils.config import RUNS_ROOT, UserError, make_config

pytestmark = pytest.mark.usefixtures("narrow", "no_figures")


def small(name: str, phantoms: Path, **changes: Any) -> dict[str, Any]:
    data = {"dataset": "covid", "data_root": str(phantoms / COVID_ROOT), "run_name": name}
    sizes = {"img_res": 32, "store_res": 32, "threads": 1, "jobs": 1, "epochs_range": [1, 1], "batch_sizes": [8, 16]}
    sizes |= {"num_labels": 60, "encoder": "random", "backbone": "resnet18"}
    return {**data, **sizes, "num_trials": 3, **changes}


def search(name: str, phantoms: Path, **changes: Any) -> pd.DataFrame:
    """Search; return summary.csv."""
    scan.main(make_config(scan.SearchConfig, {**scan.config, **small(name, phantoms, **changes)}))
    return pd.read_csv(RUNS_ROOT / name / "summary.csv")


class Stub:
    """Replaces `finetune`: scores that depend on the settings only, and fall from the tenth trial on."""

    def __init__(self) -> None:
        self.configs: list[Any] = []
        self.scores: list[float] = []

    def __call__(self, config: Any, xrays: Any, run: Any, show_progress: bool, after_evaluation: Any) -> None:
        self.configs.append(config)
        if config.run_name.endswith("trial_003"):
            raise ZeroDivisionError("a bug")
        score = 0.9 - abs(math.log10(config.lr) + 3) / 4 - 0.3 * (len(self.configs) > 10)
        for epoch in range(1, EVALUATIONS + 1):
            after_evaluation(epoch, score + 0.05 * (epoch == 1))  # the last weights count
        self.scores.append(score)
        run.start()
        run.finish({"score": score})


def test_a_search_keeps_a_table_and_its_best_but_no_weights(name: str, phantoms: Path) -> None:
    table = search(name, phantoms, num_trials=2)
    summary = json.loads((RUNS_ROOT / name / "summary.json").read_text())
    assert summary["score"] == table["score"].max()
    assert (summary["complete"], summary["labels"]) == (2, 60)
    for number, score in enumerate(table["score"]):
        run = json.loads((RUNS_ROOT / name / f"trial_{number:03d}" / "summary.json").read_text())
        assert (run["score"], run["labels"], run["steps"]) == (
            score,
            60,
            -(-60 // table["batch_size"].tolist()[number]),
        )
    assert (RUNS_ROOT / name / "trial_000" / "metrics.csv").exists()
    assert not list((RUNS_ROOT / name).glob("*/*.pt"))
    more = search(name, phantoms, num_trials=3)
    pd.testing.assert_frame_equal(more.iloc[:2], table)
    assert len(set(more["lr"])) == 3, "a resumed search repeats its draws"


def test_processes_that_start_at_once_draw_other_values(
    name: str, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(scan.SearchConfig, {**scan.config, **small(name, phantoms)})
    monkeypatch.setattr(scan, "finetune", lambda chosen, *_, **__: drawn.append(chosen.lr) or 1 / 0)
    drawn: list[float] = []
    studies = [open_study("", "study", tmp_path, {"random_seed": 0}) for _ in range(2)]
    for study in studies:
        study.optimize(lambda trial: scan.train(trial, config, xrays=None), n_trials=2, catch=(Exception,))  # type: ignore[arg-type]
    assert len(set(drawn)) == 4


def test_a_killed_search_continues_with_the_trials_that_are_left(name: str, phantoms: Path) -> None:
    killed = multiprocessing.get_context("spawn").Process(target=search, args=(name, phantoms))
    killed.start()
    second = RUNS_ROOT / name / "trial_001" / "config.json"
    while not second.exists() and killed.is_alive():
        time.sleep(0.01)
    killed.kill()
    killed.join()
    before = pd.read_csv(RUNS_ROOT / name / "summary.csv")
    assert len(before) < 3
    after = search(name, phantoms)
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert sum(state in ("complete", "pruned") for state in after["state"]) == 3


def test_a_trial_that_fails_is_recorded_and_the_others_continue(
    name: str, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "finetune", Stub())
    with pytest.raises(UserError, match=r"1 of 5 trials failed: 3 \(ZeroDivisionError: a bug\)"):
        search(name, phantoms, num_trials=5)
    table = pd.read_csv(RUNS_ROOT / name / "summary.csv")
    assert table["state"].tolist() == ["complete"] * 3 + ["failed", "complete"]
    assert table["error"].tolist()[3] == "ZeroDivisionError: a bug"
    assert np.isnan(table["score"].tolist()[3])


def test_a_search_draws_prunes_and_names_its_best(name: str, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for folder, seed, trials in (("a", 0, 14), ("b", 0, 14), ("c", 1, 4)):
        stub = Stub()
        monkeypatch.setattr(scan, "finetune", stub)
        with pytest.raises(UserError, match=f"1 of {trials} trials failed"):
            search(f"{name}/{folder}", phantoms, num_trials=trials, epochs_range=[3, 3], random_seed=seed)
        assert not set(stub.scores) - set(pd.read_csv(RUNS_ROOT / name / folder / "summary.csv")["score"])
        runs.append((pd.read_csv(RUNS_ROOT / name / folder / "summary.csv"), stub.configs))
    (first, configs), (again, _), (other, _) = runs
    pd.testing.assert_frame_equal(first, again)
    assert not set(first["lr"]) & set(other["lr"])
    assert "pruned" not in first["state"].tolist()[:10]
    assert "pruned" in first["state"].tolist()[10:]
    assert first.loc[first["state"] != "failed", "score"].notna().all()
    recipes = {(0, 0): "none", (1, 0): "supervised", (0, 1): "crop", (1, 1): "supervised+crop"}
    for row, config in zip(first.to_dict("records"), configs, strict=True):
        assert config.recipe == recipes[int(row["flip"]), int(row["crop"])]
        settings = [config.lr, config.optimizer_weight_decay, config.batch_size]
        assert settings == [row["lr"], row["weight_decay"], row["batch_size"]]
    best = json.loads((RUNS_ROOT / name / "a" / "best.json").read_text())
    assert best["finetuning"]["lr"] == first.loc[first["score"].idxmax(), "lr"]
    assert set(best["finetuning"]) <= set(COMPARISON)  # trained_vs_no_trained_compare.py --from takes them


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_range": [1e-2, 1e-3]}, "lr_range is"),
        ({"encoder": "randon"}, "randon"),
    ],
)
def test_a_search_that_cannot_be_run_is_refused(
    name: str, phantoms: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        search(name, phantoms, **changes)
    assert not (RUNS_ROOT / name).exists()


def test_a_study_of_another_config_or_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    storage, broken = f"sqlite:///{tmp_path / 'shared.db'}", tmp_path / "broken.db"
    open_study(storage, "study", tmp_path / "here", {"random_seed": 0})
    with pytest.raises(UserError, match="has another config or other images"):
        open_study(storage, "study", tmp_path / "there", {"random_seed": 1})
    broken.write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(UserError, match="cannot be opened"):
        open_study(f"sqlite:///{broken}", "study", tmp_path, {"random_seed": 0})


def test_the_figure_has_a_panel_for_each_parameter_and_for_nothing_else() -> None:
    table = pd.DataFrame({"trial": [0, 1, 2], "lr": [1e-3, 1e-2, 1e-4], "flip": [True, False, True]})
    table = table.assign(score=[0.5, 0.6, np.nan], state=["complete", "complete", "failed"], error=[None, None, "no"])
    figure = search_figure(table, {"lr": 0.8}, "AUROC", "title")
    assert [ax.get_xlabel() for ax in figure.axes] == ["trial", "lr, explains 80%", "flip"]
    assert [ax.get_xscale() for ax in figure.axes] == ["linear", "log", "linear"]
    assert [tick.get_text() for tick in figure.axes[2].get_xticklabels()] == ["off", "on"]
