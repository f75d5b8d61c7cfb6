"""The pretraining that slow tests kill, damage and measure, and how two of them are compared."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

TRAIN = "selfsup_task/train_barlow_twins.py"
SMALL = ["--img-res", "16", "--store-res", "32", "--batch-size", "32", "--num-epochs", "2", "--lr", "1e-3"]
SMALL += ["--projector-dims", "32", "--checkpoint-minutes", "0", "--threads", "1", "--dataset", "covid"]
SMALL += ["--backbone", "resnet18", "--start", "random"]
SMALL += ["--optimizer", "sgd"]  # whose checkpoints are smaller


class Answer(NamedTuple):
    """Exit code, CPU seconds, and what a script printed."""

    code: int
    seconds: float
    output: str


Start = Callable[..., Answer]  # start(script, *flags, die_at=0)


def training(name: str, images: Path) -> list[str]:
    """The flags of a small pretraining."""
    return [*SMALL, "--data-root", str(images), "--run-name", name]


def same_result(folder: Path, other: Path) -> bool:
    """Whether two pretrainings have the same numbers and weights, bit by bit."""
    tables = [pd.read_csv(one / "metrics.csv").drop(columns="time/images_per_second") for one in (folder, other)]
    file = "resnet18_final_state_dict.pt"
    a, b = (torch.load(one / file, weights_only=True) for one in (folder, other))
    return tables[0].equals(tables[1]) and list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
