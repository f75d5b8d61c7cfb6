"""The keys of a fine-tuning, checked once, and its budget, which is fixed beforehand and the same for every arm."""

import math
from dataclasses import dataclass
from typing import ClassVar

from augmentations.recipes import RECIPES
from dataset_loader.xrays import DataConfig, FoldConfig
from downstream_task.classifier import FROZEN_STAGES
from downstream_task.targets import TargetConfig
from self_sup_classes.backbones import check_backbone
from utils.config import Config, check_above_zero, check_at_least, check_choice, part_of
from utils.hardware import PRECISIONS, MachineConfig
from utils.optimisation import OPTIMIZERS, FitConfig

METHODS = ["finetune", "linear", "as_is"]
HEADS = ["probe", "zeros"]
BATCH_NORMS = ["train", "eval"]
MAX_DRAWS = 1000  # of label subsets
EVALUATIONS = 10  # of a training, at most, on validation, which nothing of it depends on
WARMUP = 1  # of these tenths: the learning rate rises in the first


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(TargetConfig):
    """What is learned, from which views, and for how long; the dicts of the scripts say what each key means."""

    recipe: str
    epochs: float
    min_steps: int
    batch_size: int
    optimizer: str
    optimizer_weight_decay: float

    later: ClassVar = {"epochs": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("recipe", self.recipe, list(RECIPES))
        for key, least in {"min_steps": 1, "epochs": 0, "batch_size": 2}.items():
            check_at_least(key, getattr(self, key), least)

    def steps(self, labels: int) -> int:
        """Return the optimiser steps of a fine-tuning on so many labels: `epochs` passes, `min_steps` at least."""
        return max(self.min_steps, math.ceil(self.epochs * labels / self.batch_size))


@dataclass(frozen=True, kw_only=True)
class StartConfig(Config):
    """How a fine-tuning starts and how fast its parts learn."""

    head: str
    lr: float
    backbone_lr_factor: float
    batch_norm: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("head", self.head, HEADS)
        check_choice("batch_norm", self.batch_norm, BATCH_NORMS)
        check_at_least("backbone_lr_factor", self.backbone_lr_factor, 0)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(DataConfig, BudgetConfig, MachineConfig):
    """The keys that all runs of a comparison share."""

    run_name: str
    random_seed: int
    backbone: str
    in_channels: int
    allow_seen: bool
    keep_weights: bool
    precision: str

    later: ClassVar = {"keep_weights": True}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_backbone(self.backbone, self.in_channels)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("precision", self.precision, PRECISIONS)
        for key in ("random_seed", "optimizer_weight_decay"):
            check_at_least(key, getattr(self, key), 0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig, StartConfig, FoldConfig):
    """Every key of one fine-tuning run.

    arm, way, start  what a comparison calls its initialisation and way of training; which of the arm's starts it is
    num_labels       labels to learn from; 0 is all
    """

    encoder: str
    arm: str
    way: str
    start: int
    method: str
    trainable: str
    num_labels: int
    label_draw: int

    later: ClassVar = {"arm": "", "way": "", "start": 0, "num_labels": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("method", self.method, METHODS)
        check_choice("trainable", self.trainable, list(FROZEN_STAGES))
        for key in ("label_draw", "num_labels"):
            check_at_least(key, getattr(self, key), 0)
        if self.method == "finetune":  # the others have no learning rate
            check_above_zero("lr", self.lr)
        engine_config(self, self.num_labels)


def engine_config(config: FinetuneConfig, labels: int) -> FitConfig:
    """Return what the engine reads: EVALUATIONS epochs of equal length, a warmup, then a cosine to zero."""
    epochs = min(EVALUATIONS, config.steps(labels))
    fixed = {"scheduler": "cosine", "warmup_epochs": WARMUP if epochs > WARMUP else 0, "gradient_clip": 0.0}
    return FitConfig(**{**part_of(config, FitConfig), **fixed, "checkpoint_minutes": 5.0, "num_epochs": epochs})


def steps_per_epoch(config: FinetuneConfig, labels: int) -> int:
    """Return the steps of each of them."""
    return math.ceil(config.steps(labels) / engine_config(config, labels).num_epochs)
