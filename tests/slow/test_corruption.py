"""Each file of a run, damaged in each way: the same bits as without the damage, or one sentence and exit 1."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from small_pretraining import TRAIN, Answer, Start, same_result, training

from self_sup_classes.weights import read_state_dict
from utils.config import RUNS_ROOT, UserError

WAYS = ["truncated", "zeroed", "bit", "emptied", "other type"]
FINISHED = ["config.json", "environment.json", "summary.json", "split.csv", "duplicates.csv", "metrics.csv", "events"]
FINISHED += ["figures/curves.png", "resnet18_final_state_dict.pt"]
INTERRUPTED = ["config.json", "environment.json", "split.csv", "duplicates.csv", "metrics.csv", "events"]
INTERRUPTED += ["figures/views.png", "checkpoint.pt", "checkpoint_before.pt", ".lock"]


def damaged(content: bytes, way: str, seed: str) -> bytes:
    """A file's content after a fault at a place that the seed draws."""
    place = random.Random(seed).randrange(max(1, len(content)))
    flipped = bytes([content[place] ^ 1 << place % 8]) if content else b""
    return {
        "truncated": content[:place],
        "zeroed": content[:place] + bytes(len(content[place : place + 512])) + content[place + 512 :],
        "bit": content[:place] + flipped + content[place + 1 :],
        "emptied": b"",
        "other type": b"\x89PNG\r\n\x1a\n not what it was",
    }[way]


def damage(folder: Path, file: str, way: str) -> None:
    """Damage one file of a run; "events" stands for TensorBoard's."""
    path = folder / file if file != "events" else next(folder.glob("events.out.tfevents.*"))
    path.write_bytes(damaged(path.read_bytes(), way, file + way))


def is_one_sentence(done: Answer) -> bool:
    """Whether a script ended with exit 1 and an error in one line."""
    errors = [line for line in done.output.splitlines() if line.startswith("error: ")]
    return done.code == 1 and len(errors) == 1 and "Traceback" not in done.output


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", FINISHED)
def test_a_finished_run_of_which_a_file_is_damaged(
    file: str, way: str, start: Start, images: Path, whole: tuple[Path, Answer], tmp_path: Path
) -> None:
    folder, undisturbed = whole
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    name = folder.relative_to(RUNS_ROOT).as_posix()
    try:
        damage(folder, file, way)
        again = start(TRAIN, *training(name, images))
        report = start("utils/make_report.py", "--runs", str(folder), "--output", str(tmp_path / "report"))
        if file.endswith(".pt"):
            assert is_refused_or_unchanged(folder / file, kept / file)
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    results = [line for line in undisturbed.output.splitlines() if line.startswith(("loss", "effective", "weights"))]
    assert results
    unchanged = all(line in again.output for line in results)
    assert is_one_sentence(again) or (again.code == 0 and unchanged and "Traceback" not in again.output), again.output
    assert is_one_sentence(report) or (report.code == 0 and "Traceback" not in report.output), report.output


def is_refused_or_unchanged(path: Path, kept: Path) -> bool:
    """Whether damaged weights are refused, unless the damage is where no weight is."""
    try:
        state = read_state_dict(path)
    except UserError:
        return True
    expected = read_state_dict(kept)
    return list(state) == list(expected) and all(torch.equal(state[key], expected[key]) for key in state)


@pytest.fixture(scope="session")
def interrupted(
    start: Start, images: Path, whole: tuple[Path, Answer], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a copy of a run that was killed when it had two checkpoints."""
    name, kept = f"{whole[0].relative_to(RUNS_ROOT)}-killed", tmp_path_factory.mktemp("killed") / "kept"
    for share in (0.7, 0.8, 0.6, 0.9, 0.5):
        start(TRAIN, *training(name, images), die_at=share * whole[1].seconds)
        if all((RUNS_ROOT / name / file).exists() for file in INTERRUPTED if file != "events"):
            break
        shutil.rmtree(RUNS_ROOT / name)
    shutil.copytree(RUNS_ROOT / name, kept / name)
    return kept / name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", INTERRUPTED)
def test_an_interrupted_run_of_which_a_file_is_damaged(
    file: str, way: str, start: Start, images: Path, whole: tuple[Path, Answer], interrupted: Path
) -> None:
    name = "/".join(interrupted.parts[-2:])
    folder = RUNS_ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(interrupted, folder)
    damage(folder, file, way)
    done = start(TRAIN, *training(name, images))
    assert "Traceback" not in done.output
    assert is_one_sentence(done) or (done.code == 0 and same_result(whole[0], folder)), done.output
