"""The linear probes of docs/RESULTS.md, "Which pretraining?": one line per encoder, to compare pretrainings by.

    python docs/probe_pretrainings.py --data-root COVID --encoders random runs/real/s1/resnet18_final_state_dict.pt

Balanced accuracy in percent, mean over draws of the labels, on two sets of images: validation, and the train part
without the images whose labels the probe got: their pixels were pretrained on, and they are many, so noise is low.
Of the strengths 1e-3, 1e-2 and 1e-1 the one with the best mean of a column is taken. Half a minute for each encoder.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "data_root": "",  # a folder in the COVID-19 Radiography layout; "" is where datasets/README.md says
    "encoders": ["random"],  # "random" | *_state_dict.pt
    "num_labels": [20, 93, 187],  # labels of the train part
    "draws": 10,  # of these labels
    "img_res": 64,  # pixels a side
    "backbone": "resnet18",
    "split_seed": 0,  # that of the pretraining
    "fold": 0,  # that of the pretraining
    "random_seed": 0,  # of random weights
    "device": "auto",
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

from dataclasses import dataclass

import numpy as np
import torch

from dataset_loader.data_keys import DATA
from dataset_loader.xrays import DataConfig, XRays, open_xrays
from downstream_task.finetuning import labelled_subset
from downstream_task.probes import forward_all, logistic_regression
from downstream_task.targets import Targets
from self_sup_classes.initialisation import start_from
from utils.config import Config, make_config, part_of
from utils.hardware import placed, prepare
from utils.metrics import balanced_accuracy

STRENGTHS = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Config):
    """The config above."""

    data_root: str
    encoders: list[str]
    num_labels: list[int]
    draws: int
    img_res: int
    backbone: str
    split_seed: int
    fold: int
    random_seed: int
    device: str
    threads: int


def main(config: ProbeConfig) -> None:
    """Print one row of a table for each encoder."""
    device = prepare(config.device, config.threads)
    data = make_config(DataConfig, {**DATA, **part_of(config, DataConfig), "dataset": "covid", "store_res": 0})
    xrays = open_xrays(data, device, fold=config.fold)
    targets = Targets(xrays.columns.labels, xrays.columns.label_names)
    rows = np.concatenate([xrays.indices("train"), xrays.indices("val")])
    counts = " / ".join(map(str, config.num_labels))
    print(f"| encoder | validation: {counts} | other training images: {counts} |\n|---|---|---|")
    for encoder in config.encoders:
        net = placed(start_from(encoder, config.backbone, 1, config.random_seed).backbone, device)
        features = np.full((len(targets.values), net.num_features), np.nan, dtype=np.float32)  # the test part's stay so
        features[rows] = forward_all(net, xrays, rows, config.img_res, 1, torch.float32).numpy()
        found = [scores(features, xrays, targets, count, config) for count in config.num_labels]
        columns = [" / ".join(f"{score:.1f}" for score in column) for column in np.transpose(found)]
        print(f"| {encoder} | {' | '.join(columns)} |", flush=True)


def scores(
    features: np.ndarray, xrays: XRays, targets: Targets, count: int, config: ProbeConfig
) -> tuple[float, float]:
    """Return the scores of features [N, F] on validation and on the other training images."""
    train, val, labels = xrays.indices("train"), xrays.indices("val"), targets.values
    found = np.zeros((len(STRENGTHS), config.draws, 2))
    for draw in range(config.draws):
        rows = labelled_subset(xrays, targets, count, draw, config.split_seed)
        mean, deviation = features[rows].mean(0), features[rows].std(0) + 1e-6
        x = (features - mean) / deviation
        for k, strength in enumerate(STRENGTHS):
            model = logistic_regression(strength, x[rows], labels[rows], class_weights=False)
            for part, tested in enumerate((val, np.setdiff1d(train, rows))):
                found[k, draw, part] = 100 * balanced_accuracy(labels[tested], model.predict_proba(x[tested]))
    on_validation, on_others = found.mean(1).max(0)
    return on_validation, on_others


if __name__ == "__main__":
    run_script(main, ProbeConfig, config)
