"""How much faster is a backbone on small X-rays with our convolutions than as torchvision has it?

    python tests/benchmarks/bench_small_images.py

Forward and backward pass of ResNet-18 in training mode, float32, channels last, interleaved; medians, and the median
and spread of the rounds' ratios. Only CPUs differ. No test: times depend on the machine and what else it does.
"""

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from self_sup_classes.backbones import torchvision_model
from utils.hardware import choose_device, describe_device, placed
from utils.scripts import run_script

config: dict[str, Any] = {
    "backbone": "resnet18",
    "batch_size": 128,  # images a step
    "img_res": [32, 48, 64, 96],
    "rounds": 7,  # timed, after one that is not
    "device": "auto",
}


def seconds(net: nn.Module, images: Tensor) -> float:
    """One forward and backward pass."""
    start = time.perf_counter()
    net(images).square().mean().backward()
    if images.device.type != "cpu":
        torch.accelerator.synchronize(images.device)
    return time.perf_counter() - start


def main(config: dict[str, Any]) -> None:
    """Print a line a resolution."""
    device = choose_device(config["device"])
    print(f"{describe_device(device)}, torch {torch.__version__}, {config['backbone']}, batch {config['batch_size']}")
    torch.manual_seed(0)
    plain = placed(models.get_model(config["backbone"]), device)
    ours = placed(torchvision_model(config["backbone"], in_channels=3), device)
    for size in config["img_res"]:
        images = torch.rand(config["batch_size"], 3, size, size, device=device)
        rounds = [(seconds(plain, images), seconds(ours, images)) for _ in range(1 + config["rounds"])][1:]
        ratios = [theirs / mine for theirs, mine in rounds]
        theirs, mine = (statistics.median(times) for times in zip(*rounds, strict=True))
        print(
            f"{size} px: {theirs:.3f} s -> {mine:.3f} s, "
            f"x{statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]"
        )


if __name__ == "__main__":
    run_script(main, config, __doc__)
