"""Fifty epochs hold memory and open files within a bound."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from small_pretraining import TRAIN, training

from selfsup_task.monitor import Monitor

EPOCHS, SETTLED = 50, 20  # by then every library has filled its caches
MAX_RESIDENT = 40e6  # bytes over the epochs after that; malloc keeps blocks of 4 to 16 MB at any epoch
MAX_OBJECTS = 10_000


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_open_files_stay_within_a_bound(
    script: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, measure = [], Monitor.__call__

    def measured(monitor: Monitor, *arguments: Any) -> dict[str, float]:
        numbers = measure(monitor, *arguments)
        taken.append((resident(), sys.getallocatedblocks(), len(os.listdir("/proc/self/fd"))))
        return numbers

    monkeypatch.setattr(Monitor, "__call__", measured)
    done = script(TRAIN, *training(f"slow/{tmp_path.name}", images), "--num-epochs", str(EPOCHS))
    assert done.returncode == 0, done.stderr
    assert len(taken) == EPOCHS
    *memory, files = zip(*taken, strict=True)
    for values, bound in zip(memory, (MAX_RESIDENT, MAX_OBJECTS), strict=True):
        assert max(values[-5:]) - max(values[SETTLED - 5 : SETTLED]) < bound, values
    assert max(files[SETTLED:]) <= max(files[:SETTLED])
