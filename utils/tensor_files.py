"""Tensors and checkpoints in files that are whole or absent."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.config import UserError
from utils.files import write_atomically


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
            if bad := archive.testzip():
                raise ValueError(f"{bad} does not match its checksum")
    with path.open("rb") as file:  # of a path torch takes the suffix for the kind
        return torch.load(file, map_location="cpu", weights_only=True)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state in `path`, None if there is no such file. Raises UserError if it is damaged."""
    if not path.exists():
        return None
    try:
        state = read_tensors(path)
        return {"rows": state["rows"], **state}
    except (MemoryError, PermissionError):  # of a file that may be whole
        raise
    except Exception as error:  # torch raises many types for the many ways in which a file can be broken
        reason = str(error).partition("\n")[0] or repr(error)
        raise UserError(
            f"{path} is damaged ({reason}); restore it, or delete the run's folder to start again."
        ) from error
