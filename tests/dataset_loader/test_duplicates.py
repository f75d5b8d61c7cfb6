"""Near duplicates: planted ones are found and never cross a split; different films are not joined."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageEnhance

from dataset_loader.duplicates import MAX_DISTANCE, find_duplicates, joined_groups
from dataset_loader.image_store import open_store
from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import NO_DUPLICATES, DataConfig, XRays, open_xrays


def opened(root: Path) -> XRays:
    config = DataConfig(dataset="covid", data_root=str(root), store_res=32, img_res=32, split_seed=0)
    return open_xrays(config, torch.device("cpu"))


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


def test_planted_copies_are_found_and_share_a_part(phantoms: Path, tmp_path: Path) -> None:
    copies = planted(phantoms, tmp_path / "covid")
    xrays = opened(tmp_path / "covid")
    found = {frozenset(pair) for pair in zip(xrays.duplicates["file"], xrays.duplicates["other"], strict=True)}
    planted_pairs = {frozenset(pair) for pair in copies.items()}
    assert planted_pairs <= found
    assert len(found - planted_pairs) <= 10  # of 31,000 pairs of phantoms, whose anatomies are similar
    assert xrays.duplicates["distance"].between(0, MAX_DISTANCE).all()
    part = dict(zip(xrays.columns.paths, xrays.parts, strict=True))
    assert all(part[copy] == part[original] for copy, original in copies.items())
    again = opened(tmp_path / "covid")
    pd.testing.assert_frame_equal(again.duplicates, xrays.duplicates)
    xrays.write_split(tmp_path)
    assert len(pd.read_csv(tmp_path / "duplicates.csv")) == len(found)


def test_groups_join_through_chains_and_keep_their_other_members() -> None:
    files, groups = np.array(list("abcdef")), np.array(["p1", "p1", "p2", "p3", "p4", "p5"])
    pairs = pd.DataFrame({"file": ["b", "c"], "other": ["c", "e"], "distance": [0.1, 0.2]})
    assert joined_groups(files, groups, pairs).tolist() == ["p1", "p1", "p1", "p3", "p1", "p5"]
    assert joined_groups(files, groups, NO_DUPLICATES).tolist() == groups.tolist()


def test_real_near_duplicates_are_found_and_hardly_anything_else(real_xrays: Path, tmp_path: Path) -> None:
    root = real_xrays / "COVID-19_Radiography_Dataset"
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/images/*.png"))
    pairs = find_duplicates(open_store(root, files, 64, tmp_path, show_progress=False), files)
    found = {(Path(a).stem, Path(b).stem) for a, b in zip(pairs["file"], pairs["other"], strict=True)}
    known = {("COVID-1002", "COVID-322"), ("COVID-1233", "COVID-943"), ("COVID-289", "COVID-975")}
    assert known | {("COVID-1559", "COVID-449"), ("COVID-1171", "COVID-183"), ("COVID-1798", "COVID-3017")} <= found
    assert len(found) < 20  # of 2.7 million pairs


def test_a_store_is_searched_once(phantoms: Path, tmp_path: Path) -> None:
    root = phantoms / COVID_ROOT
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/images/*.png"))
    store = open_store(root, files, 64, tmp_path, show_progress=False)
    first = find_duplicates(store, files)
    kept = next(store.folder.glob("duplicates*.csv"))
    kept.write_text("row,other_row,distance\n0,1,0.25\n")  # what lies there is taken
    assert find_duplicates(store, files).to_numpy().tolist() == [[files[0], files[1], 0.25]]
    assert len(first) <= 10
