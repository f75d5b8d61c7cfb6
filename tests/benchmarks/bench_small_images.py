"""How much faster is a backbone on small X-rays with `fast_small_convolutions`?

    python tests/benchmarks/bench_small_images.py

Forward and backward pass of ResNet-18 in training mode, float32, channels last, interleaved; medians, and the median
and spread of the rounds' ratios. Only CPUs differ. Not a test: times depend on the machine and its load.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "backbone": "resnet18",
    "batch_size": 128,  # images per step
    "img_res": [32, 48, 64, 96],
    "rounds": 7,  # timed, after one that is not
    "device": "auto",
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from self_sup_classes.backbones import Backbone
from utils.config import Config
from utils.hardware import choose_device, describe_device, placed, synchronise


@dataclass(frozen=True, kw_only=True)
class SmallImagesConfig(Config):
    """The keys of the dict at the top."""

    backbone: str
    batch_size: int
    img_res: list[int]
    rounds: int
    device: str


def seconds(net: nn.Module, images: Tensor) -> float:
    """Return the seconds of one forward and backward pass."""
    start = time.perf_counter()
    net(images).square().mean().backward()
    synchronise(images.device)
    return time.perf_counter() - start


def main(config: SmallImagesConfig) -> None:
    """Print one line per resolution."""
    device = choose_device(config.device)
    print(f"{describe_device(device)}, torch {torch.__version__}, {config.backbone}, batch {config.batch_size}")
    torch.manual_seed(0)
    plain = placed(Backbone(config.backbone, 3, fast_small_convolutions=False), device)
    ours = placed(Backbone(config.backbone, 3), device)
    for size in config.img_res:
        images = torch.rand(config.batch_size, 3, size, size, device=device)
        rounds = [(seconds(plain, images), seconds(ours, images)) for _ in range(1 + config.rounds)][1:]
        ratios = [theirs / mine for theirs, mine in rounds]
        theirs, mine = (statistics.median(times) for times in zip(*rounds, strict=True))
        print(
            f"{size} px: {theirs:.3f} s -> {mine:.3f} s, "
            f"x{statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]"
        )


if __name__ == "__main__":
    run_script(main, SmallImagesConfig, config)
