"""The store: every image once, in order, looked up the next time."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from images import SIZE, count_decodings, make_images
from PIL import Image

from dataset_loader import image_store
from dataset_loader.decoding import decode_square, square_or_error
from dataset_loader.image_files import NoXRayError
from dataset_loader.image_store import open_store
from dataset_loader.readers.chexpert_dataset import read_chexpert
from dataset_loader.readers.covid_dataset import read_covid
from utils.config import UserError


def test_every_image_is_stored_as_it_is_decoded_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "in", 40)
    store = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert (store.array.shape, store.array.dtype) == ((40, 1, SIZE, SIZE), np.uint8)
    assert (len(store), store.size) == (40, SIZE)
    np.testing.assert_array_equal(store.kept, np.arange(40))
    for n, name in enumerate(names):
        np.testing.assert_array_equal(store.array[n, 0], decode_square(tmp_path / "in" / name, SIZE))
    assert isinstance(store.array, np.memmap) and not store.array.flags.writeable
    decoded = count_decodings(monkeypatch)
    again = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert decoded == [] and again.folder == store.folder
    np.testing.assert_array_equal(again.array, store.array)


def test_broken_files_are_listed_with_their_reasons_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = make_images(tmp_path / "in", 40, broken=(0, 17))
    Image.fromarray(np.zeros((20, 19), np.uint8)).save(tmp_path / "in" / names[39])
    store = open_store(tmp_path / "in", [*names, 'gone, "away".png'], SIZE, tmp_path / "cache")
    np.testing.assert_array_equal(store.kept, [n for n in range(39) if n not in (0, 17)])
    np.testing.assert_array_equal(store.gather(np.arange(len(store)))[:, 0, 0, 0], store.kept)
    with (store.folder / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[:4] == [
        ["file", "reason"],
        ["0000.png", "not an image"],
        ["0017.png", "not an image"],
        ["0039.png", "19 x 20 px is smaller than the 32 px that it is decoded to"],
    ]
    assert rows[4][0] == 'gone, "away".png'
    told = capsys.readouterr().err
    assert told.count("rejected.csv") == 1
    assert "4 of 41 images left out" in told
    again = open_store(tmp_path / "in", [*names, 'gone, "away".png'], SIZE, tmp_path / "cache")
    np.testing.assert_array_equal(again.kept, store.kept)


def test_another_request_is_another_store(tmp_path: Path):
    names = make_images(tmp_path / "in", 20)

    def folder(chosen: list[str] = names, size: int = SIZE) -> Path:
        return open_store(tmp_path / "in", chosen, size, tmp_path / "cache").folder

    folders = [folder(), folder(size=16), folder(names[1:]), folder(names[::-1])]
    os.utime(tmp_path / "in" / names[0], ns=(1, 1))
    folders.append(folder())
    assert len(set(folders)) == 5


@pytest.mark.parametrize("place", ["elsewhere", "in"])
def test_images_of_equal_names_sizes_and_times_are_not_mistaken(tmp_path: Path, place: str):
    names = [f"{row}.bmp" for row in range(5)]

    def draw(folder: Path, gray: int) -> None:
        folder.mkdir(exist_ok=True)
        for name in names:
            Image.fromarray(np.diag(np.linspace(0, gray, SIZE).astype(np.uint8))).save(folder / name)
            os.utime(folder / name, ns=(1, 1))

    draw(tmp_path / "in", 100)
    assert open_store(tmp_path / "in", names, SIZE, tmp_path / "cache").gather(np.arange(5)).max() == 100
    draw(tmp_path / place, 200)
    assert open_store(tmp_path / place, names, SIZE, tmp_path / "cache").gather(np.arange(5)).max() == 200
    (tmp_path / "link").symlink_to(tmp_path / place)
    open_store(tmp_path / "link", names, SIZE, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_no_file_at_all_is_a_users_error(tmp_path: Path):
    with pytest.raises(UserError, match="no image"):
        open_store(tmp_path, [], SIZE, tmp_path / "cache")


@pytest.mark.parametrize("resident", [False, True])
def test_gather_takes_rows_in_the_order_asked(tmp_path: Path, resident: bool, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "in", 40)
    store = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    expected = torch.from_numpy(np.array(store.array))
    monkeypatch.setattr(image_store, "_fits", lambda *_: resident)
    moved = store.to("cpu")
    assert isinstance(moved.array, torch.Tensor) == resident
    for rows in ([3, 39, 0, 3], [], range(40)):
        for indices in (np.array(rows, dtype=np.int64), torch.tensor(list(rows), dtype=torch.int64)):
            batch = moved.gather(indices)
            assert (batch.dtype, batch.shape) == (torch.uint8, (len(rows), 1, SIZE, SIZE))
            assert torch.equal(batch, expected[list(rows)])
    for outside in ([40], [0, -1]):
        with pytest.raises(IndexError, match="a store of 40"):
            moved.gather(np.array(outside))
    batch = moved.gather(np.array([1]))
    batch.zero_()  # a batch is the caller's own
    assert torch.equal(moved.gather(np.array([1])), expected[[1]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_gather_onto_a_gpu(tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "in", 40)
    store = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    monkeypatch.setattr(image_store, "MAX_DEVICE_SHARE", share)
    moved = store.to("cuda")
    assert isinstance(moved.array, torch.Tensor) == (share > 0)
    rows = torch.tensor([3, 39, 0, 3])
    for indices in (rows, rows.cuda(), rows.numpy()):
        batch = moved.gather(indices)
        assert batch.is_cuda
        assert torch.equal(batch.cpu(), store.gather(rows))
    assert not moved.to("cpu").gather(rows).is_cuda


def test_real_images_are_all_usable(tmp_path: Path, real_xrays: Path):
    chexpert, covid = real_xrays / "CheXpert-v1.0-small", real_xrays / "COVID-19_Radiography_Dataset"
    for columns in (
        read_chexpert(chexpert).take(np.arange(0, 5424, 12)),
        read_covid(covid).take(np.arange(0, 2336, 6)),
    ):
        store = open_store(columns.root, columns.paths.tolist(), 224, tmp_path, show_progress=False)
        assert len(store) == len(columns)
        assert 60 < store.gather(np.arange(len(store))).float().mean() < 190
    for mask in sorted(covid.glob("*/masks/*")):
        assert isinstance(square_or_error(mask, 64), NoXRayError)
