"""Which layers may be frozen? The same fine-tuning with more and more of the network trained."""

from dataclasses import dataclass

import pandas as pd

from dataset_loader.xrays import open_xrays
from downstream_task.classifier import FROZEN_STAGES
from downstream_task.finetuning import TrainingConfig
from downstream_task.label_efficiency import analyse
from downstream_task.trials import Trial, check_trials, run_trials, shared_summary, usable_arms
from utils.config import check_at_least, check_choice, check_list
from utils.hardware import choose_device
from utils.logging_utils import Run


@dataclass(frozen=True, kw_only=True)
class FrozenPartsConfig(TrainingConfig):
    """Every key of downstream_task/train_models_with_frozen_parts.py."""

    encoders: list[str]
    parts: list[str]
    label_fraction: float
    draws: int
    lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("draws", self.draws, 1)
        for key in ("encoders", "parts"):
            check_list(key, getattr(self, key))
        for part in self.parts:
            check_choice("parts", part, list(FROZEN_STAGES))


def train_with_frozen_parts(config: FrozenPartsConfig) -> Run:
    """All arms x parts x draws; table.csv has a row an arm and part with its interval."""
    run = Run(config.run_name, config, "frozen parts")
    if run.summary is not None:
        return run
    xrays = open_xrays(config, choose_device(config.device))
    arms = usable_arms(config, config.encoders, xrays)
    trials = [
        Trial(arm, encoder, "finetune", config.label_fraction, draw, config.lr, part)
        for draw in range(config.draws)
        for part in config.parts
        for arm, encoder in arms.items()
    ]
    check_trials(trials, config, xrays)
    run.start(data=xrays.facts(), arms=arms)
    table = run_trials(trials, config, xrays, run)
    parts = [
        analyse(group, run.folder, "predictions_val.csv")[0].assign(trainable=part)
        for part, group in table.groupby("trainable", sort=False)
    ]
    run.save_table("table", pd.concat(parts))
    run.finish({**shared_summary(table, config, arms, xrays), "labels": int(table["labels"].iloc[0])})
    return run
