"""Files that are whole or absent, and JSON objects.

A file is written under a temporary name, flushed to disk, then renamed.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd

from utils.config import UserError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file beside `path` and rename it to `path` once it is on disk.

    Raises UserError if the system refuses: a full disk, no permission or, on Windows, a program that shows the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with plain_refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def plain_refusals(path: Path) -> Iterator[None]:
    """Turn what the system refuses inside the block, which writes `path`, into a UserError."""
    try:
        yield
    except PermissionError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); close the program that shows it, or check the permissions."
        ) from error
    except OSError as error:
        if error.errno is None:
            raise
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        raise UserError(
            f"{path} cannot be written ({error.strerror}; {shutil.disk_usage(existing).free / 1e9:.1f} GB are free "
            "there); make room, or check the disk. What was written before is kept: the same command resumes from it."
        ) from error


def remove_leftovers(folder: Path, age: float = 0) -> None:
    """Delete temporary files that killed processes left in a run or store.

    age  seconds since the last write; 0 only if no other process writes there
    """
    for path in [*folder.glob(".*.tmp"), *folder.glob("figures/.*.tmp")]:
        with contextlib.suppress(FileNotFoundError):  # another process has removed or renamed it
            if time.time() - path.stat().st_mtime >= age:
                path.unlink()


def content_hash(path: Path) -> str:
    """Return 16 hex digits that name the content of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def stamps_hash(paths: Iterable[Path]) -> str:
    """Return 16 hex digits that name files by their paths, sizes and modification times; the path alone if missing."""
    stamps = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else str(p) for p in paths]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file atomically."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


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
    """Return a JSON object, or None if there is no file. Raises UserError if it is something else."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # an editor may have added a mark
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); repair it or delete its folder.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; repair it or delete its folder.")
    value.pop("crc32", None)  # of earlier versions, as are names in _random_network
    return {key.replace("_random_network", "_at_start"): item for key, item in value.items()}


def check_files(folder: Path, *names: str) -> None:
    """Raise UserError if the folder of a finished run lacks one of these files, and say how to get it back."""
    if gone := [name for name in names if not (folder / name).exists()]:
        raise UserError(
            f"the run in {folder} is finished, but {', '.join(gone)} is not there any more; restore it, or delete "
            "summary.json there (and that of the comparison around it) and give the same command: it is made again."
        )
