"""The config of one fine-tuning, as a comparison makes it of its own."""

import dataclasses
from typing import Any

from downstream_task.finetune_config import FinetuneConfig, TrainingConfig
from downstream_task.trained_vs_no_trained_compare import SETTINGS
from downstream_task.trained_vs_no_trained_compare import config as comparison
from utils.config import make_config


def finetuning_config(**changes: Any) -> FinetuneConfig:
    """Return a config: all labels of a data set in the COVID layout, random weights; with changes."""
    own = {"dataset": "covid", "encoder": "random", "method": "finetune", "trainable": "all"}
    own |= {"precision": "float32"}  # "auto" is bfloat16 on some processors: tests would depend on them
    setting = {**SETTINGS["probe"], "lr": 1e-3, "label_fraction": 1.0, "label_draw": 0}
    shared = {field.name: comparison[field.name] for field in dataclasses.fields(TrainingConfig)}
    return make_config(FinetuneConfig, {**shared, **own, **setting, **changes})
