"""The one door to data: both layouts, what is kept and what is said about it."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_config import data_config
from PIL import Image

from augmentations.transform_utils import plain_view
from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT, ensure_phantoms
from dataset_loader.splits import FOLD_NAMES, FOLDS, PARTS
from dataset_loader.xrays import DataConfig, FoldConfig, XRays, open_xrays
from utils.config import UserError, make_config


def data(dataset: str, root: Path, size: int = 32) -> DataConfig:
    return data_config(dataset=dataset, data_root=str(root), store_res=size, img_res=32)


CPU = torch.device("cpu")


def opened(dataset: str, root: Path, size: int = 32) -> XRays:
    return open_xrays(data(dataset, root, size), CPU)


@pytest.mark.parametrize(("dataset", "root"), [("covid", COVID_ROOT), ("chexpert", CHEXPERT_ROOT)])
def test_parts_share_no_group_and_hold_every_image(phantoms: Path, dataset: str, root: str) -> None:
    xrays = opened(dataset, phantoms / root)
    parts = [xrays.indices(part) for part in PARTS]
    assert sorted(np.concatenate(parts)) == list(xrays.indices("all")) == list(range(len(xrays)))
    groups = [set(xrays.columns.groups[part]) for part in parts]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    facts = xrays.facts()
    assert facts["synthetic"] is True
    assert facts["images"] == len(xrays)
    assert facts["multilabel"] is (dataset == "chexpert")
    assert facts["duplicate_pairs"] == len(xrays.duplicates)


def test_each_image_is_validation_or_the_test_of_one_fold(phantoms: Path) -> None:
    folds = [opened("covid", phantoms / COVID_ROOT).of_fold(fold) for fold in range(FOLDS)]
    assert folds[0].has_folds and len({xrays.split_hash for xrays in folds}) == FOLDS
    tested = np.concatenate([xrays.indices("test") for xrays in folds])
    assert sorted([*tested, *folds[0].indices("val")]) == list(range(len(folds[0])))
    for xrays in folds:
        assert np.array_equal(xrays.indices("val"), folds[0].indices("val"))
        assert not set(xrays.columns.groups[xrays.indices("test")]) & set(xrays.columns.groups[xrays.indices("train")])
        assert xrays.facts()["fold"] == xrays.fold


@pytest.mark.parametrize("fold", [-1, 5])
def test_there_are_five_folds(phantoms: Path, fold: int) -> None:
    config = {**vars(data("covid", phantoms / COVID_ROOT)), "fold": fold}
    with pytest.raises(UserError, match=f"fold is {fold}; there are the folds 0 to 4"):
        make_config(FoldConfig, config)
    held_out = open_xrays(make_config(FoldConfig, {**config, "fold": 3}), torch.device("cpu"))
    assert held_out.fold == 3 and (held_out.places[held_out.indices("test")] == "3").all()


def test_built_in_xrays_without_labels_are_for_pretraining_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fewer(folder: Path, *, images: int, unlabelled: int, planted_marker: bool) -> Path:
        assert (images, unlabelled, planted_marker) == (2400, 3600, False)
        return ensure_phantoms(folder, images=80, unlabelled=24, size=64)

    monkeypatch.setattr("dataset_loader.xrays.ensure_phantoms", fewer)
    xrays = open_xrays(data("phantom", tmp_path), torch.device("cpu"), [])
    assert (xrays.source, len(xrays)) == ("phantom", 80)
    assert list(xrays.pretraining_indices("train")) == [*xrays.indices("train"), *range(80, 104)]
    for fold in range(FOLDS):
        assert np.array_equal(xrays.of_fold(fold).parts, xrays.columns.named_parts)
    assert all((xrays.columns.root / mask).is_file() for mask in xrays.columns.masks)
    assert opened("phantom", tmp_path).also == ()
    with_folds = open_xrays(data("phantom_folds", tmp_path), torch.device("cpu"), [])  # the same without these parts
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
    shapes = [(side, side + 20)] * 30 + [(70, 70)]  # one of many may be smaller, and is left out
    for number, shape in enumerate(shapes):
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    if side < 64:  # which cannot be compared
        with pytest.raises(UserError, match="smaller than the 64 px"):
            open_xrays(data_config(dataset="folder", data_root=str(tmp_path), store_res=0, img_res=img_res), CPU)
        return
    xrays = open_xrays(data_config(dataset="folder", data_root=str(tmp_path), store_res=0, img_res=img_res), CPU)
    assert xrays.store.size == stored
    enlarged = "the X-rays have 90 px; views of 128 px are enlarged from them"
    assert (enlarged in capsys.readouterr().err) == (side < img_res)
    assert plain_view(xrays.batch(torch.arange(3)), img_res, 1).shape == (3, 1, img_res, img_res)


def test_what_is_wrong_is_said(tmp_path: Path, phantoms: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'chexpert'"):
        opened("chexper", phantoms)
    with pytest.raises(UserError, match="--dataset phantom"):
        opened("chexpert", tmp_path / "absent")
    with pytest.raises(UserError, match=r"64 x 64 px is smaller than the 100 px that it is decoded to.*Lower store"):
        opened("covid", phantoms / COVID_ROOT, size=100)
    with pytest.raises(UserError, match="store_res is 16 and img_res 32"):
        opened("covid", phantoms / COVID_ROOT, size=16)


@pytest.mark.slow
def test_real_patients_with_the_same_film_are_one_group(real_xrays: Path) -> None:
    xrays = opened("chexpert", real_xrays / "CheXpert-v1.0-small")
    joined = 4708 - len(np.unique(xrays.columns.groups))
    assert 0 < joined <= len(xrays.duplicates) < 100
