"""The data that a test takes, as scripts name them."""

from typing import Any

from dataset_loader.data_keys import DATA
from dataset_loader.xrays import DataConfig
from utils.config import make_config


def data_config(**changes: Any) -> DataConfig:
    """Return the scripts' own data keys, at 32 px, with changes."""
    return make_config(DataConfig, {**DATA, "store_res": 32, "img_res": 32, **changes})
