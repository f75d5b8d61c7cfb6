"""A lock between processes, which the operating system releases when its holder ends, however it ends."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from utils.config import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def try_lock(path: Path) -> IO[bytes] | None:
    """The lock file `path`, open and held until it is closed; None while another process holds it.

    Raises UserError if the folder cannot be written to, or its file system has no locks.
    """
    file = _opened(path)
    if _lock(file):
        return file
    file.close()
    return None


@contextmanager
def exclusive_lock(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold the lock file `path`, waiting while another process does and saying so once; raises as try_lock does."""
    with _opened(path) as file:
        if not _lock(file):
            print(f"another process is {waiting_for}; waiting for it", file=sys.stderr)
            while not _lock(file):
                time.sleep(0.2)
        yield


def _opened(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}.") from error


def _lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise UserError(
            f"{file.name} lies on a file system without locks ({error.strerror}); "
            "make its folder a link to a local disk."
        ) from error
    return True
