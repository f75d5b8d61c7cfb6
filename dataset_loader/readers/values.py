"""Ages, sexes, views and parts as people and programs write them."""

import re
from typing import Any

import numpy as np
import pandas as pd

from dataset_loader.readers.tables import clean, counted
from utils.messages import say

MAX_AGE = 120
PARTS = {"": ""}
PARTS |= dict.fromkeys(["train", "training", "trn"], "train")
PARTS |= dict.fromkeys(["val", "valid", "validation", "validate", "dev", "tune"], "val")
PARTS |= dict.fromkeys(["test", "testing", "tst", "holdout", "heldout"], "test")
_WORDS = {
    "Male": "m male man männlich männl mann boy homme masculin hombre masculino homem",
    "Female": "f w female woman weiblich weibl frau girl femme féminin mujer femenino feminino mulher",
    "Other": "o other d divers diverse x",
}
SEXES = {word: sex for sex, words in _WORDS.items() for word in words.split()}
_ISO_SEXES = {"1": "Male", "2": "Female"}  # ISO/IEC 5218; its 0 is not known, its 9 not applicable
_AGE = re.compile(r"(\d+(?:[.,]\d+)?)\s*([^\W\d_]*)\.?(?:\s*(?:old|alt|/o))?")
_UNITS = dict.fromkeys(
    ["", "y", "yr", "yrs", "year", "years", "yo", "j", "jahr", "jahre", "a", "an", "ans", "años", "anos"], 1.0
)
_UNITS |= dict.fromkeys(["m", "mo", "mon", "month", "months", "monat", "monate", "mois", "meses"], 12.0)
_UNITS |= dict.fromkeys(["w", "wk", "wks", "week", "weeks", "woche", "wochen", "semaines"], 365.25 / 7)
_UNITS |= dict.fromkeys(["d", "day", "days", "tag", "tage", "jour", "jours"], 365.25)
_FRONTAL = frozenset(["pa", "ap", "frontal", "posteroanterior", "anteroposterior", "postero", "antero", "dv", "vd"])
_LATERAL = frozenset(["ll", "rl", "profil", "perfil", "seitlich", "seitl", "xtable"])


def part_of(written: str) -> str | None:
    """Return train, val or test, "" for a blank, None for a word that is none of them."""
    word = re.sub(r"[\W_]", "", clean(written).casefold())
    return PARTS.get(word, PARTS.get(re.sub("(set|part|split)$", "", word)) or None)


def years(written: str) -> float:
    """Return an age in years, as 51, 045Y, 013M, 0.5, 62 J or 3 months; NaN if it is none from 0 to MAX_AGE."""
    found = _AGE.fullmatch(clean(written).casefold())
    if not found or found[2] not in _UNITS:
        return np.nan
    age = float(found[1].replace(",", ".")) / _UNITS[found[2]]
    return round(age, 3) if age <= MAX_AGE else np.nan


def projection(written: str) -> str:
    """Return "frontal" or "lateral" for a view such as PA, AP supine, LL or lateral; "" for any other word.

    Obliques and decubitus films (LLD: the patient lies on the side, the beam is frontal) are neither.
    """
    words = re.findall(r"[^\W\d_]+", clean(written).casefold())
    whole = "".join(words)
    if any(word.startswith(("decub", "obli")) for word in words):
        return ""
    frontal = whole in _FRONTAL or any(word in _FRONTAL for word in words)
    lateral = whole == "l" or any(
        word in _LATERAL or word.startswith("lat") or word.endswith("lat") for word in (*words, whole)
    )
    return "" if frontal == lateral else "frontal" if frontal else "lateral"


def read_ages(cells: pd.Series, where: str) -> pd.Series:
    """Return ages in years, NaN where blank and where not understood, which is counted on stderr."""
    age_of = {cell: years(cell) for cell in cells.unique()}
    ages = cells.map(age_of).astype(float)
    _say_unknown("ages", cells[ages.isna() & (cells != "")], len(cells), "left blank", where)
    return ages


def read_sexes(cells: pd.Series, where: str) -> pd.Series:
    """Return "Male", "Female", "Other", "", or as written what is not understood, which is counted on stderr.

    1 and 2 are read as ISO 5218 has them, unless there are zeros without a 2: then nobody knows which is which.
    """
    plain = {cell: re.sub(r"[.,]0$", "", clean(cell).casefold().rstrip(".")) for cell in cells.unique()}
    known, codes = SEXES | {"": ""}, set(plain.values()) & {"0", "1", "2", "9"}
    if codes & {"1", "2"} and not ("0" in codes and "2" not in codes):
        known |= _ISO_SEXES | {"0": "", "9": ""}
        say(f"{where}: sex 1 is read as male, 2 as female (ISO 5218)")
    unknown = cells[~cells.map(plain).isin(list(known))]
    _say_unknown("sexes", unknown, len(cells), "kept as written", where)
    return cells.map({cell: known.get(word, cell) for cell, word in plain.items()})


def read_views(cells: pd.Series, where: str) -> pd.Series:
    """Return views, "PA" and "AP" written so and others as they are; words that are no view are counted on stderr."""
    unknown = cells[~cells.map({cell: bool(projection(cell)) for cell in cells.unique()}).astype(bool) & (cells != "")]
    _say_unknown("views", unknown, len(cells), "kept, as frontal ones", where)
    short = {cell: re.sub(r"[\W_]", "", cell).upper() for cell in cells.unique()}
    return cells.map({cell: word if word in ("PA", "AP") else cell for cell, word in short.items()})


def _say_unknown(what: str, unknown: Any, count: int, done: str, where: str) -> None:
    if len(unknown):
        found = f"{len(unknown):,} of {count:,} {what} are not understood: {counted(unknown)}"
        say(f"warning: {where}: {found}; {done}")
