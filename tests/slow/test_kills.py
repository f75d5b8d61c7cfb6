"""Runs that are killed end with the same bits: pretrainings at random moments, and processes of one comparison."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pandas as pd
import pytest
from small_pretraining import TRAIN, Answer, Start, same_result, training

from dataset_loader.phantoms.dataset import COVID_ROOT
from utils.config import REPO_ROOT, RUNS_ROOT
from utils.distributed import try_lock

KILLED_RUNS = 20
MAX_KILLS = 3  # of one run
COMPARE = "downstream_task/trained_vs_no_trained_compare.py"
ARMS = "--backbone resnet18 --encoders random --num-labels 20 60 --ways linear spread zeros --draws 2 --folds 0 3"
BUDGET = "--img-res 32 --store-res 32 --features-res 0 --epochs 0 --min-steps 20 --batch-size 8 --threads 1"
LAST = "random_zeros_n60_d1"  # its trials take turns by draw, way and number of labels


@pytest.mark.parametrize("seed", range(KILLED_RUNS))
def test_a_killed_pretraining_ends_with_the_same_bits(
    seed: int, start: Start, images: Path, whole: tuple[Path, Answer], tmp_path: Path
) -> None:
    folder, undisturbed = whole
    draw, name, data = random.Random(seed), f"slow/{tmp_path.parent.name}-{tmp_path.name}", tmp_path / "images"
    shutil.copytree(images, data)  # another root: decoded once more
    moments = [draw.uniform(0.02, 1.0) * undisturbed.seconds for _ in range(draw.randint(1, MAX_KILLS))]
    killed = sum(start(TRAIN, *training(name, data), die_at=moment).code < 0 for moment in moments)
    done = start(TRAIN, *training(name, data))
    assert done.code == 0, done.output
    assert "Traceback" not in done.output
    assert same_result(folder, RUNS_ROOT / name), f"{killed} kills at {moments} of {undisturbed.seconds} s"
    assert not [path for path in (RUNS_ROOT / name).rglob("*.tmp")]


def comparing(name: str, phantoms: Path, jobs: int) -> list[str]:
    """The flags of a small comparison of twelve trials, shared by so many processes."""
    where = ["--dataset", "covid", "--data-root", str(phantoms / COVID_ROOT), "--device", "cpu", "--run-name", name]
    return [*where, *ARMS.split(), *BUDGET.split(), "--jobs", str(jobs)]


def tables(folder: Path) -> dict[str, list[list[str]]]:
    """What a comparison and its trials have found, by file, as it is written; metrics.csv also has the speed."""
    read = {path: pd.read_csv(path, dtype=str, keep_default_na=False) for path in folder.rglob("*.csv")}
    timeless = {path: table.drop(columns="time/images_per_second", errors="ignore") for path, table in read.items()}
    return {str(path.relative_to(folder)): [[*table], *table.values.tolist()] for path, table in timeless.items()}


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills a group of processes")
def test_killed_processes_of_one_comparison_end_in_the_same_tables(phantoms: Path, tmp_path: Path, script: Any) -> None:
    """By Ctrl-C and then at once, each time when one more trial is finished and another is training.

    The last trial is not finished before: its lock is held.
    """
    name = f"slow/{tmp_path.parent.name}-{tmp_path.name}"
    folder, deadline = RUNS_ROOT / name / "killed", time.monotonic() + 600
    command = [sys.executable, str(REPO_ROOT / COMPARE), *comparing(f"{name}/killed", phantoms, jobs=2)]

    def trials_with(file: str) -> set[Path]:
        return {path.parent for path in folder.glob(f"*/{file}")}

    def wait_until(reached: Callable[[], object]) -> None:
        while not reached():
            assert processes.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)

    for number in (signal.SIGINT, signal.SIGKILL):
        finished = trials_with("summary.json")
        processes = subprocess.Popen(command, start_new_session=True, stdout=DEVNULL, stderr=DEVNULL)
        wait_until((folder / "environment.json").exists)
        held = try_lock(folder / LAST / ".lock")
        assert held is not None
        wait_until(
            lambda finished=finished: (
                trials_with("summary.json") > finished and trials_with("metrics.csv") - trials_with("summary.json")
            )
        )
        os.killpg(processes.pid, number)
        assert processes.wait() != 0
        held.release()
    times = {path: (path / "summary.json").stat().st_mtime_ns for path in trials_with("summary.json")}
    assert len(times) < 12 and not (folder / "summary.json").exists()

    resumed = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert resumed.returncode == 0 and "failed" not in resumed.stderr, resumed.stderr
    assert {path: (path / "summary.json").stat().st_mtime_ns for path in times} == times, "none is done again"
    whole = script(COMPARE, *comparing(f"{name}/whole", phantoms, jobs=1))
    assert whole.returncode == 0, whole.stderr
    found, expected = tables(folder), tables(RUNS_ROOT / name / "whole")
    assert {"summary.csv", "curves.csv", "differences.csv", f"{LAST}/predictions.csv"} <= set(expected)
    assert found == expected
    assert resumed.stdout.replace("/killed", "/whole") == whole.stdout
