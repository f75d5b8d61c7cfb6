"""How much faster is this repo's pretraining than the loop that the field usually writes?

    python tests/benchmarks/bench_pretraining.py
    python tests/benchmarks/bench_pretraining.py --data-root path/to/images --batch-size 64 --rounds 3

Times, interleaved on the same image files, ResNet-18 with recipe "original", each variant in a process of its own:
  classic  PIL decode and torchvision transforms per image in the main process, float32, contiguous, two
           forwards, the off-diagonal of the D x D matrix as a flattened copy, default Adam
  ours     the image store, batched views, channels_last, the precision of "auto", the loss of
           self_sup_classes.barlow, fused Adam, freed memory kept
and prints medians with spread and the ratios, for the step (views given), the views and the whole loop, the
same without single levers, and the loss alone. No test: times depend on the machine and what else it does.
"""

import contextlib
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import v2

from augmentations.transform_utils import Views, step_generator
from dataset_loader.image_store import open_store
from self_sup_classes.backbones import Backbone
from self_sup_classes.barlow import BarlowTwins, barlow_twins_loss
from utils.config import UserError, repo_path
from utils.hardware import choose_device, choose_precision, describe_device
from utils.memory import keep_freed_memory
from utils.scripts import run_script

LAMBDA = 5e-3
STORE_RES = 256

config: dict[str, Any] = {
    "data_root": "",  # a folder with images, searched through; "" draws noise images of 299 px
    "img_res": 224,
    "batch_size": 128,  # pairs of views a step
    "projector": 2048,  # D
    "rounds": 3,  # timed rounds of each variant, after one that is not timed
    "ablations": True,  # False: only classic and ours; each variant's process needs about 6 GB at batch 128
    "device": "auto",
}


class ClassicBarlowTwins(nn.Module):
    """The network and the loss as most repositories have them."""

    def __init__(self, d: int):
        super().__init__()
        self.net = models.resnet18()
        self.net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        self.net.fc = nn.Linear(512, d, bias=False)
        self.bn = nn.BatchNorm1d(d, affine=False)

    def forward(self, y1: Tensor, y2: Tensor) -> Tensor:
        c = self.bn(self.net(y1)).T @ self.bn(self.net(y2)) / len(y1)
        on = torch.diagonal(c).add_(-1).pow_(2).sum()
        n = len(c)
        off = c.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten().pow_(2).sum()
        return on + LAMBDA * off


def classic_transform(size: int) -> v2.Compose:
    """The original project's final views, image by image."""
    noise = v2.Lambda(lambda x: (x + torch.randn_like(x) * x.mean() * (0.06 + 0.04 * torch.rand(()))).clamp(0, 1))
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(size, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomEqualize(),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))]),
            v2.RandomPerspective(0.15),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([noise]),
            v2.Normalize([0.449], [0.226]),
        ]
    )


def classic_views(files: list[Path], size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two views of each file, [B, 1, R, R] each."""
    transform = classic_transform(size)
    images = [Image.open(file).convert("L") for file in files]
    y1, y2 = (torch.stack([transform(image) for image in images]).to(device) for _ in range(2))
    return y1, y2


def make_step(loss_of: Callable[[Tensor, Tensor], Tensor], module: nn.Module, fused: bool) -> Callable[..., None]:
    """One optimiser step on two views."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=fused or None)

    def step(y1: Tensor, y2: Tensor) -> None:
        loss = loss_of(y1, y2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(d: int, device: torch.device, dtype: torch.dtype) -> Callable[..., None]:
    """The step of this repo, as utils.training_utils.fit takes it."""
    model = BarlowTwins(Backbone("resnet18", 1), [d], LAMBDA).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def loss_of(y1: Tensor, y2: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(y1, y2).loss

    return make_step(loss_of, model, fused=device.type in ("cpu", "cuda"))


class Timing(NamedTuple):
    """One call: its seconds, and how many CPU cores other processes kept busy meanwhile (NaN if not known)."""

    seconds: float
    others: float


def timed(function: Callable[[], object], device: torch.device) -> Timing:
    """One call, the device's work included."""
    busy, own, start = busy_cpu_seconds(), time.process_time(), time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    others = (busy_cpu_seconds() - busy - (time.process_time() - own)) / seconds
    return Timing(seconds, max(0.0, others))


def busy_cpu_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started; NaN where Linux does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def interleave(variants: dict[str, Callable[[], Timing]], rounds: int) -> dict[str, list[Timing]]:
    """Each variant in each round, in turn, so that a slow moment of the machine hits all alike."""
    for measure in variants.values():
        measure()
    timings: dict[str, list[Timing]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, measure in variants.items():
            timings[name].append(measure())
    return timings


def show(timings: dict[str, list[Timing]], pairs: int) -> None:
    """Median, spread and pairs a second of each variant, and the CPU cores that others kept busy at worst."""
    for name, values in timings.items():
        seconds = [value.seconds for value in values]
        median, others = statistics.median(seconds), max(value.others for value in values)
        spread = f"[{min(seconds):.3f} .. {max(seconds):.3f}]"
        print(f"  {name:28s} {median:8.3f} s {spread}  {pairs / median:7.1f} pairs/s, others {others:.2f} cores")


def ratio(timings: dict[str, list[Timing]], slow: str, fast: str) -> str:
    """How many times faster, round by round: median and spread."""
    ratios = [a.seconds / b.seconds for a, b in zip(timings[slow], timings[fast], strict=True)]
    return f"x{statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]"


def find_images(data_root: str, count: int, folder: Path) -> list[Path]:
    """`count` image files of a folder, or drawn ones."""
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


def serve(kind: str, config: dict[str, Any], files: list[Path], folder: Path, requests: Any) -> None:
    """A process that holds one variant and times what it is asked for: how memory is kept is a process's own."""
    device, b = choose_device(config["device"]), config["batch_size"]
    if kind != "classic" and "malloc" not in kind:
        keep_freed_memory()
    views, generator = Views("original", config["img_res"]), step_generator(0, 0, 0)
    root = Path(os.path.commonpath(files))
    names = [file.relative_to(root).as_posix() for file in files]
    store = open_store(root, names, STORE_RES, folder, show_progress=False).to(device)
    y1, y2 = views(store.gather(torch.arange(b)), generator)
    if kind == "classic":
        network = ClassicBarlowTwins(config["projector"]).to(device)
        step = make_step(network, network, fused=False)
        jobs = {
            "step": lambda: step(y1, y2),
            "loop": lambda: step(*classic_views(files, config["img_res"], device)),
            "views": lambda: classic_views(files, config["img_res"], device),
        }
    else:
        dtype = torch.float32 if "float32" in kind else choose_precision("auto", device)
        step = our_step(config["projector"], device, dtype)
        jobs = {
            "step": lambda: step(y1, y2),
            "loop": lambda: step(*views(store.gather(torch.arange(b)), generator)),
            "views": lambda: views(store.gather(torch.arange(b)), generator),
        }
    requests.send("ready")
    with contextlib.suppress(EOFError):  # the other end is closed when there is nothing more to time
        while True:
            requests.send(timed(jobs[requests.recv()], device))


def start(kind: str, config: dict[str, Any], files: list[Path], folder: Path) -> Callable[[str], Timing]:
    """Start a variant's process; returns what asks it to time a job."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(kind, config, files, folder, there), daemon=True).start()
    there.close()  # a worker that dies then ends this process too, instead of letting it wait
    here.recv()

    def measure(job: str) -> Timing:
        here.send(job)
        return here.recv()

    return measure


def compare_loops(config: dict[str, Any], files: list[Path], folder: Path) -> None:
    """Step, views and whole loop: classic, ours, and ours without a lever."""
    kinds = ["classic", "ours", *(["ours, without kept memory"] if config["ablations"] else [])]
    if config["ablations"] and choose_precision("auto", choose_device(config["device"])) != torch.float32:
        kinds.append("ours, float32")
    workers = {kind: start(kind, config, files, folder) for kind in kinds}
    results = {}
    for job in ("step", "views", "loop"):
        print(f"{job}: batch {config['batch_size']}, {config['img_res']} px, D {config['projector']}")
        measures = {kind: functools.partial(measure, job) for kind, measure in workers.items()}
        results[job] = interleave(measures, config["rounds"])
        show(results[job], config["batch_size"])
        for kind in kinds[1:]:
            print(f"  {kind} against classic: {ratio(results[job], 'classic', kind)}")
    shares = [v.seconds / t.seconds for v, t in zip(results["views"]["ours"], results["loop"]["ours"], strict=True)]
    print(f"our views take {statistics.median(shares):.1%} of our loop")


def compare_losses(d: int, rounds: int, device: torch.device) -> None:
    """The loss with its gradient, alone: flattened off-diagonal against ours."""
    print("loss and gradient alone")
    for n, width in ((128, d), (128, 2048), (128, 8192), (512, 512)):
        z1, z2 = (torch.randn(n, width, device=device, requires_grad=True) for _ in range(2))

        def classic(z1: Tensor = z1, z2: Tensor = z2, n: int = n, width: int = width) -> None:
            bn = nn.functional.batch_norm
            c = bn(z1, None, None, training=True).T @ bn(z2, None, None, training=True) / n
            off = c.flatten()[:-1].view(width - 1, width + 1)[:, 1:].flatten().pow(2).sum()
            ((c.diagonal() - 1).pow(2).sum() + LAMBDA * off).backward()

        def ours(z1: Tensor = z1, z2: Tensor = z2) -> None:
            barlow_twins_loss(z1, z2, LAMBDA).loss.backward()

        jobs = {"classic": classic, "ours": ours}
        variants = {name: functools.partial(timed, job, device) for name, job in jobs.items()}
        timings = interleave(variants, rounds)
        print(f"  N {n}, D {width}: {ratio(timings, 'classic', 'ours')}")


def main(config: dict[str, Any]) -> None:
    """Print the tables."""
    device = choose_device(config["device"])
    print(f"{describe_device(device)}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        files = find_images(config["data_root"], config["batch_size"], Path(folder))
        compare_loops(config, files, Path(folder))
    compare_losses(config["projector"], config["rounds"], device)


if __name__ == "__main__":
    run_script(main, config, __doc__)
