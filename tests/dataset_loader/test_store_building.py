"""Building a store: whatever is killed, broken or run twice, the result is the same."""

import multiprocessing
import os
import sys
import time
from collections import namedtuple
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from images import SIZE, contents, count_decodings, make_images
from PIL import Image

from dataset_loader import decoding, image_store, store_building
from dataset_loader.decoding import decode_square
from dataset_loader.image_store import open_store
from utils.config import UserError


@pytest.mark.parametrize("count", [15, 60])
def test_a_store_larger_than_the_images_is_one_sentence(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "in", count)
    monkeypatch.setattr(store_building, "_CHUNK_BYTES", 30 * 64 * 64)  # 60 images: stops half-way
    for _ in range(2):  # the second call finds nothing half-built
        with pytest.raises(UserError) as caught:
            open_store(tmp_path / "in", names, 64, tmp_path / "cache")
        message = str(caught.value)
        assert message.startswith("15 of 15 images" if count == 15 else "30 of the first 30 images")
        assert "0000.png: 32 x 32 px is smaller than the 64 px that it is decoded to" in message
        assert "Lower store_res or img_res" in message
    (folder,) = (tmp_path / "cache").iterdir()
    assert set(contents(folder)) == {"rejected.csv"}


def test_the_share_of_broken_files_has_a_limit(tmp_path: Path):
    broken = (1, 2, 3, 4)
    make_images(tmp_path / "in", 41, broken)
    names = sorted(path.name for path in (tmp_path / "in").iterdir())
    assert len(open_store(tmp_path / "in", names[:40], SIZE, tmp_path / "cache")) == 36
    with pytest.raises(UserError, match=r"4 of 39 images cannot be used, more than 10%.*0001\.png: not an image"):
        open_store(tmp_path / "in", names[:39], SIZE, tmp_path / "cache")


def test_masks_are_no_broken_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = make_images(tmp_path / "in", 40, broken=(7,))
    for n in range(20, 40):
        Image.fromarray(np.tri(SIZE, SIZE, n - 30, np.uint8) * 255).save(tmp_path / "in" / names[n])
    store = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    np.testing.assert_array_equal(store.kept, [n for n in range(20) if n != 7])
    told = "21 of 40 images left out (among them no X-rays: 20 times a mask or a drawing, of 2 gray levels): see"
    assert told in capsys.readouterr().err
    with pytest.raises(UserError, match="none of the 20 files is an X-ray: 20 times a mask"):
        open_store(tmp_path / "in", names[20:], SIZE, tmp_path / "cache")
    with pytest.raises(UserError, match=r"1 of 5 images cannot be used, .*: 0007\.png: not an image"):
        open_store(tmp_path / "in", [*names[4:8], names[9], *names[20:]], SIZE, tmp_path / "cache")


def test_a_full_disk_or_none_is_reported_before_the_first_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "in", 20)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store_building.shutil, "disk_usage", lambda _: usage(100, 0, 20 * SIZE * SIZE - 1))
    decoded = count_decodings(monkeypatch)
    with pytest.raises(UserError, match=r"need 0\.0 GB more"):
        open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot lock .*; choose a folder"):
        open_store(tmp_path / "in", names, SIZE, tmp_path / "file")
    assert decoded == []


@pytest.mark.parametrize(("name", "how"), [("images.npy", "truncated"), ("images.npy", "gone"), ("kept.npy", "gone")])
def test_an_incomplete_store_is_built_again(
    tmp_path: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    names = make_images(tmp_path / "in", 20, broken=(7,))
    folder = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache").folder
    expected, path = contents(folder), folder / name
    decoded = count_decodings(monkeypatch)
    path.unlink() if how == "gone" else path.write_bytes(path.read_bytes()[:-1])
    open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert len(decoded) == 20 and contents(folder) == expected
    assert "are incomplete; decoding them again" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_build_that_fills_the_disk_says_so_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import resource

    names = make_images(tmp_path / "in", 60)
    monkeypatch.setattr(store_building, "_CHUNK_BYTES", 10 * SIZE**2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (35 * SIZE**2, limits[1]))
    try:
        with pytest.raises(UserError, match=r"images.npy cannot be written \(File too large; .* the same command res"):
            open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / ".store.json.123.tmp").touch()
    with (folder / "images.npy").open("ab") as images:  # what a kill in mid-write leaves behind
        images.write(b"half an image")
    decoded = count_decodings(monkeypatch)
    resumed = open_store(tmp_path / "in", names, SIZE, tmp_path / "cache")
    assert min(decoded) == names[30]
    assert contents(resumed.folder) == contents(open_store(tmp_path / "in", names, SIZE, tmp_path / "other").folder)


def build_slowly(root: Path, folder: Path, place: Path) -> None:
    """Build once two processes are there; list what is decoded below `place`."""
    names, decoded = sorted(path.name for path in root.iterdir()), place / str(os.getpid())

    def decode(file: str, size: int) -> np.ndarray:
        time.sleep(0.005)
        with decoded.open("a") as list_of_files:
            list_of_files.write(f"{file}\n")
        return decode_square(file, size)

    with mock.patch.object(decoding, "decode_square", decode):
        decoded.touch()
        while len(list(place.iterdir())) < 2:
            time.sleep(0.01)
        store_building.build_store(root, names, SIZE, folder, show_progress=False)
    assert store_building.finished_store(folder, SIZE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_of_two_processes_one_builds_and_both_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    names, place = make_images(tmp_path / "in", 100, broken=(42,)), tmp_path / "decoded"
    folder = tmp_path / "cache" / image_store._key(tmp_path / "in", names, SIZE)
    place.mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=build_slowly, args=(tmp_path / "in", folder, place)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    counts = [len(file.read_text().splitlines()) for file in place.iterdir()]
    assert sorted(counts) == [0, 100]
    assert capfd.readouterr().err.count("another process") == 1
    alone = open_store(tmp_path / "in", names, SIZE, tmp_path / "other")
    assert contents(folder) == contents(alone.folder)
