"""Films that come and go under an earlier split: known parts stay, and nothing that training has seen is held out."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from data_config import data_config
from data_config import opened as open_data
from PIL import Image

from dataset_loader.ids import KEY_FILE
from dataset_loader.splits import FOLD_NAMES, FOLDS, PARTS
from dataset_loader.xrays import XRays
from self_sup_classes.provenance import Provenance, check_unseen
from utils.config import UserError

opened = partial(open_data, "folder")


def add_films(root: Path, *names: str) -> None:
    for name in names:
        noise = np.random.default_rng(list(name.encode())).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(root / name)


def place_by_file(xrays: XRays) -> dict[str, str]:
    return dict(zip(xrays.columns.paths, xrays.places, strict=True))


def first_of(xrays: XRays, *places: str) -> list[str]:
    """The first film of each place."""
    return [str(xrays.columns.paths[xrays.places == place][0]) for place in places]


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """100 labelled films, two of each patient, and 20 without a label, of ten others."""
    root = tmp_path / "films"
    root.mkdir()
    files = [f"{number:03d}.png" for number in range(120)]
    rows = [(file, "" if n >= 100 else "ab"[n // 2 % 2], f"p{n // 2}") for n, file in enumerate(files)]
    add_films(root, *files)
    pd.DataFrame(rows, columns=["file", "label", "patient"]).to_csv(root / "labels.csv", index=False)
    return root


def change(root: Path, table: Any) -> None:
    table.to_csv(root / "labels.csv", index=False)


@pytest.mark.parametrize("ids", ["plain", "hashed"])
def test_a_month_later_folds_stay_and_the_encoder_is_taken(
    clinic: Path, tmp_path: Path, ids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = opened(clinic, [], ids=ids)
    first.of_fold(3).write_split(tmp_path)  # whichever fold a run was of, its split.csv has all five
    saw = Provenance(first.split_hash, first.image_ids(first.pretraining_indices("train")))
    before, table = place_by_file(first), pd.read_csv(clinic / "labels.csv", keep_default_na=False)
    assert len(saw.seen) == 92 and (tmp_path / "films" / KEY_FILE).exists() == (ids == "hashed")
    assert ("000.png" in (tmp_path / "split.csv").read_text()) == (ids == "plain")

    places = ["val", *FOLD_NAMES]
    held_out = dict(zip(places, first_of(first, *places), strict=True))
    patient = table.set_index("file")["patient"]
    second_film = {f"new_{place}.png": patient[file] for place, file in held_out.items()}
    add_films(clinic, *second_film, *(f"n{number:02d}.png" for number in range(20)))
    with Image.open(clinic / held_out["0"]) as image:
        image.point([value * 0.8 for value in range(256)]).save(clinic / "copy.png")
    lost = patient[first.columns.paths[first.places == "0"][-1]]
    assert lost not in second_film.values()
    gone = table.loc[table["patient"] == lost, "file"].tolist()  # both films of a patient, who comes again
    second_film["again.png"] = lost
    add_films(clinic, "again.png")
    for file in gone:
        (clinic / file).unlink()
    table.loc[100:119, "label"] = "a"  # they had no label, and the encoder has seen them
    rows = [(file, "a", number) for file, number in second_film.items()]
    rows += [(f"n{number:02d}.png", "ab"[number % 2], f"q{number}") for number in range(20)] + [("copy.png", "a", "x")]
    change(clinic, pd.concat([table[~table["file"].isin(gone)], pd.DataFrame(rows, columns=[*table])]))

    capsys.readouterr()
    now = opened(clinic, keep_split=str(tmp_path / "split.csv"))
    said, after = capsys.readouterr().err, place_by_file(now)
    assert all(after[file] == place for file, place in before.items() if file not in gone)
    assert all(after[f"new_{place}.png"] == place for place in places)
    assert after["copy.png"] == after["again.png"] == "0"
    assert {after[f"{number}.png"] for number in range(100, 120)} == {"train"}
    assert check_unseen(saw, now, allow_seen=False, encoder="it") == ""
    with pytest.raises(UserError, match=r"it was trained on \d+ of the"):
        check_unseen(saw, now.of_fold(1), allow_seen=False, encoder="it")
    new = [part for file, part in zip(now.columns.paths, now.parts, strict=True) if file not in before]
    counts = ", ".join(f"{new.count(part)} {part}" for part in PARTS)
    assert f"split.csv: 98 films known, 48 new ({counts}), 2 gone" in said and "20 of the new ones had no label" in said
    drawn = [list(after.values()).count(place) for place in places]
    assert drawn[0] == 13 and max(drawn[1:]) - min(drawn[1:]) <= 1, drawn  # of 126 that are not kept as train
    facts: Any = now.facts()["kept"]
    assert facts["known"] == 98 and facts["gone"] == 2 and facts["new_val"] == new.count("val")
    with pytest.raises(UserError, match="--keep-split"):
        check_unseen(saw, opened(clinic), allow_seen=False, encoder="it")


def test_what_joins_parts_is_train_and_said(clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = opened(clinic)
    first.write_split(tmp_path)
    table = pd.read_csv(clinic / "labels.csv", keep_default_na=False)
    val, one, two, three = first_of(first, "val", "1", "2", "3")
    patient = dict(zip(table["file"], table["patient"], strict=True))
    merged = table["patient"].replace({patient[two]: patient[one], patient[three]: patient[val]})
    change(clinic, table.assign(patient=merged))  # two patients had two numbers each
    after = place_by_file(opened(clinic, keep_split=str(tmp_path / "split.csv")))
    assert {after[file] for file in (val, one, two, three)} == {"train"}  # each fold was train for the others
    moved = {file for file, place in place_by_file(first).items() if after[file] != place}
    assert moved == set(table.loc[merged.isin([patient[one], patient[val]]), "file"])
    said = capsys.readouterr().err
    assert "share a patient or a picture with a film of that part: 8 (" in said
    assert all(f"{file}: {text} -> train" in said for file, text in ((one, "fold 1"), (val, "val")) if file in said)


def test_a_split_of_before_there_were_folds_keeps_its_parts(clinic: Path, tmp_path: Path) -> None:
    first = opened(clinic)
    first.of_fold(2).write_split(tmp_path)
    written = pd.read_csv(tmp_path / "split.csv", keep_default_na=False)
    written.drop(columns="fold").to_csv(tmp_path / "split.csv", index=False)
    now = opened(clinic, keep_split=str(tmp_path / "split.csv"))
    assert not now.has_folds and now.split_hash == first.of_fold(2).split_hash
    table, new = pd.read_csv(clinic / "labels.csv"), [f"n{number:02d}.png" for number in range(20)]
    add_films(clinic, *new)
    change(clinic, pd.concat([table, pd.DataFrame({"file": new, "label": ["a", "b"] * 10, "patient": new})]))
    more = opened(clinic, keep_split=str(tmp_path / "split.csv"))
    is_new, drawn = np.isin(more.columns.paths, new), more.places[np.isin(more.columns.paths, new)]
    for fold in range(FOLDS):  # new films alone are folds; validation has its share of what is no kept train or test
        assert (more.of_fold(fold).parts[~is_new] == first.of_fold(2).parts).all()
        assert ((more.of_fold(fold).parts[is_new] == "test") == (drawn == str(fold))).all()
    assert set(drawn) == set(FOLD_NAMES)


def test_parts_of_a_table_come_first(clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = opened(clinic)
    first.write_split(tmp_path)
    table = pd.read_csv(clinic / "labels.csv", keep_default_na=False)
    (one,) = first_of(first, "4")
    change(clinic, table.assign(part=np.where(table["file"] == one, "test", "")))
    now = place_by_file(opened(clinic, keep_split=str(tmp_path / "split.csv")))
    changed = [file for file, place in place_by_file(first).items() if now[file] != place]
    assert now[one] == "test" and len(changed) == 2  # its patient
    assert "the source names it" in capsys.readouterr().err


def test_what_is_no_split_of_these_films_is_refused(clinic: Path, tmp_path: Path) -> None:
    for ids in ("none", "hashed"):
        opened(clinic, ids=ids).write_split(tmp_path / ids)
        (clinic / KEY_FILE).unlink(missing_ok=True)  # a hash without its key
        with pytest.raises(UserError, match="names no image"):
            opened(clinic, keep_split=str(tmp_path / ids / "split.csv"))
    for name in ("gone.csv", str(clinic / "labels.csv")):
        with pytest.raises(UserError, match="is no split"):
            opened(clinic, keep_split=str(name))


def test_the_size_of_the_validation_part_is_a_key(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert opened(clinic, val_share=0.0).facts()["images_by_part"] == {"train": 80, "val": 0, "test": 20}
    assert opened(clinic, val_share=0.5).facts()["images_by_part"] == {"train": 40, "val": 50, "test": 10}
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="val_share is"):
            data_config(val_share=wrong)
    table = pd.read_csv(clinic / "labels.csv", keep_default_na=False)
    change(clinic, table.assign(part=["val"] * 10 + [""] * 110))
    assert "without effect" not in capsys.readouterr().err
    opened(clinic, val_share=0.3)
    assert "val_share without effect" in capsys.readouterr().err
