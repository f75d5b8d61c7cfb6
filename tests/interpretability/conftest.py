"""Networks that were trained on phantoms, with and without a planted marker."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dataset_loader.phantom_dataset import ensure_phantoms
from downstream_task import finetuning
from downstream_task.trained_vs_no_trained_compare import config as COMPARE_DEFAULTS
from utils import logging_utils

COMPARISON_ONLY = ("encoders", "methods", "fractions", "draws", "lrs")


def train(folder: Path, name: str, planted: bool) -> logging_utils.Run:
    data = ensure_phantoms(folder / name, covid_images=600, chexpert_patients=2, size=64, planted_marker=planted)[0]
    config: Any = {
        **{key: value for key, value in COMPARE_DEFAULTS.items() if key not in COMPARISON_ONLY},
        "dataset": "covid",
        "data_root": str(data),
        "img_res": 48,
        "store_res": 48,
        "batch_size": 32,
        "num_steps": 60,
        "evaluations": 4,
        "recipe": "none",
        "encoder": "random",
        "method": "finetune",
        "head": "zeros",
        "backbone_lr_factor": 1.0,
        "trainable": "all",
        "label_fraction": 1.0,
        "label_draw": 0,
        "lr": 1e-3,
        "run_name": name,
    }
    here = folder / "runs"
    with mock.patch.object(finetuning, "Run", lambda name, config: logging_utils.Run(name, config, here)):
        return finetuning.finetune(config, show_progress=False)


@pytest.fixture(scope="session")
def marked(tmp_path_factory: pytest.TempPathFactory) -> logging_utils.Run:
    """Trained where most images of one class carry a corner marker."""
    return train(tmp_path_factory.mktemp("marked"), "marked", planted=True)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> logging_utils.Run:
    """Trained where none does."""
    return train(tmp_path_factory.mktemp("plain"), "plain", planted=False)
