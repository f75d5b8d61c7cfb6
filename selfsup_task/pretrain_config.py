"""The pretraining config: its keys and types, and the name of a run that was given none."""

from dataset_loader.xrays import DataConfig
from utils.training_utils import FitConfig


class PretrainConfig(DataConfig, FitConfig):
    """Every key of the pretraining config; selfsup_task/train_barlow_twins.py says what each means."""

    run_name: str
    pretrain_on: str
    backbone: str
    in_channels: int
    img_res: int
    recipe: str
    views: int
    barlow_lambda: float
    projector_dims: list[int]
    device: str
    threads: int
    probe_every: int


def derived_name(config: PretrainConfig) -> str:
    """The name of a run that was given none: what varies between runs, never the clock."""
    projector = "-".join(str(width) for width in config["projector_dims"])
    views = "" if config["views"] == 2 else f"_v{config['views']}"
    return (
        f"pretrain/{config['dataset']}_{config['backbone']}_{config['img_res']}px_{config['recipe']}{views}"
        f"_b{config['batch_size']}_lr{config['lr']:g}_lambda{config['barlow_lambda']:g}_p{projector}"
        f"_e{config['num_epochs']}_s{config['random_seed']}"
    )
