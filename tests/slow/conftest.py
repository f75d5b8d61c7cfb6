"""Tests that take minutes: `python -m pytest -m slow`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_pretraining import TRAIN, Answer, Start, training

from dataset_loader.phantoms.dataset import COVID_ROOT, ensure_phantoms
from utils.config import RUNS_ROOT


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Return start(script, *flags, die_at=0, memory=0): an entry script in a process of its own."""
    if sys.platform == "win32":
        pytest.skip("needs os.fork")
    output = tmp_path_factory.mktemp("zygote") / "output"
    command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def run(script: str, *flags: str, die_at: float = 0, memory: int = 0) -> Answer:
            job = {"script": script, "flags": flags, "output": str(output), "die_at": die_at, "memory": memory}
            print(json.dumps(job), file=process.stdin, flush=True)
            code, seconds = json.loads(process.stdout.readline())  # type: ignore[union-attr]  # asserted above
            return Answer(code, seconds, output.read_text(encoding="utf-8", errors="replace"))

        yield run
        process.stdin.close()


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
