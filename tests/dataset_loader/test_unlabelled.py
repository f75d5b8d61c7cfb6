"""More collections beside the data set: their pixels, what is left out of them, and mistakes in naming them."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data_config import opened as open_data
from PIL import Image, ImageEnhance, ImageOps

from dataset_loader.image_files import image_files
from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT
from dataset_loader.synthetic import RECORD
from dataset_loader.xrays import XRays
from utils.config import UserError


def opened(phantoms: Path, *also: str, dataset: str = "covid") -> XRays:
    return open_data(dataset, phantoms / (COVID_ROOT if dataset == "covid" else CHEXPERT_ROOT), also)


def test_pretraining_takes_the_train_part_and_everything_beside_it(phantoms: Path) -> None:
    alone, other = opened(phantoms), opened(phantoms, dataset="chexpert")
    both = opened(phantoms, f"chexpert:{phantoms / CHEXPERT_ROOT}")
    assert len(both) == len(alone) and both.split_hash == alone.split_hash
    rows = both.pretraining_indices("train")
    assert len(rows) == len(alone.indices("train")) + len(other)
    mixed = np.array([len(both) + 3, 7, len(both), 0])
    pixels = both.batch(torch.from_numpy(mixed))
    assert torch.equal(pixels[[1, 3]], alone.batch(torch.tensor([7, 0])))
    assert torch.equal(pixels[[0, 2]], other.batch(torch.tensor([3, 0])))
    seen = both.image_ids(mixed)
    assert seen[[1, 3]].tolist() == alone.image_ids(np.array([7, 0])).tolist()
    assert seen[[0, 2]].tolist() == other.image_ids(np.array([3, 0])).tolist()  # as when it is the data set itself
    facts = both.facts()["also"]
    assert isinstance(facts, list) and facts[0]["images"] == len(other)
    with pytest.raises(IndexError):
        both.batch(torch.tensor([len(both) + len(other)]))


def test_copies_of_held_out_images_are_left_out_and_listed(phantoms: Path, tmp_path: Path) -> None:
    alone = opened(phantoms)
    root, folder = phantoms / COVID_ROOT, tmp_path / "more"
    (folder / "deep" / "masks").mkdir(parents=True)
    single = ~np.isin(alone.columns.paths, alone.duplicates[["file", "other"]].to_numpy())
    held_out = [alone.columns.paths[single & (alone.parts == part)][0] for part in ("val", "test")]
    train = alone.columns.paths[alone.indices("train")[0]]
    for number, path in enumerate([*held_out, train]):
        with Image.open(root / path) as image:
            copy = ImageEnhance.Brightness(image.convert("L")).enhance(0.8)
            (ImageOps.mirror(copy) if path == train else copy).save(folder / "deep" / f"{number}.png")
    shutil.copy(root / train, folder / "deep" / "3.png")  # the data set's own, under another name
    shutil.copy(root / train, folder / "deep" / "masks" / "mask.png")
    shutil.copy(root / train, folder / ".hidden.png")
    (folder / "notes.txt").write_text("not an image")
    assert image_files(folder).tolist() == [f"deep/{number}.png" for number in range(4)]
    both = opened(phantoms, str(folder))
    (collection,) = both.also
    assert collection.paths.tolist() == ["deep/2.png"]
    left_out = dict(zip(collection.left_out["file"], collection.left_out["other"], strict=True))
    assert left_out == {"deep/0.png": held_out[0], "deep/1.png": held_out[1]}
    both.write_split(tmp_path)
    assert "deep/0.png" in (tmp_path / "duplicates.csv").read_text()
    with Image.open(folder / "deep" / "2.png") as image:
        wanted = np.asarray(image, dtype=float).mean()
    assert both.batch(torch.tensor([len(both)])).float().mean().item() == pytest.approx(wanted, abs=3)


def test_images_of_the_data_set_and_of_its_held_out_patients_are_not_taken(phantoms: Path, tmp_path: Path) -> None:
    alone, root = opened(phantoms, dataset="chexpert"), phantoms / CHEXPERT_ROOT
    with pytest.raises(UserError, match="new to the data set"):
        opened(phantoms, f"chexpert:{root}", dataset="chexpert")
    held_out, train = (str(alone.columns.paths[alone.indices(part)[0]]) for part in ("test", "train"))
    more = tmp_path / root.name
    shutil.copytree(root, more)
    table = pd.read_csv(more / "train.csv")
    for path in (held_out, train):  # another picture of the same patient
        name = Path(path).with_name("view9_frontal.jpg").as_posix()
        noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(more / name)
        row = table[table["Path"].str.endswith(path)].iloc[:1]
        table = pd.concat([table, row.assign(Path=row["Path"].str.replace(Path(path).name, "view9_frontal.jpg"))])
    table.to_csv(more / "train.csv", index=False)
    (collection,) = opened(phantoms, f"chexpert:{more}", dataset="chexpert").also
    assert collection.paths.tolist() == [Path(train).with_name("view9_frontal.jpg").as_posix()]


def test_images_that_cannot_be_compared_with_held_out_ones_are_left_out(phantoms: Path, tmp_path: Path) -> None:
    alone = opened(phantoms)
    with Image.open(phantoms / COVID_ROOT / alone.columns.paths[alone.indices("val")[0]]) as image:
        image.resize((48, 48)).save(tmp_path / "small.png")
    for number, row in enumerate(alone.indices("train")[:10]):  # more than a tenth of small ones is an error
        with Image.open(phantoms / COVID_ROOT / alone.columns.paths[row]) as image:
            ImageOps.mirror(image).save(tmp_path / f"large{number}.png")
    (collection,) = opened(phantoms, str(tmp_path)).also
    assert collection.paths.tolist() == [f"large{number}.png" for number in range(10)]


def test_copies_and_patients_of_other_collections_are_excluded(phantoms: Path, tmp_path: Path) -> None:
    """A later test set: one film saved as JPEG, and the films of one patient under the same public number."""
    real = tmp_path / "real"  # public numbers mean the same patients in real collections alone
    shutil.copytree(phantoms / CHEXPERT_ROOT, real, ignore=shutil.ignore_patterns(RECORD))
    data = opened(phantoms, f"chexpert:{real}")
    before = data.pretraining_indices("train")
    film, folder = data.columns.paths[data.indices("train")[0]], tmp_path / "tested"
    folder.mkdir()
    with Image.open(phantoms / COVID_ROOT / film) as image:
        image.convert("L").save(folder / "renamed.jpg", quality=60)
    one = data.without([str(folder)])
    assert set(before) - set(one.pretraining_indices("train")) == set(data.indices("train")[:1])
    assert one.facts()["excluded"] == 1 and len(one) == len(data)
    chexpert = data.also[0]
    patient = chexpert.paths[0].split("/")[1]
    rows = {len(data) + row for row, path in enumerate(chexpert.paths) if path.split("/")[1] == patient}
    other = tmp_path / "CheXpert"
    shutil.copytree(phantoms / CHEXPERT_ROOT / "train" / patient, other / "train" / patient)
    table = pd.read_csv(phantoms / CHEXPERT_ROOT / "train.csv", dtype=str)
    table[table["Path"].str.contains(f"/{patient}/")].to_csv(other / "train.csv", index=False)
    for path in (other / "train").rglob("*.jpg"):
        with Image.open(path) as image:
            ImageOps.mirror(image.transpose(Image.Transpose.ROTATE_90)).save(path)  # another picture
    assert set(before) - set(data.without([f"chexpert:{other}"]).pretraining_indices("train")) == rows
    with pytest.raises(UserError, match="there is no folder"):
        data.without([str(tmp_path / "nowhere")])


def test_a_mistake_in_also_is_one_sentence(phantoms: Path, tmp_path: Path) -> None:
    cases = {"nowhere": "no folder", "covid:nowhere": "no folder", f"mimic:{tmp_path}": "expected FOLDER"}
    for entry, message in {**cases, str(tmp_path): "no image file"}.items():
        with pytest.raises(UserError, match=message):
            opened(phantoms, entry)
