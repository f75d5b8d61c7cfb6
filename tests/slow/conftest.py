"""Tests that take minutes: `python -m pytest -m slow`."""

import os
import shutil
import signal
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from small_pretraining import TRAIN, Answer, Start, training

from dataset_loader.phantoms.dataset import COVID_ROOT, ensure_phantoms
from selfsup_task import monitor
from utils.config import RUNS_ROOT


@pytest.fixture(scope="session")
def start(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Return start(script, *flags, die_at=0): an entry script in a fork of this process, killed after so much CPU time.

    Probes are short and figures blank.
    """
    if not hasattr(os, "fork") or torch.cuda.is_available():
        pytest.skip("needs os.fork, which CUDA does not allow")
    output = tmp_path_factory.mktemp("forks") / "output"

    def child(name: str, flags: tuple[str, ...], die_at: float) -> int:
        monitor.PROBE_DRAWS = 1
        for figure in ("recipe_figure", "correlation_figure", "curves_figure", "views_figure"):
            setattr(monitor.Monitor, figure, lambda *_: Figure(figsize=(1, 1)))
        signal.setitimer(signal.ITIMER_PROF, die_at)  # nobody handles SIGPROF: the process ends at once
        done = script(name, *flags)
        output.write_text(done.stdout + done.stderr, encoding="utf-8")
        return done.returncode

    def run(name: str, *flags: str, die_at: float = 0) -> Answer:
        output.write_text("")
        process = os.fork()
        if not process:
            code = 1
            try:
                code = child(name, flags, die_at)
            except BaseException:
                output.write_text(traceback.format_exc(), encoding="utf-8")
            finally:
                os._exit(code)
        _, status, used = os.wait4(process, 0)
        seconds = used.ru_utime + used.ru_stime
        return Answer(os.waitstatus_to_exitcode(status), seconds, output.read_text(encoding="utf-8"))

    return run


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of 120 synthetic X-rays in the COVID layout."""
    folder = tmp_path_factory.mktemp("images") / "phantom"
    ensure_phantoms(folder, images=120, size=64)
    return folder / COVID_ROOT


@pytest.fixture(scope="session")
def whole(start: Start, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """Return the folder of an undisturbed pretraining, whose images were not decoded before, and its answer."""
    name = f"slow/{tmp_path_factory.getbasetemp().name}"
    shutil.rmtree(RUNS_ROOT / name, ignore_errors=True)
    done = start(TRAIN, *training(name, images))
    assert done.code == 0, done.output
    return RUNS_ROOT / name, done
