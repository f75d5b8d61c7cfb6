"""The keys of a fine-tuning, checked once."""

from dataclasses import dataclass

from augmentations.recipes import RECIPES
from dataset_loader.xrays import DataConfig
from downstream_task.classifier import FROZEN_STAGES
from downstream_task.targets import TargetConfig
from self_sup_classes.backbones import check_backbone
from utils.config import UserError, check_at_least, check_choice, part_of
from utils.hardware import DEVICES
from utils.training_utils import FitConfig

METHODS = ["finetune", "linear"]
HEADS = ["probe", "zeros"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(DataConfig, TargetConfig):
    """The keys that all runs of a comparison share; the dicts of the scripts say what each means."""

    run_name: str
    random_seed: int
    backbone: str
    in_channels: int
    recipe: str
    head: str
    num_steps: int
    evaluations: int
    batch_size: int
    optimizer: str
    backbone_lr_factor: float
    optimizer_weight_decay: float
    allow_seen: bool
    precision: str
    device: str
    threads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_backbone(self.backbone, self.in_channels)
        check_choice("head", self.head, HEADS)
        check_choice("recipe", self.recipe, list(RECIPES))
        check_choice("device", self.device, DEVICES)
        for key, least in {"num_steps": 1, "evaluations": 1, "backbone_lr_factor": 0}.items():
            check_at_least(key, getattr(self, key), least)
        if self.num_steps % self.evaluations:
            raise UserError(
                f"num_steps is {self.num_steps} and evaluations {self.evaluations}; make it a multiple, so that the "
                "evaluations are evenly spread."
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Every key of one fine-tuning run."""

    encoder: str
    method: str
    trainable: str
    label_fraction: float
    label_draw: int
    lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("method", self.method, METHODS)
        check_choice("trainable", self.trainable, list(FROZEN_STAGES))
        check_at_least("label_draw", self.label_draw, 0)
        engine_config(self)


def engine_config(config: FinetuneConfig) -> FitConfig:
    """Return what the engine reads; its epoch is what lies between two evaluations."""
    fixed = {"scheduler": "cosine", "warmup_epochs": 0, "gradient_clip": 0.0, "checkpoint_every": 500}
    return FitConfig(**{**fixed, **part_of(config, FitConfig)}, num_epochs=config.evaluations)
