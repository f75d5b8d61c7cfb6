"""The search over supervised training: the same seed, a killed worker, a broken study."""

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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dataset_loader.phantoms.dataset import COVID_ROOT
from downstream_task import supervised_search
from downstream_task.scan_best_supervised_hyperparameters import config as DEFAULTS
from downstream_task.shared_study import next_turn, open_study
from downstream_task.supervised_search import search
from downstream_task.trained_vs_no_trained_compare import config as COMPARISON
from utils.config import REPO_ROOT, UserError
from utils.logging_utils import Run
from utils.scan_plots import search as search_figure

SCRIPT = REPO_ROOT / "downstream_task" / "scan_best_supervised_hyperparameters.py"
RUNS = REPO_ROOT / "runs" / "tests"


@pytest.fixture
def names(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    folders = [RUNS / f"{os.getpid()}-search-{n}" for n in range(2)]
    yield [folder.relative_to(REPO_ROOT / "runs").as_posix() for folder in folders]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def small(name: str, phantoms: Path, **changes: Any) -> dict[str, Any]:
    data = {"dataset": "covid", "data_root": str(phantoms / COVID_ROOT), "run_name": name}
    sizes = {"img_res": 32, "store_res": 32, "threads": 1, "epochs_range": [1, 2], "batch_sizes": [8, 16]}
    return {**data, **sizes, "num_trials": 3, **changes}


def searched(changes: dict[str, Any]) -> Run:
    whole: Any = {**DEFAULTS, **changes}
    return search(whole)


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(REPO_ROOT / "runs" / name / "summary.csv")


def typed(changes: dict[str, Any]) -> list[str]:
    values = {key: value if isinstance(value, list) else [value] for key, value in changes.items()}
    return [word for key, words in values.items() for word in (f"--{key.replace('_', '-')}", *map(str, words))]


def test_a_killed_search_ends_with_the_same_trials_as_an_undisturbed_one(names: list[str], phantoms: Path) -> None:
    found = searched(small(names[0], phantoms)).summary
    assert found is not None
    assert found["score"] == table(names[0])["score"].max()
    command = [sys.executable, str(SCRIPT), *typed(small(names[1], phantoms))]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    second = REPO_ROOT / "runs" / names[1] / "trial_001" / "checkpoint.pt"
    while not second.exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(table(names[1])) < 3
    searched(small(names[1], phantoms))
    pd.testing.assert_frame_equal(table(names[0]), table(names[1]), check_exact=True)
    assert table(names[1])["trial"].tolist() == [0, 1, 2]


def test_two_workers_never_get_one_trial(tmp_path: Path) -> None:
    here, there = (open_study("", "study", tmp_path, {"a": 1}) for _ in range(2))
    turns = [next_turn(study, tmp_path, 3, seed=0, num_parameters=1) for study in (here, there, here, there)]
    assert [turn and turn.index for turn in turns] == [0, 1, 2, None]
    drawn = [turn.trial.suggest_float("lr", 0.0, 1.0) for turn in turns if turn]
    turns[1].lock.close()  # type: ignore[union-attr]  # the second one's process dies
    again = next_turn(here, tmp_path, 3, seed=0, num_parameters=1)
    assert again is not None
    assert again.index == 1
    assert again.trial.suggest_float("lr", 0.0, 1.0) == drawn[1]


def test_a_larger_number_of_trials_adds_to_the_study(names: list[str], phantoms: Path) -> None:
    searched(small(names[0], phantoms, num_trials=1))
    before = table(names[0])
    searched(small(names[0], phantoms, num_trials=2))
    pd.testing.assert_frame_equal(table(names[0]).iloc[:1], before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_range": [1e-2, 1e-3]}, "lr_range is"),
        ({"batch_sizes": []}, "batch_sizes is empty"),
        ({"num_trials": 0}, "num_trials is 0"),
        ({"encoder": "randon"}, "randon"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    names: list[str], phantoms: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        searched(small(names[0], phantoms, **changes))
    assert not (REPO_ROOT / "runs" / names[0]).exists()


def test_a_trial_that_fails_counts_and_the_others_go_on(
    names: list[str], phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_once(config: Any, *rest: Any, **others: Any) -> Run:
        if config["run_name"].endswith("trial_000"):
            raise UserError("the loss is not finite")
        return finetune(config, *rest, **others)

    finetune = supervised_search.finetune
    monkeypatch.setattr(supervised_search, "finetune", fails_once)
    found = searched(small(names[0], phantoms, num_trials=2)).summary
    assert found is not None
    assert found["failed"] == 1
    assert table(names[0])["state"].tolist() == ["failed", "complete"]
    assert table(names[0])["error"].tolist()[0] == "UserError: the loss is not finite"


class Stub:
    """In the place of `finetune`: scores that depend on the settings alone, falling from the tenth trial on."""

    def __init__(self) -> None:
        self.configs: list[dict[str, Any]] = []

    def __call__(self, config: Any, xrays: Any, show_progress: bool, after_evaluation: Any) -> Any:
        self.configs.append(config)
        if config["run_name"].endswith("trial_003"):
            raise ZeroDivisionError("a bug")
        score = 0.9 - abs(math.log10(config["lr"]) + 3) / 4 - 0.3 * (len(self.configs) > 10)
        for epoch in range(1, config["evaluations"] + 1):
            after_evaluation(epoch, score)
        return SimpleNamespace(summary={"score": score})


def test_a_search_draws_prunes_and_names_its_best(
    names: list[str], phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        stub = Stub()
        monkeypatch.setattr(supervised_search, "finetune", stub)
        changes = {"num_trials": 14, "epochs_range": [3, 3], "random_seed": seed}
        searched(small(f"{names[0]}/{name}", phantoms, **changes))
        runs.append((table(f"{names[0]}/{name}"), stub.configs))
    (first, configs), (again, _), (other, _) = runs
    pd.testing.assert_frame_equal(first, again)
    assert not set(first["lr"]) & set(other["lr"])
    assert first["state"].tolist()[:4] == ["complete"] * 3 + ["failed"]
    assert np.isnan(first["score"][3])
    assert "pruned" not in first["state"].tolist()[:10]
    assert "pruned" in first["state"].tolist()[10:]
    recipes = {(0, 0): "none", (1, 0): "supervised", (0, 1): "crop", (1, 1): "supervised+crop"}
    for row, config in zip(first.to_dict("records"), configs, strict=True):
        assert config["recipe"] == recipes[int(row["flip"]), int(row["crop"])]
        settings = [config[key] for key in ("lr", "optimizer_weight_decay", "batch_size")]
        assert settings == [row["lr"], row["weight_decay"], row["batch_size"]]
    best = json.loads((REPO_ROOT / "runs" / names[0] / "a" / "best.json").read_text())
    assert best["lrs"] == [first.loc[first["score"].idxmax(), "lr"]]
    assert set(best) <= set(COMPARISON)  # ready to paste


def test_a_shared_study_leaves_the_trials_of_other_machines_alone(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    here, there = tmp_path / "here", tmp_path / "there"
    ours, theirs = (open_study(storage, "study", folder, {}) for folder in (here, there))
    unsaid = ours.ask()  # it has not come to say where it runs
    turn = next_turn(ours, here, 9, seed=0, num_parameters=1)
    assert turn is not None
    turn.lock.close()  # dead, as only its own machine can know
    another = next_turn(theirs, there, 9, seed=0, num_parameters=1)
    assert another is not None
    assert another.index == 2
    states = {trial.number: trial.state.name for trial in theirs.trials}
    assert states == {unsaid.number: "RUNNING", turn.trial.number: "RUNNING", another.trial.number: "RUNNING"}
    again = next_turn(ours, here, 9, seed=0, num_parameters=1)
    assert again is not None
    assert again.index == turn.index


def test_a_machine_that_changes_its_name_goes_on_with_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study("", "study", tmp_path, {})
    turn = next_turn(study, tmp_path, 1, seed=0, num_parameters=1)
    assert turn is not None
    turn.lock.close()
    monkeypatch.setattr("platform.node", lambda: "another")
    monkeypatch.setattr("uuid.getnode", lambda: 1)
    again = next_turn(study, tmp_path, 1, seed=0, num_parameters=1)
    assert again is not None
    assert again.index == turn.index


def test_results_of_a_study_in_another_storage_are_not_overwritten(
    names: list[str], phantoms: Path, tmp_path: Path
) -> None:
    searched(small(names[0], phantoms, num_trials=1))
    before = (REPO_ROOT / "runs" / names[0] / "summary.csv").read_bytes()
    with pytest.raises(UserError, match="1 trials that this study does not have; give the --storage"):
        searched(small(names[0], phantoms, num_trials=1, storage=f"sqlite:///{tmp_path / 'other.db'}"))
    assert (REPO_ROOT / "runs" / names[0] / "summary.csv").read_bytes() == before


def test_a_study_of_another_config_is_refused(names: list[str], phantoms: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    searched(small(names[0], phantoms, num_trials=1, storage=storage))
    shutil.rmtree(REPO_ROOT / "runs" / names[0])  # another machine's runs/
    with pytest.raises(UserError, match="is of another config or other images"):
        searched(small(names[0], phantoms, num_trials=1, storage=storage, random_seed=1))


def test_a_study_that_cannot_be_read_is_one_sentence(names: list[str], phantoms: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        searched(small(names[0], phantoms, storage=f"sqlite:///{broken}"))


def test_the_figure_has_an_axis_for_each_parameter_and_for_nothing_else() -> None:
    table = pd.DataFrame({"trial": [0, 1, 2], "lr": [1e-3, 1e-2, 1e-4], "flip": [True, False, True]})
    table = table.assign(score=[0.5, 0.6, np.nan], state=["complete", "complete", "failed"], error=[None, None, "no"])
    figure = search_figure(table, {"lr": 0.8, "flip": 0.2}, "AUROC", "title")
    ticks = next(ax.get_xticklabels() for ax in figure.axes if ax.get_title().startswith("complete trials"))
    assert [tick.get_text() for tick in ticks] == ["lr\n0.001 to 0.01 (log)", "flip\n0 to 1"]
