"""How much faster is this repo's pretraining than the usual training loop?

    python tests/benchmarks/bench_pretraining.py
    python tests/benchmarks/bench_pretraining.py --data-root path/to/images --batch-size 64 --rounds 3
    python tests/benchmarks/bench_pretraining.py --no-loops

Times ResNet-18 with recipe "original" on the same image files, the variants one after the other, each in a process of
its own:
  classic  PIL decode and torchvision transforms per image in the main process, float32, contiguous, two
           forwards, the off-diagonal of the D x D matrix as a flattened copy, default Adam
  ours     the image store, batched views, channels_last, the precision of "auto", the loss of
           self_sup_classes.barlow, fused Adam, freed memory kept
and prints medians with spread and the ratios, for the step (views given), the views and the whole loop, the same
without single improvements, and the loss alone. Not a test: times depend on the machine and its load.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "data_root": "",  # a folder of images, searched with its subfolders; "" draws noise images of 299 px
    "img_res": 224,
    "batch_size": 128,  # pairs of views per step; at 128 and 224 px the variant that is running needs about 9 GB
    "projector": 2048,  # D
    "loss_batches": [128, 512],  # N of the comparison of losses alone, on one thread
    "loss_widths": [512, 1024, 2048, 8192],  # D
    "rounds": 3,  # timings of each variant; four times as many of a loss
    "loops": True,  # False: only the losses
    "ablations": True,  # False: only classic and ours
    "device": "auto",
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import functools
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from classic_loop import LAMBDA, ClassicBarlowTwins, classic_loss, classic_transform, in_fresh_process
from PIL import Image
from torch import Tensor, nn

from augmentations.transform_utils import Views, step_generator
from dataset_loader.image_store import open_store
from self_sup_classes.backbones import Backbone
from self_sup_classes.barlow import BarlowTwins, barlow_twins_loss
from utils.config import Config, UserError, repo_path
from utils.hardware import choose_device, choose_precision, describe_device, keep_freed_memory, synchronise

STORE_RES = 256


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """The keys of the dict at the top."""

    data_root: str
    img_res: int
    batch_size: int
    projector: int
    loss_batches: list[int]
    loss_widths: list[int]
    rounds: int
    loops: bool
    ablations: bool
    device: str


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


def our_step(d: int, device: torch.device, dtype: torch.dtype) -> Callable[..., None]:
    """Return the step of this repo, as in utils.training_utils.fit."""
    model = BarlowTwins(Backbone("resnet18", 1), [d], LAMBDA).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def loss_of(y1: Tensor, y2: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(y1, y2).loss

    return make_step(loss_of, model, fused=device.type in ("cpu", "cuda"))


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, the device's work included."""
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def show(timings: dict[str, list[float]], pairs: int) -> None:
    """Print median, spread and pairs/s of each variant."""
    for name, seconds in timings.items():
        median, spread = statistics.median(seconds), f"[{min(seconds):.3f} .. {max(seconds):.3f}]"
        print(f"  {name:28s} {median:8.3f} s {spread}  {pairs / median:7.1f} pairs/s")


def ratio(timings: dict[str, list[float]], slow: str, fast: str) -> str:
    """Return how many times faster, round by round: median and spread."""
    ratios = [a / b for a, b in zip(timings[slow], timings[fast], strict=True)]
    return f"x{statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]"


def find_images(data_root: str, count: int, folder: Path) -> list[Path]:
    """Return `count` image files of a folder, or drawn ones."""
    if data_root:
        kinds = {".png", ".jpg", ".jpeg"}
        root = repo_path(data_root)
        found = sorted(p for p in root.rglob("*") if p.suffix.lower() in kinds and p.parent.name != "masks")
        if len(found) < count:
            raise UserError(f"{root} holds {len(found)} images, fewer than batch_size {count}; lower batch_size.")
        picked = np.random.default_rng(0).permutation(len(found))[:count]
        return [found[i] for i in picked]
    generator = np.random.default_rng(0)
    files = [folder / f"{i}.png" for i in range(count)]
    for file in files:
        smooth = Image.fromarray(generator.integers(0, 256, (19, 19), dtype=np.uint8)).resize((299, 299))
        Image.fromarray(np.asarray(smooth) // 2 + generator.integers(0, 64, (299, 299), dtype=np.uint8)).save(file)
    return files


def time_variant(kind: str, config: LoopConfig, files: list[Path], folder: Path) -> dict[str, float]:
    """Return one timing of each job of a variant, after a run that does not count; needs a process of its own."""
    device, b = choose_device(config.device), config.batch_size
    if kind != "classic" and "kept memory" not in kind:
        keep_freed_memory()
    views, generator = Views("original", config.img_res), step_generator("benchmark", 0, 0, 0)
    root = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(root).as_posix() for file in files]
    store = open_store(root, names, STORE_RES, folder, show_progress=False).to(device)
    y1, y2 = views(store.gather(torch.arange(b)), generator)
    if kind == "classic":
        network = ClassicBarlowTwins(config.projector).to(device)
        step = make_step(network, network, fused=False)
        draw = functools.partial(classic_views, files, config.img_res, device)
    else:
        dtype = torch.float32 if "float32" in kind else choose_precision("auto", device)
        step = our_step(config.projector, device, dtype)
        draw = functools.partial(lambda: views(store.gather(torch.arange(b)), generator))
    jobs = {"step": lambda: step(y1, y2), "views": draw, "loop": lambda: step(*draw())}
    return {name: [timed(job, device) for _ in range(2)][1] for name, job in jobs.items()}


def compare_loops(config: LoopConfig, files: list[Path], folder: Path) -> None:
    """Print step, views and whole loop: classic, ours, and ours without one improvement."""
    kinds = ["classic", "ours", *(["ours, without kept memory"] if config.ablations else [])]
    if config.ablations and choose_precision("auto", choose_device(config.device)) != torch.float32:
        kinds.append("ours, float32")
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(config.rounds):
        for kind in kinds:  # in turn, so that a slow moment of the machine affects all
            rounds[kind].append(in_fresh_process(time_variant, kind, config, files, folder))
    results = {
        job: {kind: [timings[job] for timings in rounds[kind]] for kind in kinds} for job in ("step", "views", "loop")
    }
    for job, timings in results.items():
        print(f"{job}: batch {config.batch_size}, {config.img_res} px, D {config.projector}")
        show(timings, config.batch_size)
        for kind in kinds[1:]:
            print(f"  {kind} against classic: {ratio(timings, 'classic', kind)}")
    shares = [v / t for v, t in zip(results["views"]["ours"], results["loop"]["ours"], strict=True)]
    print(f"our views take {statistics.median(shares):.1%} of our loop")


def compare_losses(config: LoopConfig, device: torch.device) -> None:
    """Print the loss with its gradient, alone: flattened off-diagonal against ours."""
    print("loss and gradient alone, on one thread")
    torch.set_num_threads(1)
    for n, width in itertools.product(config.loss_batches, config.loss_widths):
        z1, z2 = (torch.randn(n, width, device=device, requires_grad=True) for _ in range(2))
        jobs = {
            "classic": lambda z1=z1, z2=z2: classic_loss(z1, z2).backward(),
            "ours": lambda z1=z1, z2=z2: barlow_twins_loss(z1, z2, LAMBDA).loss.backward(),
        }
        rounds = [{name: timed(job, device) for name, job in jobs.items()} for _ in range(1 + 4 * config.rounds)][1:]
        timings = {name: [one[name] for one in rounds] for name in jobs}
        print(f"  N {n}, D {width}: {ratio(timings, 'classic', 'ours')}")


def main(config: LoopConfig) -> None:
    """Print the tables."""
    device = choose_device(config.device)
    print(f"{describe_device(device)}, torch {torch.__version__}")
    if config.loops:
        with tempfile.TemporaryDirectory() as folder:
            files = find_images(config.data_root, config.batch_size, Path(folder))
            compare_loops(config, files, Path(folder))
    compare_losses(config, device)


if __name__ == "__main__":
    run_script(main, LoopConfig, config)
