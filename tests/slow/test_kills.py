"""A pretraining that is killed at random moments, from the first image that is decoded on, ends with the same bits."""

import random
import shutil
from pathlib import Path

import pytest
from small_pretraining import TRAIN, Answer, Start, same_result, training

from utils.config import RUNS_ROOT

KILLED_RUNS = 20
MAX_KILLS = 3  # of one run


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
