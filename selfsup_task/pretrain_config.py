"""The pretraining config: its keys and types, and the name of a run that was given none."""

from dataclasses import dataclass

from augmentations.recipes import RECIPES
from dataset_loader.xrays import DataConfig
from self_sup_classes.backbones import check_backbone
from utils.config import UserError, check_at_least, check_choice
from utils.hardware import DEVICES
from utils.training_utils import FitConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(DataConfig, FitConfig):
    """Every key of the pretraining config; selfsup_task/train_barlow_twins.py says what each means."""

    run_name: str
    pretrain_on: str
    backbone: str
    in_channels: int
    recipe: str
    views: int
    barlow_lambda: float
    projector_dims: list[int]
    device: str
    threads: int
    probe_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pretrain_on", self.pretrain_on, ["train", "all"])
        check_backbone(self.backbone, self.in_channels)
        if not self.projector_dims or min(self.projector_dims) < 1:
            raise UserError(f"projector_dims is {self.projector_dims}; expected widths such as [512] or [512, 512].")
        check_choice("recipe", self.recipe, list(RECIPES))
        check_choice("device", self.device, DEVICES)
        check_at_least("views", self.views, 2)
        check_at_least("probe_every", self.probe_every, 1)
        check_at_least("barlow_lambda", self.barlow_lambda, 0)


def derived_name(config: PretrainConfig) -> str:
    """The name of a run that was given none: what varies between runs, never the clock."""
    projector = "-".join(str(width) for width in config.projector_dims)
    views = "" if config.views == 2 else f"_v{config.views}"
    return (
        f"pretrain/{config.dataset}_{config.backbone}_{config.img_res}px_{config.recipe}{views}"
        f"_b{config.batch_size}_lr{config.lr:g}_lambda{config.barlow_lambda:g}_p{projector}"
        f"_e{config.num_epochs}_s{config.random_seed}"
    )
