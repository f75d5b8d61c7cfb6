"""The data that a test takes, as scripts name them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dataset_loader.data_keys import DATA
from dataset_loader.xrays import DataConfig, XRays, open_xrays
from utils.config import make_config


def data_config(**changes: Any) -> DataConfig:
    """Return the scripts' own data keys, at 32 px, with changes."""
    return make_config(DataConfig, {**DATA, "store_res": 32, "img_res": 32, **changes})


def opened(
    dataset: str, root: Path, also: Sequence[str] | None = None, folds: Sequence[int] = (), **changes: Any
) -> XRays:
    """Return the opened X-rays of a folder, with changes of data_config's keys."""
    config = data_config(dataset=dataset, data_root=str(root), **changes)
    return open_xrays(config, torch.device("cpu"), also, folds)
