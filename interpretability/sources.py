"""Where X-rays come from, where somebody knows it."""

from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.phantoms.dataset import SOURCES
from dataset_loader.xrays import XRays
from utils.config import UserError, repo_path


def known_sources(xrays: XRays, table: pd.DataFrame | None) -> np.ndarray:
    """[N] str: where each X-ray comes from, by a table with the columns file and source, or CheXpert's projection.

    "" where it is not known. Raises UserError for a table without these columns, or about other files.
    """
    columns = xrays.columns
    if table is None and "view" in columns.details:
        return columns.details["view"].fillna("").to_numpy(dtype=str)
    if table is None:
        return np.full(len(xrays), "")
    missing = sorted({"file", "source"} - set(table.columns))
    if missing:
        raise UserError(f"source_table lacks the column {missing[0]}; it needs file and source.")
    if table["file"].duplicated().any():
        twice = table["file"].to_numpy()[table["file"].duplicated().to_numpy()][0]
        raise UserError(f"source_table lists {twice!r} more than once; keep one row a file.")
    source_of = dict(zip(table["file"], table["source"].fillna("").astype(str), strict=True))
    sources = np.array([source_of.get(path, "") for path in columns.paths.tolist()])
    if not (sources != "").any():
        raise UserError(
            f"source_table names none of the X-rays of {columns.root}; its files must be as {columns.paths[0]!r}."
        )
    return sources


def read_sources(name: str, root: Path) -> pd.DataFrame | None:
    """The table of that name, or sources.csv in the data's folder; or None. UserError if the name leads nowhere."""
    path = repo_path(name) if name else root / SOURCES
    if not path.exists():
        if name:
            raise UserError(f"there is no source_table {path}; give a CSV with the columns file and source, or ''.")
        return None
    try:
        return pd.DataFrame(pd.read_csv(path, dtype=str))
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path} is not a readable CSV table: {str(error).strip()}") from error
