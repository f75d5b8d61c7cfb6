"""Tables as people save them: CSV in the usual encodings, with commas, semicolons, tabs or bars."""

import codecs
import csv
import gzip
import io
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.config import UserError
from utils.messages import say

# A table may have a damaged row or two; more mean that it is cut, or is not one.
MAX_DAMAGED_SHARE = 0.1
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it starts with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[,;\t]*(\r\n|\r|\n)', re.IGNORECASE)  # for Excel
# Soft hyphen, zero-width and direction marks, byte order mark.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x61C, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]
)
_MEANINGS = {
    1.0: "1 true yes y ja j oui si sí pos positive positiv present",
    0.0: "0 false no n nein non neg negative negativ absent",
    -1.0: "-1 ? ?? unknown unk unbekannt unklar uncertain unclear possible equivocal fraglich inconnu #n/a",
}
_FINDINGS = {word: value for value, words in _MEANINGS.items() for word in words.split()}
# What programs and people write into a cell that says nothing.
_EMPTY = frozenset(["", "-", "--", ".", "n/a", "na", "n.a.", "nan", "null", "none", "nil", "<na>", "#na", "k.a."])
UNKNOWN = _EMPTY | {"?", "??", "#n/a", "#null!", "#value!", "#ref!", "#name?", "#div/0!", "unknown", "unk", "unbekannt"}
UNKNOWN |= {"inconnu", "missing", "not available", "not known", "keine angabe"}


def read_table(path: Path) -> pd.DataFrame:
    """Return a table's cells as text without blanks around it, "" where empty; the index is the line in the file.

    Encodings are those of file_text. Separators: commas, semicolons, tabs or bars, whichever the header has most, or
    what a first line `sep=;` says. Columns that the header does not name are dropped, which is said but of the first.
    Rows of more or fewer cells than the header, as at the end of a cut file, are left out and counted on stderr.
    Raises UserError if the file is not such a table or more than MAX_DAMAGED_SHARE of its rows are damaged.
    """
    text, separator, start = _separated(file_text(path))
    trim = str.strip if text.isascii() else _trimmed
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [(start + reader.line_num, [trim(cell) for cell in row]) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV table: {error}; save it again as CSV.") from error
    rows = [(line, row) for line, row in rows if any(row)]
    if not rows:
        raise UserError(f"{path} is empty; expected a CSV table with a header.")
    (_, header), *rows = rows
    header = [clean(name) for name in header]
    if rows and all(len(row) == len(header) + 1 for _, row in rows):
        header = ["", *header]
    while not header[-1]:  # a comma at the end of each line
        header.pop()
    rows = [(line, row if any(row[len(header) :]) else row[: len(header)]) for line, row in rows]
    lower = [name.casefold() for name in header if name]
    again = next((name for name in lower if lower.count(name) > 1), "")
    if again:
        raise UserError(f"{path} has the column {again!r} twice; keep one.")
    whole = [(line, row) for line, row in rows if len(row) == len(header)]
    _check_damaged(path, [line for line, row in rows if len(row) != len(header)], len(rows))
    cells = pd.DataFrame([row for _, row in whole], columns=header, index=[line for line, _ in whole], dtype=object)
    named = np.array([name != "" for name in header])
    for place in np.flatnonzero(~named[1:]) + 1:
        if (cells.iloc[:, place] != "").any():
            say(f"warning: {path}: column {place + 1} is not read, as the header does not name it")
    return cells.loc[:, named]


def file_text(path: Path) -> str:
    """Return the text of a file, which may be gzipped: UTF-8, UTF-16 or UTF-32, else Windows-1252, which is said.

    Raises UserError if it cannot be read or is not text.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    coding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    if coding == "utf-8" and b"\0" in content[:2]:  # UTF-16 without its mark
        coding = "utf-16-be" if content.startswith(b"\0") else "utf-16-le"
    try:
        text = content.decode(coding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        word = next(iter(re.findall(r"\w*[^\x00-\x7f]\w*", text)), "")
        if "\0" not in text:
            read = f"note: {path} is not UTF-8, so it is read as Windows-1252, such as {word!r}"
            say(f"{read}; if that is wrong, save it again as CSV in UTF-8")
    if "\0" in text:
        raise UserError(f"{path} is not text; save the table as CSV, in UTF-8.")
    return text.lstrip("\ufeff")


def _separated(text: str) -> tuple[str, str, int]:
    """Return a table's text without a line such as `sep=;`, its separator, and how many lines were dropped."""
    said = _SEPARATOR_LINE.match(text)
    text = text[said.end() :] if said else text
    header = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
    separator = said[1] if said and said[1] in header else max(",;\t|", key=header.count)
    return text, separator, 1 if said else 0


def clean(text: str) -> str:
    """Return a text without what no one sees: invisible characters, other forms of the same letters, more blanks."""
    if text.isascii():
        return " ".join(text.split())
    return " ".join(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).split())


def _trimmed(cell: str) -> str:
    """Return a cell without blanks and invisible characters around it; those inside may belong to a file's name."""
    seen = cell.translate(_INVISIBLE).strip()
    return cell[cell.index(seen[0]) : cell.rindex(seen[-1]) + 1] if seen else ""


def _check_damaged(path: Path, lines: list[int], count: int) -> None:
    if not lines:
        return
    found = f"{path}: {len(lines):,} of {count:,} rows have more or fewer cells than the header (line {lines[0]})"
    if len(lines) > MAX_DAMAGED_SHARE * count:
        raise UserError(f"{found}; the file is cut or damaged, or it mixes separators: get or save it again.")
    say(f"warning: {found}; left out")


def column_of(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column, or blanks where the table does not have it."""
    column: Any = table[name] if name in table else pd.Series("", index=table.index, dtype=object)
    return column


def check_columns(table: pd.DataFrame, names: Iterable[str], path: Path, otherwise: str) -> None:
    """Raise UserError for the names that are no columns of a table; `otherwise` says what to do."""
    if missing := [name for name in names if name not in table]:
        listed = ", ".join(map(repr, missing))
        raise UserError(f"{path} lacks the column {listed}; it has {', '.join(table)}; {otherwise}")


def counted(words: Iterable[str]) -> str:
    """Return the words with how often each comes, the most frequent first, for a message."""
    counts = Counter(words).most_common()
    return ", ".join(f"{word!r} ({count:,})" for word, count in counts[:5]) + ", ..." * (len(counts) > 5)


def without_unknown(cells: pd.Series, words: Iterable[str], where: str) -> pd.Series:
    """Return cells with "" for the words that mean unknown; how many is said on stderr."""
    plain = {cell: clean(cell).casefold() for cell in cells.unique()}
    blank = (cells != "") & cells.map(plain).isin(list(words))
    if blank.any():
        say(f"{where}, column {cells.name!r}: read as blank: {counted(cells[blank])}")
    return cells.mask(blank, "")


def once(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Return rows with each file once; equal rows are counted on stderr.

    Raises UserError, with the lines, if two rows say different things about a file.
    """
    again = rows[rows["file"].duplicated(keep=False)]
    for _, same in again.groupby("file"):
        first = same.iloc[0]
        for line, row in same.iloc[1:].iterrows():
            differs = [name for name in rows if clean(row[name]).casefold() != clean(first[name]).casefold()]
            if differs:
                name = differs[0]
                raise UserError(
                    f"{table} contradicts itself about {first['file']!r}: column {name!r} holds {first[name]!r} in "
                    f"line {same.index[0]} and {row[name]!r} in line {line}; keep one row for each file."
                )
    if len(again):
        extra = rows.index[rows["file"].duplicated().to_numpy()]
        say(f"note: {table} says the same in {len(extra):,} more rows (line {extra[0]}): read once")
    return rows.drop_duplicates("file")


def one_spelling(labels: pd.Series, path: Path) -> pd.Series:
    """Return labels; those that differ only as class_key says are written as most of them."""
    counts = Counter(labels)
    best: dict[str, str] = {}
    for written in sorted(counts, key=lambda word: (-counts[word], word)):
        best.setdefault(class_key(written), clean(written))
    for name in sorted(set(best.values())):
        if others := [word for word in counts if class_key(word) == class_key(name) and word != name]:
            again = counted(word for word in labels if word in others)
            say(f"warning: {path}: {again} read as the class {name!r}")
    return labels.map({written: best[class_key(written)] for written in counts})


def class_key(label: str) -> str:
    """Return a label without what no reader sees: case, blanks, invisible characters, kinds of hyphens, 1 as 1.0."""
    label = re.sub("[\u2010-\u2015\u2212]", "-", clean(label).casefold())
    return re.sub(r"^(\d+)[.,]0+$", r"\1", label)


def finding_values(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return findings [N] float32, 1, 0, -1 or NaN where blank, and which cells [N] hold anything else."""
    words = {cell: clean(cell).casefold() for cell in cells.unique()}
    found, meant = set(words.values()) - _EMPTY, dict(_FINDINGS)
    if found == {"x"}:  # crosses beside blanks
        meant["x"] = 1.0
    if "+" in found:
        meant |= {"+": 1.0, "-": 0.0}
    if "t" in found:
        meant |= {"t": 1.0, "f": 0.0}
    values = {cell: meant.get(word, np.nan if word in _EMPTY else _number(word)) for cell, word in words.items()}
    blank = {cell for cell, word in words.items() if word in _EMPTY and word not in meant}
    numbers = cells.map(values).to_numpy(dtype=np.float32)
    return numbers, ~cells.isin(list(blank)).to_numpy() & ~np.isin(numbers, (1, 0, -1))


def _number(word: str) -> float:
    try:
        return float(word.replace(",", "."))
    except ValueError:
        return np.nan


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
