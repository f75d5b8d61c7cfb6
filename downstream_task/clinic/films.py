"""The X-rays that a user names: files, folders, tables."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dataset_loader.image_files import image_files
from dataset_loader.readers.tables import read_table
from utils.config import UserError, repo_path


def find_films(names: Sequence[str]) -> pd.DataFrame:
    """Return one row per X-ray: file as the user knows it, path, and the other columns of tables; each path once.

    Raises UserError for a name that does not exist, a folder without images, or a table without the column file.
    """
    tables = []
    for name in names:
        path = repo_path(name)
        if path.is_dir():
            files = image_files(path)
            if not len(files):
                raise UserError(f"there is no image below {path}; name files or folders that hold X-rays.")
            tables.append(pd.DataFrame({"file": files, "path": [str(path / file) for file in files]}))
        elif path.suffix.lower() == ".csv" and path.is_file():
            tables.append(_read_table(path))
        elif path.is_file():
            tables.append(pd.DataFrame({"file": [name], "path": [str(path)]}))
        else:
            raise UserError(f"images names {name!r}, but {path} does not exist.")
    return pd.concat(tables).drop_duplicates("path", ignore_index=True)


def _read_table(path: Path) -> pd.DataFrame:
    table = read_table(path)
    if "file" not in table or not len(table):
        raise UserError(f"{path} has the columns {', '.join(map(str, table))}; expected a column file, and rows.")
    return table.assign(path=[str(path.parent / file) for file in table["file"]])
