"""The columns of a table that have a meaning here, under the names that people give them."""

import os
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.image_files import IMAGE_SUFFIXES
from dataset_loader.readers.tables import UNKNOWN, clean, column_of, finding_values
from dataset_loader.readers.values import SEXES, part_of, projection, years
from utils.config import UserError
from utils.messages import say

# Each column's own name, and the others, in lower case without blanks and signs: "Patient ID" is patientid.
_WORDS = {
    "file": "filename filepath files path image imageid imagefile imagename imagepath imageindex img imgpath imgname "
    "xray film datei dateiname bild fichier",
    "label": "labels class classname classlabel diagnosis category dx groundtruth diagnose klasse befund diagnostic "
    "classe",
    "patient": "patientid patid pid patientnumber patientnr patientno subject subjectid mrn case caseid personid "
    "medicalrecordnumber patienten patientenid patientennummer patnr fall participant proband",
    "mask": "maskfile maskpath maskname lungmask masks maske",
    "sex": "gender patientsex patientgender geschlecht sexe",
    "age": "ageyears ageinyears patientage ageatstudy ageatexam alter agey alterjahre",
    "view": "viewposition projection position views viewpos projektion strahlengang",
    "part": "split splits fold set subset partition dataset datasplit phase usage splitname traintest "
    "traintestsplit parts",
    "source": "hospital site institution scanner dataset center centre clinic origin device sourceid siteid hospitalid "
    "manufacturer klinik krankenhaus quelle sources",
    "study": "studyid accession accessionnumber accessionno studyinstanceuid studyuid exam examid visit visitid studie "
    "untersuchung",
}
_PATIENT = re.compile("(patient|subject|participant|person).*(id|nr|no|number|name|code|key|hash)$")
COLUMNS = {name: tuple(words.split()) for name, words in _WORDS.items()}
_BY_VALUES = ("file", "part")  # are known by their cells alone, whatever a column is called
_ONE = ("file", "label", "part")  # of several that fit, nobody can choose; of the others, the first word counts
_MOST_FILMS = 20  # of one patient, on average: a column with more for each of its values holds something else


def column_key(name: str) -> str:
    """Return a column's name in lower case without blanks and signs."""
    return "".join(letter for letter in clean(name).casefold() if letter.isalnum())


def has_meaning(column: str) -> bool:
    """Return whether a column's name, or another word for it, is one of COLUMNS or a value of theirs, as is_test."""
    key = column_key(column)
    return key in COLUMNS or any(_is_word(key, name) for name in COLUMNS) or bool(_flag_of(key))


def _is_word(key: str, name: str) -> bool:
    """Return whether a column's key is another word for one of COLUMNS."""
    return key in COLUMNS[name] or (name == "patient" and bool(_PATIENT.search(key)))


def _flag_of(key: str) -> str:
    """Return which of COLUMNS has a column's name as its value, such as part for is_test and sex for female, or ""."""
    word = key.removeprefix("is")
    is_sex = len(word) > 1 and SEXES.get(word) in ("Male", "Female")
    return "part" if part_of(word) else "sex" if is_sex else "view" if word in ("frontal", "lateral") else ""


def known_columns(
    table: pd.DataFrame, path: Path, is_file: Callable[[str], object], names: Sequence[str] = tuple(COLUMNS)
) -> pd.DataFrame:
    """Return a table whose columns that have a meaning are called as in COLUMNS, of these `names`.

    A column under its own name is taken. Else one under another word is, if its values fit, or one of any name whose
    values are those of _BY_VALUES, which is said on stderr, as are words whose values do not fit and names that look
    mistyped or like a value. `is_file` tells whether a cell names an image.
    Raises UserError if several columns fit one name and differ.
    """
    keys = {column: column_key(column) for column in table}
    chosen: dict[str, str] = {}
    said, doubts = [], []
    for name in names:
        own = [column for column, key in keys.items() if key == name]
        words = {key: place for place, key in enumerate(COLUMNS[name])}
        others = [column for column, key in keys.items() if _is_word(key, name) and column not in chosen]
        fitting = [column for column in others if _fits(name, column_of(table, column), is_file)]
        if not (found := own or sorted(fitting, key=lambda column: words.get(keys[column], 99))):
            doubts += [
                (column, f"is not read as {name!r}: it holds {_examples(column_of(table, column))}")
                for column in others
            ]
            continue
        if name in _ONE and any(not table[column].equals(table[found[0]]) for column in found):
            listed = ", ".join(map(repr, found))
            raise UserError(f"{path} has several columns for {name!r}: {listed}; call the one that counts {name!r}.")
        chosen[found[0]] = name
        if not own:
            said.append(f"{found[0]!r} as {name}")
        if name in (*_ONE, "patient"):
            doubts += [(other, f"is not read: {found[0]!r} is the {name}") for other in fitting if other != found[0]]
    unnamed = [column for column in table if not has_meaning(column)]
    for name in [name for name in _BY_VALUES if name in names and name not in chosen.values()]:
        fitting = [column for column in unnamed if _is_surely(name, column_of(table, column), is_file)]
        if len(fitting) == 1:
            chosen[fitting[0]] = name
            said.append(f"{fitting[0]!r} as {name}")
    for column, key in keys.items():
        lacking = [name for name in names if name not in chosen.values()]
        if (flag := _flag_of(key)) in lacking:
            doubts.append((column, f"is not read; if it tells the {flag}, write that as words into a column {flag!r}"))
        near = [name for name in lacking if _mistyped(key, (name, *COLUMNS[name]))]
        near = [name for name in near if _fits(name, column_of(table, column), is_file)]
        if near and not has_meaning(column):
            doubts.append((column, f"is not read as {near[0]!r}, which may have been meant; then call it so"))
    if said:
        say(f"{path}: reading {', '.join(said)}")
    for column, why in doubts:
        if column not in chosen and (column_of(table, column) != "").any():
            say(f"warning: {path}: column {column!r} {why}")
    return table.rename(columns=chosen)


def _fits(name: str, cells: pd.Series, is_file: Callable[[str], object]) -> bool:
    """Return whether a column that another word names holds what `name` holds, in most cells that say something."""
    tests: dict[str, Callable[[str], object]] = {
        "file": is_file,
        "mask": lambda word: os.path.splitext(word)[1].lower() in IMAGE_SUFFIXES,
        "sex": lambda word: word.casefold() in SEXES or word in ("0", "1", "2"),
        "age": lambda word: not np.isnan(years(word)),
        "view": projection,
        "part": part_of,
    }
    words = [cell for cell in cells if clean(cell).casefold() not in UNKNOWN]
    if name in tests:
        return 2 * sum(bool(tests[name](word)) for word in words) > len(words)
    kinds = len({clean(word).casefold() for word in words})
    if name == "label":
        return 2 <= kinds <= max(2, len(words) // 2)
    if name == "patient":
        values, wrong = finding_values(cells)
        is_finding = bool(np.isfinite(values).any()) and not wrong.any()
        like_ids = kinds > 2 or any(letter.isdigit() for word in words for letter in word)  # not case and control
        return kinds > 1 and kinds * _MOST_FILMS > len(words) and like_ids and not is_finding
    return bool(words)


def _is_surely(name: str, cells: pd.Series, is_file: Callable[[str], object]) -> bool:
    """Return whether a column of any name holds images' names or, in every cell, one of several parts."""
    words = [cell for cell in cells.unique() if clean(cell).casefold() not in UNKNOWN]
    if name == "part":
        parts = {part_of(word) for word in words}
        return len(parts) > 1 and None not in parts
    return bool(words) and _fits(name, cells, is_file)


def _examples(cells: pd.Series) -> str:
    values = list(dict.fromkeys(cell for cell in cells if cell))
    return ", ".join(map(repr, values[:3])) + ", ..." * (len(values) > 3)


def _mistyped(key: str, names: Sequence[str]) -> bool:
    """Return whether a name is nearly one of these, or has its letters in another order."""
    return bool(get_close_matches(key, names, 1, 0.8)) or any(sorted(key) == sorted(name) for name in names)
