"""Films that come and go under an earlier split: known parts stay, and nothing that training has seen is held out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_config import data_config
from PIL import Image

from dataset_loader.ids import KEY_FILE
from dataset_loader.splits import PARTS, split_by_group
from dataset_loader.xrays import XRays, open_xrays
from self_sup_classes.provenance import Provenance, check_unseen
from utils.config import UserError


def add_films(root: Path, *names: str) -> None:
    for name in names:
        noise = np.random.default_rng(list(name.encode())).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(root / name)


def opened(root: Path, also: list[str] | None = None, **changes: Any) -> XRays:
    return open_xrays(data_config(dataset="folder", data_root=str(root), **changes), torch.device("cpu"), also)


def part_by_file(xrays: XRays) -> dict[str, str]:
    return dict(zip(xrays.columns.paths, xrays.parts, strict=True))


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
def test_a_month_later_parts_stay_and_the_encoder_is_taken(
    clinic: Path, tmp_path: Path, ids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = opened(clinic, [], ids=ids)
    first.write_split(tmp_path)
    saw = Provenance(first.split_hash, first.image_ids(first.pretraining_indices("train")))
    before, table = part_by_file(first), pd.read_csv(clinic / "labels.csv", keep_default_na=False)
    assert len(saw.seen) == 100 and (tmp_path / "films" / KEY_FILE).exists() == (ids == "hashed")
    assert ("000.png" in (tmp_path / "split.csv").read_text()) == (ids == "plain")

    held_out = {part: first.columns.paths[first.indices(part)[0]] for part in PARTS}
    patient = table.set_index("file")["patient"]
    second_film = {f"new_{part}.png": patient[held_out[part]] for part in PARTS}
    add_films(clinic, *second_film, *(f"n{number:02d}.png" for number in range(20)))
    with Image.open(clinic / held_out["test"]) as image:
        image.point([value * 0.8 for value in range(256)]).save(clinic / "copy.png")
    lost = patient[first.columns.paths[first.indices("test")[-1]]]
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
    said, parts = capsys.readouterr().err, part_by_file(now)
    assert all(parts[file] == part for file, part in before.items() if file not in gone)
    assert all(parts[f"new_{part}.png"] == part for part in PARTS) and parts["copy.png"] == "test"
    assert parts["again.png"] == "test"
    assert {parts[f"{number}.png"] for number in range(100, 120)} == {"train"}
    assert check_unseen(saw, now, allow_seen=False, encoder="it") == ""
    new = [part for file, part in parts.items() if file not in before]
    counts = ", ".join(f"{new.count(part)} {part}" for part in PARTS)
    assert f"split.csv: 98 films known, 45 new ({counts}), 2 gone" in said and "20 of the new ones had no label" in said
    assert [new.count(part) for part in PARTS[1:]] == [4, 6]  # a tenth of 143 is 14; 10 and 8 were there
    facts: Any = now.facts()["kept"]
    assert facts["known"] == 98 and facts["gone"] == 2 and facts["new_val"] == new.count("val")
    with pytest.raises(UserError, match="--keep-split"):
        check_unseen(saw, opened(clinic), allow_seen=False, encoder="it")


def test_what_joins_parts_is_train_and_said(clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = opened(clinic)
    first.write_split(tmp_path)
    table = pd.read_csv(clinic / "labels.csv", keep_default_na=False)
    train, val, test = (str(first.columns.paths[first.indices(part)[0]]) for part in PARTS)
    patient = table.set_index("file")["patient"]
    same = table["patient"].isin([patient[train], patient[test]])
    change(clinic, table.assign(patient=table["patient"].mask(same, patient[train])))  # a patient had two numbers
    parts = part_by_file(opened(clinic, keep_split=str(tmp_path / "split.csv")))
    assert parts[train] == parts[test] == "train" and parts[val] == "val"
    said = capsys.readouterr().err
    assert f"share a patient or a picture with a film of that part: 2 ({test}: test -> train" in said


def test_the_parts_that_a_table_names_come_first(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = opened(clinic)
    first.write_split(tmp_path)
    table = pd.read_csv(clinic / "labels.csv", keep_default_na=False)
    one = str(first.columns.paths[first.indices("train")[0]])
    change(clinic, table.assign(part=np.where(table["file"] == one, "test", "")))
    now = part_by_file(opened(clinic, keep_split=str(tmp_path / "split.csv")))
    assert (
        now[one] == "test" and sum(now[file] != part for file, part in part_by_file(first).items()) == 2
    )  # its patient
    assert "the source names it" in capsys.readouterr().err


def test_what_is_no_split_of_these_films_is_refused(clinic: Path, tmp_path: Path) -> None:
    for ids, wanted in (("none", "names no image"), ("hashed", "names no image")):
        opened(clinic, ids=ids).write_split(tmp_path / ids)
        (clinic / KEY_FILE).unlink(missing_ok=True)  # a hash without its key
        with pytest.raises(UserError, match=wanted):
            opened(clinic, keep_split=str(tmp_path / ids / "split.csv"))
    for name in ("gone.csv", str(clinic / "labels.csv")):
        with pytest.raises(UserError, match="is no split"):
            opened(clinic, keep_split=str(name))


def test_shares_are_those_of_all_images_after_many_months() -> None:
    paths, parts = np.array([], dtype=str), np.array([], dtype=str)
    for month in range(20):
        paths = np.append(paths, [f"{month}/{number}.png" for number in range(50)])
        groups = np.array([f"{path[:-5]}" for path in paths])  # ten films of a patient, one of another
        kept = np.append(parts, [""] * 50)
        again = split_by_group(paths, groups, np.arange(len(paths)) % 3, 0, kept=kept)
        assert (again[kept != ""] == parts).all()
        parts = again
    assert {part: (parts == part).mean() for part in PARTS[1:]} == pytest.approx({"val": 0.1, "test": 0.1}, abs=0.02)


def test_sizes_of_parts_are_keys(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = opened(clinic, val_share=0.0, test_share=0.3).facts()["images_by_part"]
    assert counts == {"train": 70, "val": 0, "test": 30}
    for wrong in ({"val_share": -0.1}, {"test_share": float("nan")}, {"val_share": 0.5, "test_share": 0.5}):
        with pytest.raises(UserError, match="_share is"):
            data_config(**wrong)
    table = pd.read_csv(clinic / "labels.csv", keep_default_na=False)
    change(clinic, table.assign(part=["test"] * 10 + [""] * 110))
    assert "test_share" not in capsys.readouterr().err
    opened(clinic, test_share=0.3)
    assert "test_share without effect" in capsys.readouterr().err
