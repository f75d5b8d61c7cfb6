"""Tables as spreadsheets, scripts and broken downloads leave them."""

import csv
import gzip
import io
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_loader.readers.tables import checked_findings, clean, column_of, read_table
from utils.config import UserError

TEXT = "file,label,ward\na.png,Müll,1\nb.png,,2\n"
CELLS = [["a.png", "Müll", "1"], ["b.png", "", "2"]]


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("latin-1"),
        TEXT.replace(",", ";").encode(),
        TEXT.replace(",", "\t").encode("utf-16"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("\n", "\n\n").encode(),
        TEXT.replace(",", " , ").encode(),
        TEXT.replace("\n", ",\n").encode(),
        TEXT.replace("a.png", '"a.png"').encode(),
        gzip.compress(TEXT.encode(), mtime=0),
        ("sep=;\r\n" + TEXT.replace(",", ";").replace("\n", "\r\n")).encode("utf-8-sig"),
        ('"sep=\t"\n' + TEXT.replace(",", "\t")).encode("utf-16"),
        ("sep=;\n" + TEXT).encode(),  # saved again with commas
        TEXT.replace(",", "|").encode(),
        TEXT.replace("file,", '"file",').replace(",", ";").encode(),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-32"),
        ("\ufeff" + TEXT.replace("a.png", "\u200ba.png\u00a0")).encode("utf-8-sig"),
        unicodedata.normalize("NFD", TEXT).replace("la", "l\u00ada").encode(),
    ],
)
def test_one_table_in_many_encodings(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    table = read_table(tmp_path / "t.csv")
    assert table.columns.tolist() == ["file", "label", "ward"]
    assert [[clean(cell) for cell in row] for row in table.to_numpy()] == CELLS


def test_lines_are_the_files_and_its_encoding_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_bytes(b"sep=;\r\nfile;label\r\n\r\na.png;M\xfcll\r\n")
    assert read_table(tmp_path / "t.csv").index.tolist() == [4]
    assert "is not UTF-8, so it is read as Windows-1252, such as 'Müll'" in capsys.readouterr().err


def test_a_column_without_a_name_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text(",file,,label,\n0,a.png,7,x,\n1,b.png,,y,\n")
    assert read_table(tmp_path / "t.csv").to_numpy().tolist() == [["a.png", "x"], ["b.png", "y"]]
    assert capsys.readouterr().err.endswith("t.csv: column 3 is not read, as the header does not name it\n")


def test_damaged_rows_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["file,label"] + [f"{n}.png,x" for n in range(30)]
    lines[4], lines[31:] = "3.png,x,y", ["30.p"]  # a cell too many, and the end of a cut file
    (tmp_path / "t.csv").write_text("\n".join(lines))
    table = read_table(tmp_path / "t.csv")
    assert table["file"].tolist() == [f"{n}.png" for n in range(30) if n != 3]
    assert table.index.tolist() == [n + 2 for n in range(30) if n != 3]  # lines of the file
    assert "2 of 31 rows have more or fewer cells than the header (line 5)" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("\n".join([*lines[:12], *("x" for _ in range(5))]))
    with pytest.raises(UserError, match="cut or damaged"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"PK\x03\x04\x00\x00", "not text; save the table as CSV"),
        (b"a,A\n1,2\n", "column 'a' twice"),
        (b'a,b\n"1,2\n', "not a readable CSV table"),
        (b"\x1f\x8bgarbage", "cannot be read"),
    ],
)
def test_what_is_not_a_table_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        ("TRUE FALSE true", [1, 0, 1]),
        ("yes No 1.0", [1, 0, 1]),
        ("ja nein 0.0", [1, 0, 0]),
        ("positiv NEG unklar", [1, 0, -1]),
        ("Present absent ?", [1, 0, -1]),
        ("t f F", [1, 0, 0]),
        ("+ - -", [1, 0, 0]),
        ("X x n/a", [1, 1, np.nan]),
        ("1 0 #N/A", [1, 0, -1]),
        ("1 NaN -", [1, np.nan, np.nan]),
        ("1 0,0 -1.0 nan", [1, 0, -1, np.nan]),
    ],
)
def test_findings_in_words_and_numbers(tmp_path: Path, cells: str, values: list[float]) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["a;b", *(f"{cell};1" for cell in cells.split()), ";x"]))
    table = read_table(tmp_path / "t.csv")
    found = checked_findings(column_of(table, "a"), tmp_path / "t.csv")
    np.testing.assert_array_equal(found, np.array([*values, np.nan], dtype=np.float32))
    with pytest.raises(UserError, match=f"holds 'x' as 'b' in line {len(values) + 2}"):
        checked_findings(column_of(table, "b"), tmp_path / "t.csv")


CELL = st.text(st.characters(exclude_categories=["Cs", "Cf"], exclude_characters="\0"), max_size=8)
WRITTEN = st.tuples(st.sampled_from(",;\t"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.booleans())


@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=6), WRITTEN)
def test_any_table_that_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], written: tuple[str, str, bool]
) -> None:
    delimiter, encoding, zipped = written
    text, path = io.StringIO(), tmp_path_factory.getbasetemp() / "written.csv"
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("file", "label", "ward"), *rows])
    content = text.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(content) if zipped else content)
    stripped = [[cell.strip() for cell in row] for row in rows]
    assert read_table(path).to_numpy().tolist() == [row for row in stripped if any(row)]
