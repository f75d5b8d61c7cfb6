"""How much faster is a linear probe on features computed once than a frozen network that is run again every epoch?

    python tests/benchmarks/bench_linear_probe.py
    python tests/benchmarks/bench_linear_probe.py --dataset covid --img-res 96 --store-res 108

Times, in turn and with spread, on one random ResNet-18 and all labels of the train part (1,201 by default):
  re-run  the usual loop: the frozen network in eval mode and a linear layer, 15 epochs of Adam over the images, the
          best of its epochs on validation
  cached  downstream_task/finetuning.py's: features once, logistic regression at its optimum, regularisation chosen by
          cross-validation within the labels
and prints both validation accuracies. Not a test: times depend on the machine and its load.
"""

from typing import Any

from dataset_loader.data_keys import DATA
from utils.scripts import flags, run_script

config: dict[str, Any] = {
    **DATA,
    "store_res": 36,
    "img_res": 32,
    "epochs": 15,  # of the loop that runs the network each time
    "rounds": 3,
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from augmentations.transform_utils import Views, step_generator
from dataset_loader.xrays import DataConfig, XRays, open_xrays
from downstream_task.probes import fit_linear_head, forward_all
from self_sup_classes.backbones import Backbone
from self_sup_classes.initialisation import random_backbone
from utils.metrics import balanced_accuracy
from utils.seeds import epoch_order

BATCH = 96
LR = 1.53e-3  # the original project's supervised recipe


@dataclass(frozen=True, kw_only=True)
class ProbeBenchConfig(DataConfig):
    """The keys of the dict at the top."""

    epochs: int
    rounds: int


def rerun(backbone: Backbone, xrays: XRays, size: int, epochs: int) -> float:
    """Return the best validation accuracy of epochs that run the frozen network each time."""
    views, labels = Views("none", size), torch.from_numpy(xrays.columns.labels)
    train, val = xrays.indices("train"), xrays.indices("val")
    backbone.eval()
    head = nn.Linear(backbone.num_features, len(xrays.columns.label_names))
    optimizer = torch.optim.Adam(head.parameters(), lr=LR)
    best = 0.0
    for epoch in range(epochs):
        for batch in torch.from_numpy(epoch_order(train, 0, epoch)).split(BATCH):
            with torch.no_grad():
                features = backbone(views.single(xrays.batch(batch), step_generator("benchmark", 0, 0, 0)))
            loss = F.cross_entropy(head(features), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        logits = head(forward_all(backbone, xrays, val, size, 1, torch.float32)).detach().numpy()
        best = max(best, balanced_accuracy(xrays.columns.labels[val], logits))
    return best


def cached(backbone: Backbone, xrays: XRays, size: int) -> float:
    """Return the validation accuracy of logistic regression on features that are computed once."""
    labels = xrays.columns.labels
    train, val = xrays.indices("train"), xrays.indices("val")
    x, val_x = (forward_all(backbone, xrays, part, size, 1, torch.float32).numpy() for part in (train, val))
    head = fit_linear_head(x, labels[train], xrays.columns.groups[train])
    return balanced_accuracy(labels[val], head.logits(val_x))


def main(config: ProbeBenchConfig) -> None:
    """Print seconds, ratio and accuracies."""
    xrays = open_xrays(config, torch.device("cpu"))
    backbone = random_backbone("resnet18", 1, seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    seconds: dict[str, list[float]] = {"re-run": [], "cached": []}
    scores = {}
    size = config.img_res
    jobs = {
        "re-run": lambda: rerun(backbone, xrays, size, config.epochs),
        "cached": lambda: cached(backbone, xrays, size),
    }
    jobs["cached"]()  # warm up
    for _ in range(config.rounds):
        for name, probe in jobs.items():
            start = time.perf_counter()
            scores[name] = probe()
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name}: {median:.1f} s [{min(values):.1f} .. {max(values):.1f}], balanced accuracy {scores[name]:.3f}")
    ratios = np.array(seconds["re-run"]) / np.array(seconds["cached"])
    print(f"x{np.median(ratios):.1f} [{ratios.min():.1f} .. {ratios.max():.1f}]")


if __name__ == "__main__":
    run_script(main, ProbeBenchConfig, config)
