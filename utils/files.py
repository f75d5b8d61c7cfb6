"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from utils.config import UserError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file beside `path` and rename it to `path` once it is on disk.

    Raises UserError where the system does not let it: no right to write, or, on Windows, a program that shows the file.
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
            f"{path} cannot be written ({error.strerror}); close what has it open, or see who may write there."
        ) from error
    finally:
        with contextlib.suppress(PermissionError):
            temporary.unlink(missing_ok=True)


def write_again(path: Path, source: Path) -> None:
    """`path` with the bytes of `source`, atomically: one file of two names where the disk allows it, else a copy."""
    temporary = _beside(path)
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:
        write_atomically(path, lambda file: file.write(source.read_bytes()))
    else:
        temporary.replace(path)
        temporary.unlink(missing_ok=True)  # a rename between two names of one file does nothing


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
