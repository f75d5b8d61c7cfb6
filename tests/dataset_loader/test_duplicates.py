"""Near duplicates: planted ones are found and never cross a split; different films are not joined."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data_config import opened
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from dataset_loader.duplicates import find_copies, find_duplicates, joined_groups
from dataset_loader.image_store import open_store
from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT
from dataset_loader.signatures import copies_among, places_beyond, signs
from dataset_loader.xrays import NO_DUPLICATES


def pairs_of(table: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(table["file"], table["other"], strict=True))


def planted(phantoms: Path, root: Path) -> dict[str, str]:
    """A copy of the phantoms with copies of some images under other names and in other classes: copy -> original."""
    shutil.copytree(phantoms / COVID_ROOT, root)
    sources = sorted(path.relative_to(root).as_posix() for path in root.glob("*/images/*.png"))
    copies = {}
    for n, source in enumerate(sources[::24]):
        image = Image.open(root / source).convert("L")
        if n % 4 == 1:
            image = ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(0.9)).enhance(0.8)
        if n % 4 == 2:
            image = image.point([round(255 * (value / 255) ** 1.3) for value in range(256)])  # gamma
        if n % 4 == 3:
            image = image.resize((80, 80), Image.Resampling.BICUBIC)
        name = f"Normal/images/copy-{n}.{'jpg' if n % 4 == 2 else 'png'}"
        image.save(root / name, quality=85)
        copies[name] = source
    return copies


def test_planted_copies_are_found_and_share_a_fold(phantoms: Path, tmp_path: Path) -> None:
    copies = planted(phantoms, tmp_path / "covid")
    xrays = opened("covid", tmp_path / "covid")
    found = set(map(frozenset, pairs_of(xrays.duplicates)))
    planted_pairs = {frozenset(pair) for pair in copies.items()}
    assert planted_pairs <= found
    assert len(found - planted_pairs) <= 10  # of 31,000 pairs of phantoms, whose anatomies are similar
    assert xrays.duplicates["distance"].between(0, 0.4).all()
    place = dict(zip(xrays.columns.paths, xrays.places, strict=True))
    assert all(place[copy] == place[original] for copy, original in copies.items())
    again = opened("covid", tmp_path / "covid")
    pd.testing.assert_frame_equal(again.duplicates, xrays.duplicates)
    xrays.write_split(tmp_path)
    assert len(pd.read_csv(tmp_path / "duplicates.csv")) == len(found)


ALTERATIONS = {
    "mirrored": ImageOps.mirror,
    "turned by 90": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "mirrored and turned by 270": lambda image: ImageOps.mirror(image).transpose(Image.Transpose.ROTATE_270),
    "negative": ImageOps.invert,
    "mirrored negative": lambda image: ImageOps.invert(ImageOps.mirror(image)),
    "cropped": lambda image: ImageOps.crop(image, round(0.03 * image.width)),
    "framed": lambda image: ImageOps.expand(image, round(0.03 * image.width), 255),
    "shifted": lambda image: ImageChops.offset(image, round(0.033 * image.width), 0),
    "turned by 2": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "JPEG 10": lambda image: image,
}


def altered_copies(files: list[Path], folder: Path, alter: Callable[[Image.Image], Image.Image]) -> list[str]:
    """Write altered copies as JPEG, of quality 10 if nothing else is altered; return their names."""
    folder.mkdir()
    for number, file in enumerate(files):
        with Image.open(file) as image:
            gray = image.convert("L").resize((256, 256), Image.Resampling.BICUBIC)
        changed = alter(gray)
        changed.save(folder / f"{number}.jpg", quality=10 if changed is gray else 95)
    return [f"{number}.jpg" for number in range(len(files))]


@pytest.mark.parametrize(("data", "every"), [("phantoms", 20), ("real_xrays", 39)])
def test_altered_copies_are_found(request: pytest.FixtureRequest, tmp_path: Path, data: str, every: int) -> None:
    root = request.getfixturevalue(data) / COVID_ROOT
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/images/*.png"))[::every]
    store = open_store(root, files, 64, tmp_path, show_progress=False)
    wanted = {(f"{number}.jpg", file) for number, file in enumerate(files[::4])}
    for kind, alter in ALTERATIONS.items():
        copies = altered_copies([root / file for file in files[::4]], tmp_path / kind, alter)
        altered = open_store(tmp_path / kind, copies, 64, tmp_path, show_progress=False)
        assert pairs_of(find_copies(altered, copies, store, files)) == wanted, kind


def test_a_film_of_two_patients_joins_them(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms / CHEXPERT_ROOT, tmp_path / CHEXPERT_ROOT)
    before = opened("chexpert", tmp_path / CHEXPERT_ROOT)
    first, other = (str(before.columns.paths[before.indices(part)[0]]) for part in ("train", "test"))
    shutil.copy(tmp_path / CHEXPERT_ROOT / first, tmp_path / CHEXPERT_ROOT / other)
    after = opened("chexpert", tmp_path / CHEXPERT_ROOT)
    assert {first, other} in map(set, pairs_of(after.duplicates))
    part = dict(zip(after.columns.paths, after.parts, strict=True))
    assert part[first] == part[other]
    assert len(np.unique(after.columns.groups)) == len(np.unique(before.columns.groups)) - 1


def test_groups_join_through_chains_and_keep_their_other_members() -> None:
    files, groups = np.array(list("abcdef")), np.array(["p1", "p1", "p2", "p3", "p4", "p5"])
    pairs = pd.DataFrame({"file": ["b", "c"], "other": ["c", "e"], "distance": [0.1, 0.2]})
    assert joined_groups(files, groups, pairs).tolist() == ["p1", "p1", "p1", "p3", "p1", "p5"]
    assert joined_groups(files, groups, NO_DUPLICATES).tolist() == groups.tolist()


@pytest.mark.slow
def test_real_near_duplicates_are_found_and_hardly_anything_else(real_xrays: Path) -> None:
    xrays = opened("covid", real_xrays / "COVID-19_Radiography_Dataset", store_res=64)
    assert len(xrays) == 2336 and not xrays.synthetic
    found = {(Path(a).stem, Path(b).stem) for a, b in pairs_of(xrays.duplicates)}
    known = {("COVID-1002", "COVID-322"), ("COVID-1233", "COVID-943"), ("COVID-289", "COVID-975")}
    assert known | {("COVID-1559", "COVID-449"), ("COVID-1171", "COVID-183"), ("COVID-1798", "COVID-3017")} <= found
    assert len(found) < 20  # of 2.7 million pairs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same_pairs(phantoms: Path, tmp_path: Path) -> None:
    root = phantoms / COVID_ROOT
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/images/*.png"))
    for k, name in enumerate(files[:20]):  # copies, so that there are pairs
        Image.open(root / name).save(tmp_path / f"{k}.jpg", quality=30)
    copies = [f"{k}.jpg" for k in range(20)]
    found = []
    for device in ("cpu", "cuda"):
        stores = [open_store(root, files, 64, tmp_path / device, show_progress=False)]
        stores += [open_store(tmp_path, copies, 64, tmp_path / device, show_progress=False)]
        found.append(find_copies(stores[1], copies, stores[0], files, torch.device(device)))
    assert len(found[0]) >= 20
    pd.testing.assert_frame_equal(*found)


def test_a_store_is_searched_once(phantoms: Path, tmp_path: Path) -> None:
    root = phantoms / COVID_ROOT
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/images/*.png"))
    store = open_store(root, files, 64, tmp_path, show_progress=False)
    first = find_duplicates(store, files)
    kept = next(store.folder.glob("duplicates*.csv"))
    kept.write_text("row,other_row,distance\n0,1,0.25\n")  # what lies there is taken
    assert find_duplicates(store, files).to_numpy().tolist() == [[files[0], files[1], 0.25]]
    assert len(first) <= 10


def films_and_copies(phantoms: Path, root: Path) -> dict[str, int]:
    """Write 24 equal files, 24 of one film saved in different ways, and 6 other films; return the film of each file."""
    sources, film = sorted((phantoms / COVID_ROOT).glob("*/images/*.png"))[::30], {}
    root.mkdir()
    for n in range(54):
        name, shown = (f"{n:02}.png", max(0, n - 46)) if not 24 <= n < 48 else (f"{n:02}.jpg", 1)
        with Image.open(sources[shown]) as image:
            copy = image.convert("L")
        if shown == 1:
            copy = ImageEnhance.Brightness(ImageOps.mirror(copy) if n % 3 == 0 else copy).enhance(0.4 + 0.02 * n)
        copy.save(root / name, quality=n)
        film[name] = shown
    return film


def test_of_many_copies_the_pairs_that_connect_them_are_found(phantoms: Path, tmp_path: Path) -> None:
    film = films_and_copies(phantoms, tmp_path / "films")
    files = [*film]
    store = open_store(tmp_path / "films", files, 64, tmp_path, show_progress=False)
    pairs = find_duplicates(store, files)
    groups = joined_groups(np.array(files), np.array(files), pairs)
    first = {shown: name for name, shown in reversed(film.items())}
    assert groups.tolist() == [first[shown] for shown in film.values()]
    assert len(pairs) == 23 + 23  # of 2 x 276: as many as connect them
    equal = pairs[pairs["other"] < "24"]
    assert set(equal["file"]) == {"00.png"} and set(equal["distance"]) == {0}

    copies = [name for name, shown in film.items() if shown < 2 and int(name[:2]) % 2]
    others = open_store(tmp_path / "films", copies, 64, tmp_path, show_progress=False)
    between = find_copies(store, files, others, copies)
    assert set(between["file"]) == {name for name, shown in film.items() if shown < 2}
    assert set(between["other"]) == set(copies)
    assert [film[a] for a in between["file"]] == [film[b] for b in between["other"]]
    assert len(between) < 48 + len(copies)


def test_a_picture_in_place_of_many_films_is_said_with_what_it_does_to_the_split(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = sorted((phantoms / COVID_ROOT).glob("*/images/*.png"))
    for n in range(40):
        folder = tmp_path / "data" / "AB"[n < 8 or n > 35]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(sources[5 * max(0, n - 15) + 1], folder / f"{n:02}.png")
    xrays = opened("covid", tmp_path / "data")
    said = next(line for line in capsys.readouterr().err.splitlines() if "one picture" in line)
    assert "16 files are exact copies of one picture (A/08.png, A/09.png, A/10.png, ...)" in said
    (part,) = set(xrays.parts[xrays.columns.groups == "A/08.png"])
    held = [int(((xrays.columns.labels == label) & (xrays.parts == part)).sum()) for label in (0, 1)]
    assert f"8 of {held[0]} A images of the {part} part, 8 of {held[1]} B images of the {part} part" in said


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("allowed", [0, 69, 106])
def test_bits_are_counted_exactly_in_every_precision(
    precision: torch.dtype, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataset_loader.signatures.choose_precision", lambda name, device: precision)
    bits = np.random.default_rng(0).random((60, 385)) < 0.5
    bits[30:] = bits[:30]
    for row, changed in enumerate(range(allowed - 15, allowed + 15)):  # near the bound, on both sides
        bits[30 + row, : max(0, changed)] ^= True
    bits[45:] ^= True  # negatives
    packed = np.packbits(bits, axis=1)
    distances = (bits[:30, None] != bits[None, 30:]).sum(2)
    near = np.minimum(distances, 385 - distances) <= allowed
    assert 0 < near.sum() < 30
    assert (copies_among(packed[:30], packed[30:], allowed) == near.any(1)).all()
    bound = 385 - 2 * allowed
    counts = signs(packed[:30], bound) @ signs(packed[30:], bound).T
    assert places_beyond(counts, bound).tolist() == np.argwhere(near).tolist()
