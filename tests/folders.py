"""Folders of empty files."""

from pathlib import Path


def touch(root: Path, *names: str) -> Path:
    """Make empty files below a folder; return the folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root
