"""Tensors and checkpoints in files that are whole or absent."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.config import UserError
from utils.files import write_atomically

ZIP_FOLDER = 0x10  # attribute of a folder in a zip archive


def write_tensors(path: Path, state: object) -> None:
    """Write what torch.save writes, atomically."""
    content = io.BytesIO()
    torch.save(state, content)  # torch hides what a file refuses
    write_atomically(path, lambda file: file.write(content.getbuffer()))


def read_tensors(path: Path) -> Any:
    """Return what torch.save wrote to `path`, on the CPU, without unpickling code.

    Raises one of many types of exception if it is damaged: torch does not compare the checksums in the file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            folders = [one.filename for one in archive.infolist() if one.external_attr & ZIP_FOLDER]
            if bad := archive.testzip() or ", ".join(folders):
                raise ValueError(f"{bad} does not match its checksum")
    with path.open("rb") as file:  # of a path torch takes the suffix for the kind
        return torch.load(file, map_location="cpu", weights_only=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the state in `path` or, if that is missing or damaged, in the file before it; and a note on damage or "".

    None if there is neither. Raises UserError if both are damaged, or the only one, or weights beside them.
    """
    state, damage = None, ""
    for file in (path, _before(path)):
        if file.exists() and state is None:
            state, wrong = _try_tensors(file)
            if wrong or "rows" not in (state or ()):
                state, damage = None, damage or f"{file} is damaged ({wrong or 'it holds something else'})"
    if damage and state is None:
        raise UserError(f"{damage} and no earlier checkpoint can be read; delete the run's folder to start again.")
    for file in path.parent.glob("*_state_dict.pt") if state else ():
        if wrong := _try_tensors(file)[1]:
            raise UserError(
                f"{file} is damaged ({wrong}) and its epoch is over; delete the run's folder to start again, or only "
                "this file to continue: it comes back with the next epoch that is better."
            )
    return state, damage and f"{damage}; the checkpoint before it is taken"


def _try_tensors(path: Path) -> tuple[Any, str]:
    """Return what read_tensors does, and ""; or None and what is wrong."""
    try:
        return read_tensors(path), ""
    except Exception as error:  # torch raises many types for the many ways in which a file can be broken
        return None, str(error).partition("\n")[0] or repr(error)


def write_checkpoint(path: Path, state: Mapping[str, Any], keep_before: bool) -> None:
    """Write tensors and plain values with torch.save; `path` becomes the file before it, unless `keep_before`."""
    if path.exists() and not keep_before:
        path.replace(_before(path))
    write_tensors(path, state)


def drop_checkpoint(path: Path) -> None:
    """Delete a checkpoint and the one before it."""
    for file in (path, _before(path)):
        file.unlink(missing_ok=True)


def _before(path: Path) -> Path:
    return path.with_stem(f"{path.stem}_before")
