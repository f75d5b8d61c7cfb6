"""Files that tables name: on which disk, in which spelling."""

import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from dataset_loader.image_files import IMAGE_SUFFIXES
from dataset_loader.readers.tables import clean


def below(written: str, root: Path) -> str | None:
    """Return the POSIX path below root of a file as a table writes it, None if it lies elsewhere."""
    name = posixpath.normpath(written.replace("\\", "/"))
    for top in (root, root.resolve()) if os.path.isabs(name) else ():
        name = name.removeprefix(f"{top.as_posix()}/")
    outside = not written or name.startswith(("/", "../")) or name in (".", "..") or name[1:2] == ":"
    return None if outside else name


def file_finder(files: Iterable[str]) -> Callable[[str], str | None]:
    """Return a function that returns the one of `files` that a table means, or None.

    A name may be in upper or lower case, in another form of the same letters, or lack its suffix or else its folder, if
    that leaves one.
    """
    exact, alike, bare = set(files), defaultdict(set), defaultdict(set)
    for file in exact:
        stem, suffix = os.path.splitext(file)
        for name in (file, stem) if suffix.lower() in IMAGE_SUFFIXES else (file,):
            alike[clean(name).casefold()].add(file)
        bare[clean(file.rpartition("/")[2]).casefold()].add(file)

    def find(written: str) -> str | None:
        name = clean(written).casefold()
        found = {written} & exact or alike.get(name, set()) or bare.get(name, set())
        return next(iter(found)) if len(found) == 1 else None

    return find


def on_disk(folder: Path, written: Iterable[str]) -> list[Path]:
    """Return the paths that names in a table mean, relative to a folder; as file_finder where no file has that name."""
    finders: dict[Path, Callable[[str], str | None]] = {}
    paths = []
    for name in written:
        path = folder / name if (folder / name).exists() else folder / name.replace("\\", "/")
        if not path.exists() and path.parent.is_dir():
            if path.parent not in finders:
                finders[path.parent] = file_finder(entry.name for entry in path.parent.iterdir() if entry.is_file())
            path = path.with_name(finders[path.parent](path.name) or path.name)
        paths.append(path)
    return paths
