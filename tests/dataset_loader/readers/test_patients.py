"""Patients of a table and of DICOM headers: what spreadsheets and devices do to ids does not split a patient."""

from pathlib import Path

import numpy as np
import pytest

from dataset_loader.readers.patients import id_keys, joined_patients
from utils.config import UserError

TABLE = Path("labels.csv")


def joined(*films: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Patients, and ids of another kind, of films with an id in the table and one in the header."""
    ids, headers = (np.array(side, dtype=object) for side in zip(*films, strict=True))
    patients, foreign = joined_patients(ids, headers, np.array([f"{n}.dcm" for n in range(len(films))]), TABLE)
    return patients.tolist(), foreign.tolist()


def test_what_spreadsheets_and_devices_change_in_ids() -> None:
    assert len(set(id_keys(["0715761", "715761", "715761.0", " 715761,00", '="0715761"', "'0715761"]))) == 1
    assert len(set(id_keys(["00p 1", "P1", "p1\u200b"]))) == 1
    assert len(set(id_keys(["p1", "p10", "p01", "0", "1.5"]))) == 5


def test_ids_that_lost_their_zeros_are_one_patients(capsys: pytest.CaptureFixture[str]) -> None:
    patients, foreign = joined(("715761", "0715761"), ("", "0715761"), ("12", "12"), ("", "99"), ("", ""), ("13", ""))
    assert patients == ["715761", "715761", "12", "99", "", "13"] and set(foreign) == {""}
    said = capsys.readouterr().err
    assert "3 ids of labels.csv and 3 of DICOM headers, 2 joined, 1 of them without leading zeros" in said


def test_headers_of_another_kind_join_by_the_films_that_have_both(capsys: pytest.CaptureFixture[str]) -> None:
    """Equal ids mean nothing then: 7 of the table is not 7 of the headers."""
    patients, foreign = joined(("5", "x5"), ("6", "7"), ("7", "x7"), ("", "x7"), ("", "7"), ("8", ""))
    assert patients == ["5", "6", "7", "7", "6", "8"]
    assert foreign == ["x5", "7", "x7", "x7", "7", ""]
    assert "joined, by films that have both" in capsys.readouterr().err


def test_contradictions_join_patients_and_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    patients, _ = joined(("a", "a"), ("b", "b"), ("c", "c"), ("a", "b"))
    assert patients == ["a", "a", "c", "a"]
    said = capsys.readouterr().err
    assert "1 films have another patient in labels.csv than in their DICOM header, such as 3.dcm ('a', 'b')" in said
    assert "DICOM headers join 2 patients of labels.csv to 1, such as 'a', 'b'" in said


def test_one_id_that_a_program_wrote_for_many_is_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    patients, _ = joined(*[(f"p{n}", "TEST" if n % 2 else f"p{n}") for n in range(40)], ("", "TEST"))
    assert patients == [*(f"p{n}" for n in range(40)), ""]
    assert "the DICOM headers of 20 patients of labels.csv hold the one id 'TEST': not read" in capsys.readouterr().err


def test_ids_that_contradict_each_other_everywhere_stop(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"join 30 patients of labels\.csv to one with 59 of 59 films"):
        joined(*[(f"p{n}", f"p{n}") for n in range(30)], *[(f"p{n}", f"p{n + 1}") for n in range(29)])
    joined(*[("p1", "")] * 30, ("p2", ""))
    assert "30 of 31 films are of one patient, 'p1'" in capsys.readouterr().err
