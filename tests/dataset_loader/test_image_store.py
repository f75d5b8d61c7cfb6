"""The store: every image once, in order, whatever was killed, broken or done twice."""

import csv
import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_loader import image_store, store_building
from dataset_loader.chexpert_dataset import read_chexpert
from dataset_loader.covid_dataset import read_covid
from dataset_loader.decoding import decode_square
from dataset_loader.image_store import open_store
from utils.config import UserError

SIZE = 32


def make_images(folder: Path, count: int, broken: tuple[int, ...] = ()) -> list[str]:
    """Image n is noise with n at its first pixel; the broken ones are text."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"{n:04d}.png" for n in range(count)]
    for n, name in enumerate(names):
        if n in broken:
            (folder / name).write_text("broken")
        else:
            pixels = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
            pixels[0, 0] = n % 256
            Image.fromarray(pixels).save(folder / name)
    return names


def count_decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list grows by each file that is decoded from now on."""
    decoded: list[str] = []

    def decode(file: str, size: int) -> np.ndarray:
        decoded.append(Path(file).name)
        return decode_square(file, size)

    monkeypatch.setattr(store_building, "decode_square", decode)
    return decoded


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_every_image_is_stored_as_it_is_decoded(tmp_path: Path):
    names = make_images(tmp_path / "in", 40)
    store = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert (store.array.shape, store.array.dtype) == ((40, 1, SIZE, SIZE), np.uint8)
    assert (len(store), store.size) == (40, SIZE)
    np.testing.assert_array_equal(store.kept, np.arange(40))
    for n, name in enumerate(names):
        np.testing.assert_array_equal(store.array[n, 0], decode_square(tmp_path / "in" / name, SIZE))
    assert isinstance(store.array, np.memmap)
    assert not store.array.flags.writeable


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
        ["0039.png", "19 x 20 px is smaller than the store's 32 px; lower store_res"],
    ]
    assert rows[4][0] == 'gone, "away".png'
    told = capsys.readouterr().err
    assert told.count("rejected.csv") == 1
    assert "4 of 41 images left out" in told


def test_opening_again_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "in", 40, broken=(3,))
    first = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    decoded = count_decodings(monkeypatch)
    again = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert decoded == []
    assert again.folder == first.folder
    np.testing.assert_array_equal(again.array, first.array)
    np.testing.assert_array_equal(again.kept, first.kept)


def test_another_request_is_another_store(tmp_path: Path):
    names = make_images(tmp_path / "in", 20)

    def folder(chosen: list[str] = names, size: int = SIZE) -> Path:
        return open_store(tmp_path / "in", chosen, size, tmp_path / "cache").folder

    folders = [folder(), folder(size=16), folder(names[1:]), folder(names[::-1])]
    os.utime(tmp_path / "in" / names[0], ns=(1, 1))
    folders.append(folder())
    assert len(set(folders)) == 5
    (tmp_path / "in").rename(tmp_path / "moved")
    assert open_store(tmp_path / "moved", names, SIZE, tmp_path / "cache").folder == folders[-1]


def test_chunks_leave_no_seams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "in", 50, broken=(6, 7, 49))
    whole = open_store(tmp_path / "in", names, SIZE, tmp_path / "whole")
    monkeypatch.setattr(store_building, "_CHUNK_BYTES", 7 * SIZE * SIZE)
    chunked = open_store(tmp_path / "in", names, SIZE, tmp_path / "chunked")
    assert contents(chunked.folder) == contents(whole.folder)


@pytest.mark.parametrize("count", [15, 60])
def test_a_store_larger_than_the_images_is_one_clear_sentence(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
):
    names = make_images(tmp_path / "in", count)
    monkeypatch.setattr(store_building, "_CHUNK_BYTES", 30 * 64 * 64)  # 60 images: stops half-way
    for _ in range(2):  # the second call finds nothing half-built
        with pytest.raises(UserError) as caught:
            open_store(tmp_path / "in", names, 64, tmp_path / "cache")
        message = str(caught.value)
        assert message.startswith("15 of 15 images" if count == 15 else "30 of the first 30 images")
        assert "0000.png: 32 x 32 px is smaller than the store's 64 px; lower store_res" in message
    (folder,) = (tmp_path / "cache").iterdir()
    assert set(contents(folder)) == {"rejected.csv"}


def test_the_share_of_broken_files_has_a_limit(tmp_path: Path):
    broken = (1, 2, 3, 4)
    make_images(tmp_path / "in", 41, broken)
    names = sorted(path.name for path in (tmp_path / "in").iterdir())
    assert len(open_store(tmp_path / "in", names[:40], SIZE, tmp_path / "cache")) == 36
    with pytest.raises(UserError, match=r"4 of 39 images cannot be used, more than 10%.*0001\.png: not an image"):
        open_store(tmp_path / "in", names[:39], SIZE, tmp_path / "cache")


def test_no_file_at_all_is_a_users_error(tmp_path: Path):
    with pytest.raises(UserError, match="no image"):
        open_store(tmp_path, [], SIZE, tmp_path / "cache")


def test_a_full_disk_is_told_before_the_first_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "in", 20)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store_building.shutil, "disk_usage", lambda _: usage(100, 0, 20 * SIZE * SIZE - 1))
    decoded = count_decodings(monkeypatch)
    with pytest.raises(UserError, match=r"need 0\.0 GB more"):
        open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert decoded == []


def test_a_cache_that_cannot_be_written_is_a_users_error(tmp_path: Path):
    names = make_images(tmp_path / "in", 20)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write to"):
        open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["shorten", "unmark", "garble"])
def test_a_damaged_store_is_built_anew(tmp_path: Path, damage: str):
    names = make_images(tmp_path / "in", 20)
    folder = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache").folder
    expected = contents(folder)
    if damage == "shorten":
        (folder / "images.npy").write_bytes(expected["images.npy"][:-1])
    elif damage == "unmark":
        (folder / "store.json").unlink()
    else:
        (folder / "store.json").write_text("{}")
    open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert contents(folder) == expected


# Builds a store slowly, in chunks of 10, once `together` processes are ready; prints how many it decoded.
SLOW_BUILD = """
import sys, time
from pathlib import Path
from dataset_loader import store_building

root, folder, ready, together = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
size, decode_square, decoded = 32, store_building.decode_square, []

def decode(file, size):
    time.sleep(0.01)
    decoded.append(file)
    return decode_square(file, size)

store_building.decode_square = decode
store_building._CHUNK_BYTES = 10 * size * size
names = sorted(path.name for path in root.iterdir())
ready.touch()
while len(list(ready.parent.glob("*.ready"))) < together:
    time.sleep(0.01)
store_building.build_store(root, names, size, folder, show_progress=False)
assert store_building.is_finished(folder, size)
print(len(decoded))
"""


def start_slow_build(root: Path, folder: Path, ready: Path, together: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(folder), str(ready), str(together)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "in", 400, broken=(5, 250))
    folder = tmp_path / "cache" / image_store._key(tmp_path / "in", names, SIZE)
    process = start_slow_build(tmp_path / "in", folder, tmp_path / "1.ready")
    while (done := store_building._read_progress(folder, SIZE)[0]) < 50:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (folder / "store.json").exists()
    with (folder / "images.npy").open("ab") as images:  # what a kill in mid-write leaves behind
        images.write(b"half an image")
    decoded = count_decodings(monkeypatch)
    resumed = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert 0 < len(decoded) <= 400 - done
    undisturbed = open_store(tmp_path / "in", names, SIZE, tmp_path / "other")
    assert contents(resumed.folder) == contents(undisturbed.folder)


def test_lost_pixels_are_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file system that lost the end of images.npy, but kept the note that it was written."""
    names = make_images(tmp_path / "in", 20)
    folder = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache").folder
    expected = contents(folder)
    (folder / "store.json").unlink()
    (folder / "images.npy").write_bytes(expected["images.npy"][:5000])
    (folder / "progress.json").write_text(json.dumps({"done": 10, "rejected": {}}))
    open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert contents(folder) == expected


def test_of_two_processes_one_builds_and_both_read(tmp_path: Path):
    names = make_images(tmp_path / "in", 100, broken=(42,))
    folder = tmp_path / "cache" / image_store._key(tmp_path / "in", names, SIZE)
    processes = [start_slow_build(tmp_path / "in", folder, tmp_path / f"{n}.ready", together=2) for n in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted(int(decoded) for decoded, _ in outputs) == [0, 100]
    assert sum("another process" in told for _, told in outputs) == 1
    alone = open_store(tmp_path / "in", names, SIZE, tmp_path / "other")
    assert contents(folder) == contents(alone.folder)


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


@pytest.mark.skipif("CXR_DATA" not in os.environ, reason="CXR_DATA names no folder")
def test_real_images_are_all_usable(tmp_path: Path):
    data = Path(os.environ["CXR_DATA"])
    for columns in (
        read_chexpert(data / "CheXpert-v1.0-small").take(np.arange(0, 5424, 12)),
        read_covid(data / "COVID-19_Radiography_Dataset").take(np.arange(0, 2336, 6)),
    ):
        store = open_store(columns.root, columns.paths.tolist(), 224, tmp_path, show_progress=False)
        assert len(store) == len(columns)
        assert 60 < store.gather(np.arange(len(store))).float().mean() < 190
