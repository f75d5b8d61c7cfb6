"""Tables as people save them: CSV in the usual encodings, with commas, semicolons or tabs."""

import csv
import gzip
import io
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.config import UserError

# A table may have a damaged row or two; more mean that it is cut, or is not one.
MAX_DAMAGED_SHARE = 0.1


def read_table(path: Path) -> pd.DataFrame:
    """Return a table's cells as text without blanks around it, "" where empty; the index is the line in the file.

    Encodings: UTF-8, UTF-16 with a byte order mark, else Windows' Latin-1. Separators: commas, semicolons or tabs,
    whichever the header has most. A first column that the header does not name is dropped. Rows of more or fewer cells
    than the header, as at the end of a cut file, are left out and counted on stderr.
    Raises UserError if the file is not such a table or more than MAX_DAMAGED_SHARE of its rows are damaged.
    """
    text = _text(path)
    first = text.partition("\n")[0]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV table: {error}; save it again as CSV.") from error
    rows = [(line, row) for line, row in rows if any(row)]
    if not rows:
        raise UserError(f"{path} is empty; expected a CSV table with a header.")
    (_, header), *rows = rows
    if rows and all(len(row) == len(header) + 1 for _, row in rows):
        header = ["", *header]
    while not header[-1]:  # a comma at the end of each line
        header.pop()
    rows = [(line, row if any(row[len(header) :]) else row[: len(header)]) for line, row in rows]
    lower = [name.lower() for name in header if name]
    again = next((name for name in lower if lower.count(name) > 1), "")
    if again:
        raise UserError(f"{path} has the column {again!r} twice; keep one.")
    whole = [(line, row) for line, row in rows if len(row) == len(header)]
    _check_damaged(path, [line for line, row in rows if len(row) != len(header)], len(rows))
    cells = pd.DataFrame([row for _, row in whole], columns=header, index=[line for line, _ in whole], dtype=object)
    return cells.loc[:, [name != "" for name in header]]


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    try:
        is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    if "\0" in text:
        raise UserError(f"{path} is not text; save the table as CSV, in UTF-8.")
    return text


def _check_damaged(path: Path, lines: list[int], count: int) -> None:
    if not lines:
        return
    found = f"{path}: {len(lines):,} of {count:,} rows have more or fewer cells than the header (line {lines[0]})"
    if len(lines) > MAX_DAMAGED_SHARE * count:
        raise UserError(f"{found}; the file is cut or damaged, or it mixes separators: get or save it again.")
    print(f"warning: {found}; left out", file=sys.stderr)


def column_of(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column, or blanks where the table does not have it."""
    column: Any = table[name] if name in table else pd.Series("", index=table.index, dtype=object)
    return column


def finding_values(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return findings [N] float32, 1, 0, -1 or NaN where blank, and which cells [N] hold anything else."""
    written = cells.str.replace(",", ".").mask(cells.str.lower().isin(["nan", "na"]), "")
    values = np.asarray(pd.to_numeric(written, errors="coerce"), dtype=np.float32)
    return values, (written != "").to_numpy() & ~np.isin(values, (1, 0, -1))


def checked_findings(cells: pd.Series, path: Path) -> np.ndarray:
    """Return findings [N] float32, 1, 0, -1 or NaN; UserError with the line of a cell that holds anything else."""
    values, wrong = finding_values(cells)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{path} holds {cells.iloc[row]!r} as {cells.name!r} in line {cells.index[row]}; expected 1 (positive), "
            "0 (negative), -1 (uncertain) or blank."
        )
    return values
