"""What does Grad-CAM cost, against one plain forward and backward pass of the same images?

    python tests/benchmarks/bench_saliency.py

ResNet-18 on random images, in batches of 64, interleaved; medians, spread and ratio. Also against the same maps by
torch.autograd.grad, written out. Not a test: times depend on the machine and its load.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "images": 100,
    "img_res": 224,
    "rounds": 5,  # timed, after one that is not
    "device": "auto",
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downstream_task.classifier import Classifier
from interpretability.saliency import IMAGES_AT_ONCE, plain_copy, saliency_maps
from self_sup_classes.backbones import Backbone
from utils.config import Config
from utils.hardware import choose_device, describe_device, synchronise


@dataclass(frozen=True, kw_only=True)
class SaliencyBenchConfig(Config):
    """The keys of the dict at the top."""

    images: int
    img_res: int
    rounds: int
    device: str


def plain_pass(net: nn.Module, images: Tensor, classes: Tensor) -> None:
    """Forward and backward, as a training step without its update."""
    for x, c in zip(images.split(IMAGES_AT_ONCE), classes.split(IMAGES_AT_ONCE), strict=True):
        F.cross_entropy(net(x), c).backward()
    net.zero_grad()


def by_autograd(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM at layer4 without captum."""
    net, maps, kept = plain_copy(network), [], []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    net.get_submodule("layer4").register_forward_hook(keep)
    for x, c in zip(images.split(IMAGES_AT_ONCE), classes.split(IMAGES_AT_ONCE), strict=True):
        kept.clear()
        (slopes,) = torch.autograd.grad(net(x).gather(1, c[:, None]).sum(), kept)
        maps.append(F.relu((slopes.mean((2, 3), keepdim=True) * kept[0]).sum(1)))
    return torch.cat(maps)


def main(config: SaliencyBenchConfig) -> None:
    """Print seconds and ratios."""
    device = choose_device(config.device)
    print(f"{describe_device(device)}, torch {torch.__version__}")
    torch.manual_seed(0)
    net = Classifier(Backbone("resnet18", 1), 4).net.to(device).eval()
    images = torch.rand(config.images, 1, config.img_res, config.img_res, device=device)
    classes = torch.arange(config.images, device=device) % 4
    jobs = {
        "plain forward and backward": lambda: plain_pass(net, images, classes),
        "Grad-CAM": lambda: saliency_maps(net, images, classes),
        "Grad-CAM by autograd.grad": lambda: by_autograd(net, images, classes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(1 + config.rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            synchronise(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    base = seconds["plain forward and backward"]
    for name, values in seconds.items():
        ratios = [value / plain for value, plain in zip(values, base, strict=True)]
        print(
            f"  {name:28s} {statistics.median(values):7.3f} s [{min(values):.3f} .. {max(values):.3f}]  "
            f"x{statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}] of the plain pass"
        )


if __name__ == "__main__":
    run_script(main, SaliencyBenchConfig, config)
