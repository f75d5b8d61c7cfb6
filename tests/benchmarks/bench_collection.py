"""Does a collection of CheXpert's size go through the data code, and does any part of it grow faster than the images?

    CXR_DATA=<folder of X-rays> python tests/benchmarks/bench_collection.py
    CXR_DATA=<folder of X-rays> python tests/benchmarks/bench_collection.py --images 20000 --decoded 5000 --size 256

CXR_DATA holds chexpert_labels/train.csv.gz, CheXpert's own table, and some X-rays (*.jpg, *.png) at any depth. Each
frontal row of the table becomes a file of its name in a temporary folder on the same disk: a hard link to one of these
X-rays, so that neither pixels are invented nor much room is taken. Seconds that pass, seconds of the processor, which
other programs do not change, and peak memory so far. Searches for duplicates, whose time grows with the square, and
the leak check are of random pictures: linked files would be copies of one another. No two random pictures are so
similar that they are compared in detail, so real ones may take longer. Not a test.
"""

from typing import Any

from utils.scripts import flags

config: dict[str, Any] = {
    "images": 191_027,  # frontal rows of the table, at most
    "decoded": 191_027,  # how many of them are decoded
    "size": 64,  # pixels a side of the store
    "searched": [10_000, 20_000, 40_000],  # images among which duplicates are searched
    "checked": 191_027,  # images, a fifth of them looked up among the others, as the leak check does
    "device": "cpu",  # "cpu" | "auto" | "cuda": compares signatures of pairs
    "threads": 1,
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from measuring import Result, Table

from dataset_loader.duplicates import find_duplicates
from dataset_loader.image_store import ImageStore, open_store
from dataset_loader.readers.chexpert_dataset import read_chexpert, read_chexpert_table
from dataset_loader.signatures import THUMBNAIL, copies_among
from dataset_loader.splits import places_of, write_split
from utils.hardware import peak_memory, prepare
from utils.seeds import epoch_order

TABLE = Table()


def timed(what: str, count: int, work: Callable[[], Result]) -> Result:
    """Print what `work` costs for so many images; return its result."""
    start, processor = time.perf_counter(), time.process_time()
    found = work()
    seconds, used = time.perf_counter() - start, time.process_time() - processor
    row = {"stage".ljust(25): what.ljust(25), "images": f"{count:9,}", "s": f"{seconds:9.2f}", "CPU s": f"{used:9.2f}"}
    peak = peak_memory(torch.device("cpu")) / 1e9
    TABLE.add({**row, "us/image": f"{used / count * 1e6:.1f}", "peak GB": f"{peak:.2f}"})
    return found


def link_collection(source: Path, root: Path, images: int) -> None:
    """Write the table's first `images` frontal rows, and a file for each, linked to the X-rays in turn."""
    files = sorted(path for kind in ("*.jpg", "*.png") for path in source.rglob(kind) if "masks" not in path.parts)
    table = pd.read_csv(source / "chexpert_labels" / "train.csv.gz", dtype=str, keep_default_na=False)
    table = table.loc[table["Frontal/Lateral"] == "Frontal"].head(images)
    table.to_csv(root / "train.csv", index=False)
    for number, name in enumerate(table["Path"]):
        path = root / name.partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[number % len(files)], path)


def random_pictures(count: int, folder: Path) -> ImageStore:
    """Return a store of random smooth pictures uint8 [count, 1, 64, 64]."""
    generator = torch.Generator().manual_seed(count)
    array = np.empty((count, 1, THUMBNAIL, THUMBNAIL), dtype=np.uint8)
    for rows in torch.arange(count).split(1000):
        coarse = torch.rand(len(rows), 1, 32, 32, generator=generator) * 255
        array[rows] = torch.nn.functional.interpolate(coarse, size=THUMBNAIL, mode="bilinear").byte().numpy()
    folder.mkdir()
    return ImageStore(array, np.arange(count), THUMBNAIL, 0, folder, torch.device("cpu"))


def rehearse(config: SimpleNamespace, root: Path, cache: Path) -> None:
    """Print what each stage of opening the collection costs."""
    table = timed("table", config.images, lambda: read_chexpert_table(root / "train.csv"))
    columns = timed("table and existence", len(table), lambda: read_chexpert(root))
    paths, some = columns.paths[: config.decoded].tolist(), min(config.decoded, len(columns))
    timed(f"decoding to {config.size} px", some, lambda: open_store(root, paths, config.size, cache, False))
    store = timed("opening again", some, lambda: open_store(root, paths, config.size, cache, False))
    places = timed("split by patient", len(columns), lambda: places_of(columns, 0))
    timed("split.csv", len(columns), lambda: write_split(cache / "split.csv", columns, places, 0))
    batches = np.array_split(epoch_order(np.arange(len(store)), 0, 0), -(-len(store) // 256))  # shuffled, of 256
    timed("all of an epoch's batches", some, lambda: gather(store, batches))


def gather(store: ImageStore, batches: list[np.ndarray]) -> None:
    """Read all batches, one after the other."""
    for rows in batches:
        store.gather(rows)


def main(config: SimpleNamespace) -> None:
    """Print one row per stage."""
    device = prepare(config.device, config.threads)
    source = Path(os.environ.get("CXR_DATA") or ".")
    if not (source / "chexpert_labels" / "train.csv.gz").exists():
        raise SystemExit("error: CXR_DATA must name a folder with chexpert_labels/train.csv.gz and X-rays.")
    with tempfile.TemporaryDirectory(prefix="collection-") as folder:
        root, cache = Path(folder) / "data", Path(folder) / "cache"
        root.mkdir()
        cache.mkdir()
        timed("(links)", config.images, lambda: link_collection(source, root, config.images))
        rehearse(config, root, cache)
        for count in config.searched:
            pictures, names = random_pictures(count, Path(folder) / str(count)), [str(n) for n in range(count)]
            timed("search for duplicates", count, lambda p=pictures, n=names: find_duplicates(p, n, device))
        known = np.random.default_rng(0).integers(256, size=(config.checked, 49), dtype=np.uint8)
        held_out = config.checked // 5
        timed("leak check", config.checked, lambda: copies_among(known[:held_out], known[held_out:]))


if __name__ == "__main__":
    main(SimpleNamespace(**config))
