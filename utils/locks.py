"""Locks between processes, which the operating system releases when their holder ends, however it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.config import UserError


def try_lock(path: Path) -> FileLock | None:
    """Return the lock file `path`, held until its release(); None while another process holds it.

    Raises UserError if the folder cannot be written to, or its file system has no locks.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return lock if lock.acquire(blocking=False) else None
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        raise UserError(
            f"cannot lock {path} ({error}); choose a folder on a local disk that you may write to."
        ) from error


@contextmanager
def exclusive_lock(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold the lock file `path`, waiting while another process does and saying so once; raises as try_lock does."""
    lock = try_lock(path)
    if lock is None:
        print(f"another process is {waiting_for}; waiting for it", file=sys.stderr)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
