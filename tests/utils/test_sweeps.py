"""Sweeps: which trials are run, looked up or tried again, and what a killed process leaves to the next."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from utils import sweeps
from utils.config import UserError
from utils.logging_utils import Run
from utils.sweeps import check_all_finished, check_trial_names, run_trials

VALUES = {"a": 0.2, "b": 0.9, "c": 0.5}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "SECONDS_BETWEEN_LOOKS", 0.05)


def opened(root: Path, names: Iterable[str] = VALUES) -> tuple[Run, dict[str, Run]]:
    run = Run("scan", {"seed": 1}, "scan", root)
    trials = {name: Run(f"scan/{name}", {"value": VALUES.get(name, 0.1)}, "trial", root) for name in names}
    run.start(alone=False)
    return run, trials


def score(trial: Run, seconds: float = 0.0) -> None:
    """A trial that leaves a file beside the runs for each time it is started."""
    trial.start()
    folder = trial.folder.parents[1] / "started"
    folder.mkdir(exist_ok=True)
    (folder / f"{trial.folder.name}-{os.getpid()}-{time.monotonic_ns()}").touch()
    time.sleep(seconds)
    trial.finish({"score": trial.config["value"] / 2})


def started(root: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (root / "started").iterdir())


def sweep(root: Path, names: Iterable[str] = VALUES, work: Callable[[Run], None] = score) -> pd.DataFrame:
    run, trials = opened(root, names)
    return run_trials(run, trials, work)


def test_each_trial_is_a_row(tmp_path: Path) -> None:
    table = sweep(tmp_path)
    assert table[["trial", "score", "error"]].to_numpy().tolist() == [["a", 0.1, ""], ["b", 0.45, ""], ["c", 0.25, ""]]
    stored = pd.read_csv(tmp_path / "scan" / "summary.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(stored, table)
    check_all_finished(table, ["a", "b", "c"])


def test_finished_trials_are_looked_up_and_those_of_earlier_calls_listed(tmp_path: Path) -> None:
    assert sweep(tmp_path, ["b"])["trial"].tolist() == ["b"]
    assert sweep(tmp_path, ["d"])["trial"].tolist() == ["d", "b"]
    shutil.rmtree(tmp_path / "scan" / "d")
    assert sweep(tmp_path)["trial"].tolist() == ["a", "b", "c"]
    assert started(tmp_path) == ["a", "b", "c", "d"]


def test_a_failed_trial_is_recorded_and_tried_again_by_the_next_call(tmp_path: Path) -> None:
    def fails(trial: Run) -> None:
        if trial.config["value"] == 0.9:
            raise UserError("no such thing")
        if trial.config["value"] == 0.5:
            raise ZeroDivisionError("a bug")
        score(trial)

    table = sweep(tmp_path, work=fails)
    assert table["error"].tolist() == ["", "no such thing", "ZeroDivisionError: a bug"]
    with pytest.raises(UserError, match=r"2 of 3 trials failed: b \(no such thing\); c \(ZeroDivisionError"):
        check_all_finished(table, ["a", "b", "c"])
    check_all_finished(table, ["a"])  # those of earlier calls do not count
    assert sweep(tmp_path)["error"].tolist() == ["", "", ""]
    assert started(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("names", "only", "message"),
    [
        ([], [], "there are no trials"),
        (["a", "b"], ["bb"], "only names 'bb', which is not a trial; did you mean 'b'"),
        (["../a"], [], "trial name '../a' cannot be a folder"),
        ([".a"], [], "trial name '.a' cannot be a folder"),
    ],
)
def test_names_are_checked(names: list[str], only: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_trial_names(names, only)
    check_trial_names(["lr1e-3+base", "b"], ["b"])


def _work(root: Path, seconds: float) -> None:
    sweep(root, work=lambda trial: score(trial, seconds))


def worker(root: Path, seconds: float) -> Any:
    process = multiprocessing.get_context("fork").Process(target=_work, args=(root, seconds))
    process.start()
    return process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_share_the_trials(tmp_path: Path) -> None:
    workers = [worker(tmp_path, 0.4) for _ in range(2)]
    for process in workers:
        process.join()
        assert process.exitcode == 0
    assert started(tmp_path) == ["a", "b", "c"]
    assert len({path.name.split("-")[1] for path in (tmp_path / "started").iterdir()}) == 2
    assert pd.read_csv(tmp_path / "scan" / "summary.csv")["trial"].tolist() == ["a", "b", "c"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_trial_of_a_killed_process_is_run_by_the_next(tmp_path: Path) -> None:
    dying = worker(tmp_path, 30.0)
    while not [*(tmp_path / "started").glob("a-*")]:
        time.sleep(0.02)
    os.kill(dying.pid, signal.SIGKILL)
    dying.join()
    assert sweep(tmp_path)["score"].tolist() == [0.1, 0.45, 0.25]
    assert started(tmp_path) == ["a", "a", "b", "c"]
