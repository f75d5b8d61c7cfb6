"""How much faster is this repo's pretraining than the usual training loop?

    python tests/benchmarks/bench_pretraining.py
    python tests/benchmarks/bench_pretraining.py --data-root path/to/images --batch-size 64 --rounds 3

Times ResNet-18 with recipe "original" on the same image files, two variants in turn, each in a process of its own:
  classic  PIL decode and torchvision transforms per image in the main process, float32, contiguous, two
           forwards, the off-diagonal of the D x D matrix as a flattened copy, default Adam
  ours     the image store, batched views, channels_last, the precision of "auto", the loss of
           self_sup_classes.barlow, fused Adam, freed memory kept
and prints medians with spread and the ratios, for the step (views given), the views and the whole loop. Not a test:
times depend on the machine and its load.
"""

from typing import Any

from utils.scripts import flags

config: dict[str, Any] = {
    "data_root": "",  # a folder of images, searched with its subfolders; "" draws noise images of 299 px
    "img_res": 224,
    "batch_size": 128,  # pairs of views per step; at 128 and 224 px the variant that is running needs about 9 GB
    "projector": 2048,  # D
    "rounds": 3,  # timings of each variant
    "device": "auto",
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import measuring
import numpy as np
import torch
from classic_loop import LAMBDA, ClassicBarlowTwins, classic_transform
from measuring import Table, spread
from PIL import Image
from torch import Tensor, nn

from augmentations.transform_utils import Views, step_generator
from dataset_loader.image_store import open_store
from self_sup_classes.backbones import Backbone
from self_sup_classes.barlow import BarlowTwins
from selfsup_task.resources import seconds_of
from utils.config import repo_path
from utils.hardware import choose_device, choose_precision, describe_device, keep_freed_memory, placed

STORE_RES = 256


def classic_views(files: list[Path], size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two views of each file, [B, 1, R, R] each."""
    transform = classic_transform(size)
    images = [Image.open(file).convert("L") for file in files]
    y1, y2 = (torch.stack([transform(image) for image in images]).to(device) for _ in range(2))
    return y1, y2


def make_step(loss_of: Callable[[Tensor, Tensor], Tensor], module: nn.Module, fused: bool) -> Callable[..., None]:
    """Return a function that takes one optimiser step on two views."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=fused or None)

    def step(y1: Tensor, y2: Tensor) -> None:
        loss = loss_of(y1, y2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(d: int, device: torch.device) -> Callable[..., None]:
    """Return the step of this repo, as in utils.training_utils.fit."""
    model, dtype = placed(BarlowTwins(Backbone("resnet18", 1), [d], LAMBDA), device), choose_precision("auto", device)

    def loss_of(y1: Tensor, y2: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(y1, y2)["loss"]

    return make_step(loss_of, model, fused=device.type in ("cpu", "cuda"))


def find_images(data_root: str, count: int, folder: Path) -> list[Path]:
    """Return `count` image files of a folder, or drawn ones."""
    generator = np.random.default_rng(0)
    if data_root:
        kinds = {".png", ".jpg", ".jpeg"}
        found = sorted(path for path in repo_path(data_root).rglob("*") if path.suffix.lower() in kinds)
        found = [path for path in found if path.parent.name != "masks"]
        if len(found) < count:
            raise SystemExit(f"error: {data_root} holds {len(found)} images; lower batch_size, which is {count}.")
        return [found[i] for i in generator.permutation(len(found))[:count]]
    files = [folder / f"{i}.png" for i in range(count)]
    for file in files:
        smooth = Image.fromarray(generator.integers(0, 256, (19, 19), dtype=np.uint8)).resize((299, 299))
        Image.fromarray(np.asarray(smooth) // 2 + generator.integers(0, 64, (299, 299), dtype=np.uint8)).save(file)
    return files


def time_variant(kind: str, config: SimpleNamespace, files: list[Path], folder: Path) -> dict[str, float]:
    """Return one timing of each job of a variant, after a run that does not count; needs a process of its own."""
    device, rows = choose_device(config.device), torch.arange(config.batch_size)
    views, generator = Views("original", config.img_res), step_generator("benchmark", 0, 0, 0)
    root = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(root).as_posix() for file in files]
    store = open_store(root, names, STORE_RES, folder, show_progress=False).to(device)
    y1, y2 = views(store.gather(rows), generator)
    if kind == "classic":
        network = ClassicBarlowTwins(config.projector).to(device)
        step = make_step(network, network, fused=False)
        draw = functools.partial(classic_views, files, config.img_res, device)
    else:
        keep_freed_memory()
        step = our_step(config.projector, device)
        draw = functools.partial(lambda: views(store.gather(rows), generator))
    jobs = {"step": lambda: step(y1, y2), "views": draw, "loop": lambda: step(*draw())}
    return {name: seconds_of(job, 1, device)[0] for name, job in jobs.items()}


def main(config: SimpleNamespace) -> None:
    """Print a row for each of step, views and whole loop."""
    print(f"{describe_device(choose_device(config.device))}, torch {torch.__version__}: X-rays/s of")
    taken: dict[str, list[dict[str, float]]] = {"classic": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        files = find_images(config.data_root, config.batch_size, Path(folder))
        for _ in range(config.rounds):
            for kind, rounds in taken.items():  # in turn, so that a slow moment of the machine affects both
                rounds.append(measuring.in_fresh_process(time_variant, kind, config, files, Path(folder)))
    table = Table()
    for job in ("step", "views", "loop"):
        seconds = {kind: [one[job] for one in rounds] for kind, rounds in taken.items()}
        row = {kind: spread([config.batch_size / one for one in rounds]) for kind, rounds in seconds.items()}
        ratios = [classic / ours for classic, ours in zip(*seconds.values(), strict=True)]
        table.add({"": job.rjust(5), **row, "ours is faster by": f"x{spread(ratios, '.2f')}"})


if __name__ == "__main__":
    main(SimpleNamespace(**config))
