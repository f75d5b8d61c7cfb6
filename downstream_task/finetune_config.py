"""The keys of a fine-tuning, checked once, and its budget: until validation stops rising, within a cap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from augmentations.recipes import RECIPES
from dataset_loader.xrays import DataConfig
from downstream_task.classifier import FROZEN_STAGES
from downstream_task.targets import TargetConfig
from self_sup_classes.backbones import check_backbone
from utils.config import Config, check_above_zero, check_at_least, check_between, check_choice, part_of
from utils.hardware import PRECISIONS, MachineConfig
from utils.optimisation import OPTIMIZERS, FitConfig

METHODS = ["finetune", "linear", "as_is"]
HEADS = ["probe", "zeros"]
BATCH_NORMS = ["train", "eval"]
MAX_DRAWS = 1000  # of label subsets
MAX_STEPS_BETWEEN_EVALUATIONS = 10**6  # whose images are put into an order at once
CHOOSE_BY = ["validation", "cross-validation"]


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(TargetConfig):
    """What is learned, from which views, and for how long; the dicts of the scripts say what each key means."""

    recipe: str
    choose_by: str
    evaluate_every: int
    patience: int
    min_steps: int
    passes: float
    batch_size: int
    optimizer: str
    optimizer_weight_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("recipe", self.recipe, list(RECIPES))
        check_choice("choose_by", self.choose_by, CHOOSE_BY)
        check_between("evaluate_every", self.evaluate_every, 1, MAX_STEPS_BETWEEN_EVALUATIONS)
        for key, least in {"patience": 1, "min_steps": 1, "passes": 0, "batch_size": 2}.items():
            check_at_least(key, getattr(self, key), least)

    def max_evaluations(self, labels: int) -> int:
        """Return after how many evaluations a fine-tuning on so many labels stops: the cap, the same for every arm.

        It allows `min_steps` steps, or `passes` passes over the labels where these are more.
        """
        steps = max(self.min_steps, self.passes * labels / self.batch_size)
        return math.ceil(steps / self.evaluate_every)


@dataclass(frozen=True, kw_only=True)
class StartConfig(Config):
    """How a fine-tuning starts and how fast its parts learn: what a comparison chooses between."""

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
    precision: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_backbone(self.backbone, self.in_channels)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("precision", self.precision, PRECISIONS)
        for key in ("random_seed", "optimizer_weight_decay"):
            check_at_least(key, getattr(self, key), 0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig, StartConfig):
    """Every key of one fine-tuning run."""

    encoder: str
    method: str
    trainable: str
    label_fraction: float
    label_draw: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("method", self.method, METHODS)
        check_choice("trainable", self.trainable, list(FROZEN_STAGES))
        check_at_least("label_draw", self.label_draw, 0)
        check_above_zero("label_fraction", self.label_fraction, most=1)
        if self.method == "finetune":  # the other has no learning rate
            check_above_zero("lr", self.lr)
        engine_config(self, labels=1)


def engine_config(config: FinetuneConfig, labels: int) -> FitConfig:
    """Return what the engine reads; its epoch is what lies between two evaluations.

    The learning rate is constant: a schedule would need to know where a training ends that stops by patience.
    """
    fixed = {"scheduler": "constant", "warmup_epochs": 0, "gradient_clip": 0.0, "checkpoint_minutes": 5.0}
    return FitConfig(**{**fixed, **part_of(config, FitConfig)}, num_epochs=config.max_evaluations(labels))


def has_converged(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` validation scores are all no better than the best one before them."""
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])
