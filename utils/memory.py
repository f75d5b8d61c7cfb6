"""A process's memory and cores (no torch here: worker processes import it)."""

import ctypes
import os
import platform
import sys


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a training step frees, instead of giving it back to the kernel.

    Activations are blocks of many megabytes. By default glibc gets each of them from the kernel with mmap and
    returns it when it is freed, so every step faults in gigabytes of zeroed pages again. The thresholds
    below make it serve them from the heap, which is not trimmed either. Linux with glibc only; elsewhere
    nothing happens. It costs nothing but a peak that is not given back before the script ends.
    """
    if platform.system() != "Linux":
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return
    # older versions of glibc refuse more than 32 MB, and setting the other threshold alone would do harm
    if mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25):
        mallopt(trim_threshold, 2**31 - 1)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
