"""Patient numbers, accession numbers and file names as they are written: plain, hashed with a key, or not at all."""

import contextlib
import functools
import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from utils.config import DATASETS_ROOT, UserError, one_of
from utils.messages import say

IDS = ["plain", "hashed", "none"]
IdsMode = Annotated[str, one_of(IDS)]
KEY_FILE, KEY_BYTES = ".cxr_ids_key", 32


@dataclass(frozen=True)
class Ids:
    """How files under runs/ name patients, accession numbers and films: `mode` is one of IDS, `key` that of hashes.

    One value has one hash in all files and runs of a key, so that rows of a patient stay together; nobody can try
    numbers without the key.
    """

    mode: str = "plain"
    key: bytes = b""

    @property
    def fact(self) -> str:
        """The mode and what tells keys apart: a run is not resumed with another key."""
        return f"hashed {hashlib.sha256(self.key).hexdigest()[:8]}" if self.mode == "hashed" else self.mode

    def numbers(self, values: Iterable[str]) -> np.ndarray:
        """Return patient or accession numbers [N] as 16 hex digits if "hashed", "" if "none"; blanks stay blank."""
        hide = {"plain": str, "hashed": self._hash, "none": lambda _: ""}[self.mode]
        return np.array([value and hide(value) for value in map(str, values)], dtype=object)

    def names(self, values: Iterable[str], prefix: str = "") -> np.ndarray:
        """Return groups or files [N], which a table must tell apart: the prefix and a hash if "hashed".

        If "none", the prefix and the place of a value among all, in alphabetical order, from 1.
        """
        values = [str(value) for value in values]
        if self.mode == "plain":
            return self.numbers(values)
        named = sorted(set(values))
        hidden = self.numbers(named) if self.mode == "hashed" else range(1, len(named) + 1)
        written = {value: value and f"{prefix}{one}" for value, one in zip(named, hidden, strict=True)}
        return np.array([written[value] for value in values], dtype=object)

    def files(self, values: Iterable[str]) -> np.ndarray:
        """Return files [N] as names does: "file-" and 16 hex digits, or a number. A file's name may be a patient's."""
        return self.names(values, "file-")

    def _hash(self, value: str) -> str:
        return hmac.new(self.key, value.encode(), hashlib.sha256).hexdigest()[:16]


PLAIN = Ids()
_say_once = functools.cache(say)


def open_ids(mode: str, root: Path) -> Ids:
    """Return how ids are written; the key of "hashed" is the one beside the data, drawn when it is first needed.

    `root` is the folder of the data, or of the run's data for films to predict. The key is KEY_FILE in it, or in a
    folder around it, or, where nothing can be written there, in DATASETS_ROOT. Says on stderr, once, what is
    written. Raises UserError for a key that is damaged or cannot be written.
    """
    if mode != "hashed":
        if mode == "plain":
            _say_once(
                "files under runs/ hold file names and patient numbers as they are; --ids hashed or none hides them"
            )
        return Ids(mode)
    found = _find_key(root)
    path = found or _draw_key(root.resolve()) or _draw_key(DATASETS_ROOT)
    if path is None:
        raise UserError(f"no key of ids can be written in {root} or {DATASETS_ROOT}; make one of them writable.")
    kind = "key" if found else "key that was just drawn"
    _say_once(f"ids are hashed with the {kind} in {path}; keep it, and never share it with results")
    return Ids(mode, _read_key(path))


def earlier_ids(root: Path) -> list[Ids]:
    """Return the ways in which an earlier run on the data in `root` can have named files: plain, and by their key."""
    path = _find_key(root)
    return [PLAIN, Ids("hashed", _read_key(path))] if path else [PLAIN]


def _find_key(root: Path) -> Path | None:
    root = root.resolve()
    places = [folder / KEY_FILE for folder in (root, *root.parents, DATASETS_ROOT)]
    return next((place for place in places if place.is_file()), None)


def _read_key(path: Path) -> bytes:
    with contextlib.suppress(ValueError, OSError):
        if len(key := bytes.fromhex(path.read_text(encoding="utf-8"))) == KEY_BYTES:
            return key
    raise UserError(
        f"{path} cannot be read as a key of ids, {2 * KEY_BYTES} hex digits; restore it, make it readable, or delete "
        "it: a new one is drawn, which makes other hashes."
    )


def _draw_key(folder: Path) -> Path | None:
    """Write a new key that its owner alone can read, unless another process did; None where that is not possible."""
    path, temporary = folder / KEY_FILE, folder / f"{KEY_FILE}.{os.getpid()}.tmp"
    try:
        if folder == DATASETS_ROOT:
            folder.mkdir(parents=True, exist_ok=True)
        with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(os.urandom(KEY_BYTES).hex() + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # whole or not at all, and never over another
        return path
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
