"""Fifty epochs hold memory and open files within a bound."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from small_pretraining import TRAIN, training

from selfsup_task.monitor import Monitor

EPOCHS, SETTLED = 50, 20  # by then every library has filled its caches
MAX_GROWTH = 4e6  # bytes over the epochs after that


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_open_files_stay_within_a_bound(
    script: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident, files, measure = [], [], Monitor.__call__

    def measured(monitor: Monitor, *arguments: Any) -> dict[str, float]:
        numbers = measure(monitor, *arguments)
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        files.append(len(os.listdir("/proc/self/fd")))
        return numbers

    monkeypatch.setattr(Monitor, "__call__", measured)
    done = script(TRAIN, *training(f"slow/{tmp_path.name}", images), "--num-epochs", str(EPOCHS))
    assert done.returncode == 0, done.stderr
    assert len(resident) == EPOCHS
    growth = max(resident[-5:]) - max(resident[SETTLED - 5 : SETTLED])
    assert growth < MAX_GROWTH, [f"{one / 1e6:.1f}" for one in resident]
    assert max(files[SETTLED:]) <= max(files[:SETTLED])
