"""What tests share: a small phantom data set, and the real X-rays where they are at hand."""

import io
import os
import runpy
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

# Several test processes run side by side: threads of one would wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from dataset_loader.phantoms.dataset import ensure_chexpert_phantoms, ensure_phantoms
from utils.config import REPO_ROOT

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 240 synthetic X-rays in the COVID layout and those of 48 patients in CheXpert's."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    ensure_phantoms(folder, images=240, size=64)
    ensure_chexpert_phantoms(folder, patients=48, size=64)
    return folder


@pytest.fixture(scope="session")
def real_xrays() -> Path:
    """The folder of real X-rays that CXR_DATA names; the test is skipped without it."""
    if not os.environ.get("CXR_DATA"):
        pytest.skip("CXR_DATA names no folder of real X-rays")
    return Path(os.environ["CXR_DATA"])


@pytest.fixture(scope="session")
def script() -> Script:
    """script(path, *flags): an entry script as a user types it, in this process: starting one costs seconds."""

    def run(name: str, *flags: str) -> "subprocess.CompletedProcess[str]":
        path, out, err, code = REPO_ROOT / name, io.StringIO(), io.StringIO(), 0
        with mock.patch("sys.argv", [str(path), *flags]), redirect_stdout(out), redirect_stderr(err):
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
                print(end.code if isinstance(end.code, str) else "", file=err)
        return subprocess.CompletedProcess([name, *flags], code, out.getvalue(), err.getvalue())

    return run
