"""Ids: the same value has the same hash everywhere, nobody can try numbers without the key, and the key is no run's."""

import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from dataset_loader import ids
from dataset_loader.ids import KEY_FILE, Ids, open_ids
from utils.config import UserError

PATIENTS = ["0715761", "p2", "", "0715761"]


def test_hashes_are_keyed_and_the_same_in_every_run(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    one, two = open_ids("hashed", tmp_path), open_ids("hashed", tmp_path / "new")  # the key lies in a folder around it
    key = bytes.fromhex((tmp_path / KEY_FILE).read_text())
    hashed = [hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:16] for patient in PATIENTS]
    assert one.numbers(PATIENTS).tolist() == two.names(PATIENTS).tolist() == [*hashed[:2], "", hashed[3]]
    assert one.files(["a/0715761.png"])[0] == "file-" + one.numbers(["a/0715761.png"])[0]
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    assert Ids("hashed", b"another key").numbers(["p2"]) != one.numbers(["p2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [KEY_FILE, "new", "other"]


def test_none_writes_numbers_where_rows_must_be_told_apart_and_nothing_else() -> None:
    nothing = Ids("none")
    assert nothing.numbers(PATIENTS).tolist() == [""] * 4
    assert nothing.names(["p9", "p10", "p9"]).tolist() == ["2", "1", "2"]
    assert nothing.files(["b.png", "a.png"]).tolist() == ["file-2", "file-1"]
    assert Ids().numbers(PATIENTS).tolist() == Ids().files(PATIENTS).tolist() == PATIENTS


def test_a_key_of_read_only_data_lies_in_the_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ids, "DATASETS_ROOT", tmp_path / "datasets")
    (tmp_path / "films").write_text("no folder: nothing can be written below it, even by root")
    before = open_ids("hashed", tmp_path / "films").numbers(PATIENTS)
    assert (tmp_path / "datasets" / KEY_FILE).exists()
    assert open_ids("hashed", tmp_path / "films").numbers(PATIENTS).tolist() == before.tolist()


def test_a_damaged_key_is_said(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("0123")
    with pytest.raises(UserError, match="64 hex digits"):
        open_ids("hashed", tmp_path)
