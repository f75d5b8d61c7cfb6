"""Files that are whole or absent, JSON objects, and locks between processes.

A file is written under a temporary name, flushed to disk, then renamed. The operating system releases the lock of a
process that ends, however it ends.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from utils.config import UserError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file beside `path` and rename it to `path` once it is on disk.

    Raises UserError if the system refuses: no permission to write or, on Windows, a program that shows the file.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except PermissionError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); close the program that shows it, or check the permissions."
        ) from error
    finally:
        with contextlib.suppress(PermissionError):
            temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity become null."""
    write_text(path, json.dumps(plain_json(value), indent=2, ensure_ascii=False) + "\n")


def plain_json(value: Any) -> Any:
    """Return dicts and lists with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a run's JSON file, or None if there is no file. Raises UserError if it is not a JSON object."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); repair it or delete the run's folder.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; repair it or delete the run's folder.")
    return value


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


@contextlib.contextmanager
def exclusive_lock(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process holds it, and say so once. Raises as try_lock does."""
    lock = try_lock(path)
    if lock is None:
        print(f"another process is {waiting_for}; waiting for it", file=sys.stderr)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
