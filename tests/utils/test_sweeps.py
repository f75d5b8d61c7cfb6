"""Sweeps: what is run, what is looked up, what fails, what a killed process leaves to the next."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from utils import logging_utils, sweeps
from utils.config import UserError
from utils.sweeps import check_all_finished, open_sweep, ranked, run_sweep

SHARED = {"seed": 1, "slow": 0.0}
TRIALS = {name: {"value": value} for name, value in {"a": 0.2, "b": 0.9, "c": 0.5}.items()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(logging_utils.Run.__init__, "__defaults__", (tmp_path,))
    monkeypatch.setattr(sweeps, "SECONDS_BETWEEN_LOOKS", 0.05)
    return tmp_path


def sweep(trial: Any, trials: Mapping[str, Any] = TRIALS, only: tuple[str, ...] = ()) -> pd.DataFrame:
    return run_sweep(*open_sweep("scan", SHARED, trials, only), trial, only)


def score(config: dict[str, Any]) -> dict[str, Any]:
    """A trial that leaves a file for each time it is begun."""
    folder = logging_utils.Run.__init__.__defaults__[0] / "begun"  # type: ignore[index]  # set by the fixture
    folder.mkdir(exist_ok=True)
    (folder / f"{config['run_name'].replace('/', '_')}-{os.getpid()}-{time.monotonic_ns()}").touch()
    time.sleep(config["slow"])
    return {"score": config["value"] / 2}


def begun(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (folder / "begun").iterdir())


def test_each_trial_gets_its_config_and_the_best_comes_first(elsewhere: Path) -> None:
    table = sweep(score)
    assert table[["trial", "score", "error"]].to_numpy().tolist() == [["a", 0.1, ""], ["b", 0.45, ""], ["c", 0.25, ""]]
    assert ranked(table, "score")["trial"].tolist() == ["b", "c", "a"]
    stored = pd.read_csv(elsewhere / "scan" / "summary.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(stored, table)
    check_all_finished(table, ["a", "b", "c"])


def test_finished_trials_are_looked_up_and_only_runs_a_part(elsewhere: Path) -> None:
    assert sweep(score, only=("b",))["trial"].tolist() == ["b"]
    assert sweep(score, {"d": {"value": 0.1}})["trial"].tolist() == ["d", "b"]  # other lists add to it
    shutil.rmtree(elsewhere / "scan" / "d")
    assert sweep(score, only=("a",))["trial"].tolist() == ["a", "b"]
    assert sweep(score)["trial"].tolist() == ["a", "b", "c"]
    assert begun(elsewhere) == ["scan_a", "scan_b", "scan_c", "scan_d"]


def test_a_failing_trial_is_recorded_and_tried_again_by_the_next_call(elsewhere: Path) -> None:
    def fails(config: dict[str, Any]) -> dict[str, Any]:
        if config["value"] == 0.9:
            raise UserError("no such thing")
        if config["value"] == 0.5:
            raise ZeroDivisionError("a bug")
        return score(config)

    table = sweep(fails)
    assert table["error"].tolist() == ["", "no such thing", "ZeroDivisionError: a bug"]
    assert ranked(table, "score")["trial"].tolist() == ["a"]
    with pytest.raises(UserError, match=r"2 of 3 trials failed: b \(no such thing\); c \(ZeroDivisionError"):
        check_all_finished(table, ["a", "b", "c"])
    check_all_finished(table, ["a"])  # those of earlier calls are not this call's
    assert sweep(score)["error"].tolist() == ["", "", ""]
    assert begun(elsewhere) == ["scan_a", "scan_b", "scan_c"]


def test_a_failed_trial_is_not_tried_again_by_each_process_that_saw_it_fail(elsewhere: Path) -> None:
    def fails(config: dict[str, Any]) -> dict[str, Any]:
        score(config)
        raise UserError("no such thing")

    _, trials = open_sweep("scan", SHARED, {"a": TRIALS["a"]})
    assert sweeps._settle(trials["a"], fails, failed_before=None)
    seen = trials["a"].failed_at
    assert seen is not None
    assert sweeps._settle(trials["a"], fails, failed_before=seen)  # the first process that comes back to it
    assert sweeps._settle(trials["a"], fails, failed_before=seen)  # the second
    assert begun(elsewhere) == ["scan_a", "scan_a"]


def test_trials_on_other_images_are_refused(elsewhere: Path) -> None:
    run_sweep(*open_sweep("scan", SHARED, TRIALS), score, data={"images": 240})
    with pytest.raises(UserError, match="was begun with other data"):
        run_sweep(*open_sweep("scan", SHARED, TRIALS), score, data={"images": 160})


@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON"), ("[1]", "holds no JSON object")])
def test_a_damaged_trial_is_one_sentence(elsewhere: Path, content: str, message: str) -> None:
    sweep(score)
    (elsewhere / "scan" / "b" / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        sweep(score, only=("a",))
    with pytest.raises(UserError, match=message):
        sweep(score, {"d": {"value": 0.1}})


def test_a_file_in_a_trials_place_is_one_sentence(elsewhere: Path) -> None:
    sweep(score, only=("b",))
    (elsewhere / "scan" / "a").touch()
    with pytest.raises(UserError, match="is a file, no run's folder"):
        sweep(score)


@pytest.mark.parametrize(
    ("shared", "trials", "only", "message"),
    [
        (SHARED, {}, (), "has no trials"),
        (SHARED, TRIALS, ("bb",), "did you mean 'b'"),
        (SHARED, {"../a": {}}, (), "makes no folder"),
        ({**SHARED, "seed": 2}, TRIALS, (), "seed \\(1 there, 2 now\\)"),
        (SHARED, {"a": {"value": 7}}, (), "value \\(0.2 there, 7 now\\)"),
    ],
)
def test_what_cannot_be_run_is_refused_and_nothing_is_touched(
    elsewhere: Path, shared: dict[str, Any], trials: dict[str, Any], only: tuple[str, ...], message: str
) -> None:
    sweep(score)
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        open_sweep("scan", shared, trials, only)
    assert before == {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}


def _work(folder: Path, slow: float) -> None:
    logging_utils.Run.__init__.__defaults__ = (folder,)  # type: ignore[misc]  # a process of its own
    run_sweep(*open_sweep("scan", SHARED, {name: {**t, "slow": slow} for name, t in TRIALS.items()}), score)


def worker(folder: Path, slow: float) -> Any:
    process = multiprocessing.get_context("fork").Process(target=_work, args=(folder, slow))
    process.start()
    return process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_share_the_trials(elsewhere: Path) -> None:
    workers = [worker(elsewhere, 0.4) for _ in range(2)]
    for process in workers:
        process.join()
        assert process.exitcode == 0
    assert begun(elsewhere) == ["scan_a", "scan_b", "scan_c"]
    assert len({name.name.split("-")[1] for name in (elsewhere / "begun").iterdir()}) == 2
    assert pd.read_csv(elsewhere / "scan" / "summary.csv")["trial"].tolist() == ["a", "b", "c"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_trial_of_a_killed_process_is_taken_over(elsewhere: Path) -> None:
    dying = worker(elsewhere, 30.0)
    while not (elsewhere / "begun").exists():
        time.sleep(0.02)
    os.kill(dying.pid, signal.SIGKILL)
    dying.join()
    # its config says slow = 30: the same trial, which is run again from the start
    config = {name: {**trial, "slow": 30.0} for name, trial in TRIALS.items()}
    table = run_sweep(*open_sweep("scan", SHARED, config), lambda c: score({**c, "slow": 0.0}))
    assert table["score"].tolist() == [0.1, 0.45, 0.25]
    assert begun(elsewhere) == ["scan_a", "scan_a", "scan_b", "scan_c"]
