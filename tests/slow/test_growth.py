"""Fifty epochs hold memory and open files within a bound."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from small_pretraining import TRAIN, training

from selfsup_task.monitor import Monitor

EPOCHS, SETTLED = 50, 20  # by then every library has filled its caches
MAX_IN_USE, MAX_RESIDENT = 1e6, 40e6  # bytes over the epochs after that
MAX_OBJECTS = 10_000
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2() returns; see man 3 mallinfo."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS)


def in_use() -> int:
    """Bytes that malloc has given out and not got back. Resident memory is not this: blocks of 4 to 16 MB that malloc
    takes from the system, at any epoch, stay with it."""
    assert LIBC
    LIBC.mallinfo2.restype = Mallinfo2
    info = LIBC.mallinfo2()
    return info.uordblks + info.hblkhd


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="asks glibc 2.33 or newer")
def test_memory_and_open_files_stay_within_a_bound(
    script: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, measure = [], Monitor.__call__

    def measured(monitor: Monitor, *arguments: Any) -> dict[str, float]:
        numbers = measure(monitor, *arguments)
        taken.append((in_use(), resident(), sys.getallocatedblocks(), len(os.listdir("/proc/self/fd"))))
        return numbers

    monkeypatch.setattr(Monitor, "__call__", measured)
    done = script(TRAIN, *training(f"slow/{tmp_path.name}", images), "--num-epochs", str(EPOCHS))
    assert done.returncode == 0, done.stderr
    assert len(taken) == EPOCHS
    *memory, files = zip(*taken, strict=True)
    for values, bound in zip(memory, (MAX_IN_USE, MAX_RESIDENT, MAX_OBJECTS), strict=True):
        assert max(values[-5:]) - max(values[SETTLED - 5 : SETTLED]) < bound, values
    assert max(files[SETTLED:]) <= max(files[:SETTLED])
