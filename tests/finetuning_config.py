"""The config of one fine-tuning, as a comparison makes it of its own."""

import dataclasses
from typing import Any

from downstream_task.finetuning import FinetuneConfig, TrainingConfig
from downstream_task.trained_vs_no_trained_compare import WAYS
from downstream_task.trained_vs_no_trained_compare import config as comparison
from utils.config import make_config


def finetuning_config(**changes: Any) -> FinetuneConfig:
    """Return a config: all labels of a data set in the COVID layout, random weights, from the probe; with changes."""
    shared = {field.name: comparison[field.name] for field in dataclasses.fields(TrainingConfig)}
    own = {"dataset": "covid", "encoder": "random", "arm": "random", "way": "probe", "start": 0, "keep_weights": True}
    own |= {"method": "finetune", "trainable": "all", "lr": 1e-3, "num_labels": 0, "label_draw": 0, "fold": 0}
    own |= {"precision": "float32"}  # "auto" is bfloat16 on some processors: tests would depend on them
    return make_config(FinetuneConfig, {**shared, **WAYS["probe"], **own, **changes})
