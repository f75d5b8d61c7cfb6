"""Ages, sexes, views and parts as people, spreadsheets and DICOM write them."""

import numpy as np
import pandas as pd
import pytest

from dataset_loader.readers.values import part_of, projection, read_ages, read_sexes, years


@pytest.mark.parametrize(
    ("written", "age"),
    [
        *[("045Y", 45), ("51", 51), ("62 J", 62), ("62 anos", 62), ("51,0", 51), ("0.5", 0.5), ("70 years old", 70)],
        *[("013M", 13 / 12), ("3 months", 0.25), ("006W", 42 / 365.25), ("011D", 11 / 365.25), ("2 Tage", 2 / 365.25)],
        *[("414", np.nan), ("-3", np.nan), (">89", np.nan), ("adult", np.nan), ("1961-04-02", np.nan), ("", np.nan)],
    ],
)
def test_ages_become_years(written: str, age: float) -> None:
    assert years(written) == pytest.approx(age, abs=1e-3, nan_ok=True)


def test_ages_that_are_not_understood_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_ages(pd.Series(["45Y", ">89", ">89", ""]), "t.csv").fillna(-1).tolist() == [45, -1, -1, -1]
    assert "t.csv: 2 of 4 ages are not understood: '>89' (2); left blank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [
        ("m F Male weibl. d Feminino", "Male Female Male Female Other Female", ""),
        ("1 2 0 9", "Male Female  ", "ISO 5218"),
        ("1.0 2.0", "Male Female", "ISO 5218"),
        ("0 1 1", "0 1 1", "3 of 3 sexes are not understood: '1' (2), '0' (1)"),
        ("M ♀", "Male ♀", "1 of 2 sexes are not understood: '♀' (1)"),
    ],
)
def test_sexes_in_many_words(written: str, read: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_sexes(pd.Series(written.split(" ")), "t.csv").tolist() == read.split(" ")
    found = capsys.readouterr().err
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(
    ("view", "words"),
    [
        ("frontal", ["PA", "ap", "A.P.", "AP_horizontal", "AP supine", "postero-anterior", "Frontal", "AP LLD"]),
        ("lateral", ["LL", "RL", "L", "lat.", "LATERAL", "left lateral", "llat", "XTABLE", "Chest-LAT"]),
        ("lateral", ["seitlich", "profil", "Perfil"]),
        ("", ["", "LLD", "left lateral decubitus", "LAO", "PA/LAT", "swimmers", "left", "R"]),
    ],
)
def test_views_are_frontal_lateral_or_unknown(view: str, words: list[str]) -> None:
    assert {word: projection(word) for word in words} == dict.fromkeys(words, view)


def test_parts_in_other_words() -> None:
    words = {"Training": "train", "TEST set": "test", "dev": "val", "hold-out": "test", "": "", "set": None, "2": None}
    assert {word: part_of(word) for word in words} == words
