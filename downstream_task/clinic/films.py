"""The X-rays that a user names: files, folders, tables."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dataset_loader.image_files import image_files
from dataset_loader.readers.known_columns import known_columns
from dataset_loader.readers.listed_files import on_disk
from dataset_loader.readers.tables import read_table
from utils.config import UserError, repo_path

PATH = "path on disk"  # a column's name that no table has


def find_films(names: Sequence[str]) -> pd.DataFrame:
    """Return one row per X-ray: file as the user knows it, PATH, and the other columns of tables; each path once.

    Of a path that is named again, the row of a table counts; the others are counted on stderr.
    Raises UserError for a name that does not exist, a folder without images, or a table without the column file.
    """
    tables, others = [], []
    for name in names:
        path = repo_path(name)
        if path.is_dir():
            files = image_files(path)
            if not len(files):
                raise UserError(f"there is no image below {path}; name files or folders that hold X-rays.")
            others.append(pd.DataFrame({"file": files, PATH: [str((path / file).resolve()) for file in files]}))
        elif path.suffix.lower() == ".csv" and path.is_file():
            tables.append(_read_table(path))
        elif path.is_file():
            others.append(pd.DataFrame({"file": [name], PATH: [str(path.resolve())]}))
        else:
            raise UserError(f"images names {name!r}, but {path} does not exist.")
    films = pd.concat([*tables, *others])
    once = films.drop_duplicates(PATH, ignore_index=True)
    if len(once) < len(films):
        print(f"warning: {len(films) - len(once):,} X-rays are named again; each is used once", file=sys.stderr)
    return once


def _read_table(path: Path) -> pd.DataFrame:
    written, folder = read_table(path), path.parent
    table = known_columns(written, path, lambda cell: (folder / cell).is_file(), ("file", "label", "patient"))
    if "file" not in table or not len(table):
        raise UserError(f"{path} has the columns {', '.join(map(str, written))}; expected a column file, and rows.")
    return table.assign(**{PATH: [str(file.resolve()) for file in on_disk(folder, table["file"].tolist())]})
