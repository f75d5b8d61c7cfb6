"""The one door to data: both layouts, what is kept and what is said about it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_config import data_config, opened
from PIL import Image

from augmentations.transform_utils import plain_view
from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT, ensure_phantoms
from dataset_loader.splits import FOLD_NAMES, FOLDS, PARTS
from dataset_loader.xrays import FoldConfig, open_xrays
from utils.config import UserError, make_config


@pytest.mark.parametrize(("dataset", "root"), [("covid", COVID_ROOT), ("chexpert", CHEXPERT_ROOT)])
def test_parts_share_no_group_and_hold_every_image(phantoms: Path, dataset: str, root: str) -> None:
    xrays = opened(dataset, phantoms / root)
    parts = [xrays.indices(part) for part in PARTS]
    assert sorted(np.concatenate(parts)) == list(xrays.indices("all")) == list(range(len(xrays)))
    groups = [set(xrays.columns.groups[part]) for part in parts]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    facts = xrays.facts()
    assert (facts["synthetic"], facts["multilabel"]) == (True, dataset == "chexpert")
    assert (facts["images"], facts["duplicate_pairs"]) == (len(xrays), len(xrays.duplicates))


def test_each_fold_has_a_split_and_a_hash_of_its_own(phantoms: Path) -> None:
    folds = [opened("covid", phantoms / COVID_ROOT).of_fold(fold) for fold in range(FOLDS)]
    assert folds[0].has_folds and len({xrays.split_hash for xrays in folds}) == FOLDS
    tested = np.concatenate([xrays.indices("test") for xrays in folds])
    assert sorted([*tested, *folds[0].indices("val")]) == list(range(len(folds[0])))
    assert [xrays.facts()["fold"] for xrays in folds] == list(range(FOLDS))


@pytest.mark.parametrize("fold", [-1, 5])
def test_there_are_five_folds(phantoms: Path, fold: int) -> None:
    config = {**vars(data_config(dataset="covid", data_root=str(phantoms / COVID_ROOT))), "fold": fold}
    with pytest.raises(UserError, match=f"fold is {fold}; there are the folds 0 to 4"):
        make_config(FoldConfig, config)
    held_out = open_xrays(make_config(FoldConfig, {**config, "fold": 3}), torch.device("cpu"))
    assert held_out.fold == 3 and (held_out.places[held_out.indices("test")] == "3").all()


def test_built_in_xrays_without_labels_are_only_pretrained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(folder: Path, *, images: int, unlabelled: int, planted_marker: bool) -> Path:
        assert (images, unlabelled, planted_marker) == (2400, 3600, False)
        return ensure_phantoms(folder, images=80, unlabelled=24, size=64)

    monkeypatch.setattr("dataset_loader.xrays.ensure_phantoms", fewer)
    xrays = opened("phantom", tmp_path, [])
    assert (xrays.source, len(xrays)) == ("phantom", 80)
    assert list(xrays.pretraining_indices("train")) == [*xrays.indices("train"), *range(80, 104)]
    for fold in range(FOLDS):
        assert np.array_equal(xrays.of_fold(fold).parts, xrays.columns.named_parts)
    assert all((xrays.columns.root / mask).is_file() for mask in xrays.columns.masks)
    assert opened("phantom", tmp_path).also == ()
    with_folds = opened("phantom_folds", tmp_path, [])  # the same without these parts
    assert with_folds.has_folds and with_folds.columns.paths.tolist() == xrays.columns.paths.tolist()
    assert with_folds.synthetic and set(with_folds.places) == {*FOLD_NAMES, "val"}
    assert list(with_folds.pretraining_indices("all")) == list(range(104))


def test_a_broken_image_is_left_out_of_columns_and_pixels(tmp_path: Path, phantoms: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(phantoms / COVID_ROOT, root)
    whole = opened("covid", root)
    victim = whole.columns.paths[3]
    (root / victim).write_bytes(b"no image")
    xrays = opened("covid", root)
    assert len(xrays) == len(whole) - 1
    assert victim not in xrays.columns.paths
    assert torch.equal(xrays.batch(torch.tensor([3])), whole.batch(torch.tensor([4])))
    assert xrays.synthetic  # the copy brings its record along


@pytest.mark.parametrize(("img_res", "stored"), [(32, 36), (48, 54), (64, 73), (224, 256)])
def test_a_store_res_of_0_leaves_an_eighth_of_room(img_res: int, stored: int) -> None:
    config = data_config(dataset="covid", data_root="", store_res=0, img_res=img_res)
    assert config.stored_size == stored
    assert dataclasses.replace(config, store_res=300).stored_size == 300


@pytest.mark.parametrize(("side", "img_res", "stored"), [(128, 128, 128), (150, 128, 146), (90, 128, 90), (40, 32, 36)])
def test_images_are_not_stored_larger_than_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], side: int, img_res: int, stored: int
) -> None:
    for number, shape in enumerate([(side, side + 20)] * 30 + [(70, 70)]):  # one of many may be smaller
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    if side < 64:  # which cannot be compared
        with pytest.raises(UserError, match="smaller than the 64 px"):
            opened("folder", tmp_path, store_res=0, img_res=img_res)
        return
    xrays = opened("folder", tmp_path, store_res=0, img_res=img_res)
    assert xrays.store.size == stored
    enlarged = "the X-rays have 90 px; views of 128 px are enlarged from them"
    assert (enlarged in capsys.readouterr().err) == (side < img_res)
    assert plain_view(xrays.batch(torch.arange(3)), img_res, 1).shape == (3, 1, img_res, img_res)


def test_what_is_wrong_is_said(phantoms: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'chexpert'"):
        opened("chexper", phantoms)
    with pytest.raises(UserError, match=r"64 x 64 px is smaller than the 100 px that it is decoded to.*Lower store"):
        opened("covid", phantoms / COVID_ROOT, store_res=100)
    with pytest.raises(UserError, match="store_res is 16 and img_res 32"):
        opened("covid", phantoms / COVID_ROOT, store_res=16)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("covid", ("Kaggle", "COVID-19 Radiography Database", "COVID/images")),
        ("chexpert", ("train.csv", "Stanford AIMI", "datasets/CheXpert-v1.0-small")),
        ("nih", ("Data_Entry_2017.csv", "nihcc")),
    ],
)
def test_missing_data_say_where_to_get_them_and_what_runs_without(tmp_path: Path, dataset: str, words: Any) -> None:
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError) as caught:
            opened(dataset, root)
        assert all(word in str(caught.value) for word in (str(root), "--dataset phantom", *words))


@pytest.mark.slow
def test_real_patients_with_the_same_film_are_one_group(real_xrays: Path) -> None:
    xrays = opened("chexpert", real_xrays / "CheXpert-v1.0-small")
    joined = 4708 - len(np.unique(xrays.columns.groups))
    assert 0 < joined <= len(xrays.duplicates) < 100
