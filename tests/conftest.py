"""What tests share: temporary folders for runs and data, a small phantom data set, the real X-rays if there are any."""

import atexit
import gc
import io
import os
import runpy
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

# Several test processes run side by side: threads of one would wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test touches the user's runs or data; the repo's modules read these variables when they are imported.
HOME = tempfile.mkdtemp(prefix="cxr-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ |= {"CXR_RUNS": f"{HOME}/runs", "CXR_DATASETS": f"{HOME}/datasets"}

import pytest
from hypothesis import settings
from matplotlib.figure import Figure
from narrow_networks import TORCHVISIONS, narrow_networks
from torchvision import models

from dataset_loader.phantoms.dataset import ensure_chexpert_phantoms, ensure_phantoms
from utils import signals
from utils.config import REPO_ROOT
from utils.logging_utils import Run

# The same examples in every call; `-m slow` tries more of them.
settings.register_profile("suite", max_examples=50, derandomize=True, deadline=None)
settings.register_profile("slow", settings.get_profile("suite"), max_examples=1000)
Script = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("slow" if config.option.markexpr == "slow" else "suite")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of tests/slow and, with `-m slow`, those by hypothesis, which also run without."""
    for item in items:
        on_examples = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if item.path.parent.name == "slow" or (on_examples and config.option.markexpr == "slow"):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Leave the million objects of libraries out of each garbage collection; every figure asks for one."""
    gc.collect()
    gc.freeze()


def users_files() -> list[Path]:
    """What is in the user's runs/ and datasets/."""
    return sorted(path for folder in ("runs", "datasets") for path in (REPO_ROOT / folder).glob("*"))


@pytest.fixture(scope="session", autouse=True)
def leaves_the_users_folders_alone() -> Iterator[None]:
    """Fail at the end of the session if a test left something in the user's runs/ or datasets/."""
    before = users_files()
    yield
    assert users_files() == before, "a test writes to the user's runs/ or datasets/"


@pytest.fixture(autouse=True)
def keeps_its_signals() -> Iterator[None]:
    """Give back the handlers that a script in this process has replaced."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    signals._signals.number = 0
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def signals_here(keeps_its_signals: None) -> None:
    """Signals to this process are those to a script."""
    signals.stop_on_signals()


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """The networks of a test file that are called resnet18 have an eighth of the channels."""
    with narrow_networks(8):
        yield


@pytest.fixture
def torchvisions(narrow: None) -> Iterator[None]:
    """A test of such a file has torchvision's."""
    with mock.patch.object(models, "get_model", TORCHVISIONS):
        yield


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    """For tests that do not look at these: few resamples for an interval, one strength for linear heads, few maps."""
    from downstream_task import label_efficiency, probes  # slow, and most tests do without
    from downstream_task.clinic import tables
    from interpretability import shortcuts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "STRENGTHS", (probes.DEFAULT_STRENGTH,))
        for module in (label_efficiency, tables, shortcuts):
            patch.setattr(module, "REPEATS", 50)
        patch.setattr(shortcuts, "MAX_MAPPED", 2)
        yield


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is written."""
    monkeypatch.setattr(Run, "save_figure", lambda *_, **__: None)
    monkeypatch.setattr("utils.plots.write_figure", lambda *_: None)


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Probes of pretrainings learn from one draw of labels; all figures but the views are blank."""
    from selfsup_task import monitor  # slow, and most tests do without

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "PROBE_DRAWS", 1)
        for name in ("recipe_figure", "correlation_figure", "curves_figure"):
            patch.setattr(monitor.Monitor, name, lambda *_: Figure(figsize=(1, 1)))
        yield


@pytest.fixture
def name(tmp_path: Path) -> str:
    """The name of a run that no other test has."""
    return f"{tmp_path.parent.name}/{tmp_path.name}"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 240 synthetic X-rays in the COVID layout and those of 48 patients in CheXpert's."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    ensure_phantoms(folder, images=240, size=64)
    ensure_chexpert_phantoms(folder, patients=48, size=64)
    return folder


@pytest.fixture(scope="session")
def real_xrays() -> Path:
    """Return the folder of real X-rays in CXR_DATA; the test is skipped without it."""
    if not os.environ.get("CXR_DATA"):
        pytest.skip("CXR_DATA is not set to a folder of real X-rays")
    return Path(os.environ["CXR_DATA"])


@pytest.fixture(scope="session")
def script() -> Script:
    """Return script(path, *flags): an entry script as a user calls it, in this process, since starting one is slow."""

    def run(name: str, *flags: str) -> "subprocess.CompletedProcess[str]":
        path, out, err, code = REPO_ROOT / name, io.StringIO(), io.StringIO(), 0
        with mock.patch("sys.argv", [str(path), *flags]), redirect_stdout(out), redirect_stderr(err):
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
                if isinstance(end.code, str):
                    print(end.code, file=err)
        return subprocess.CompletedProcess([name, *flags], code, out.getvalue(), err.getvalue())

    return run
