"""What the self-supervised scripts share: `pretrain(config)`, one Barlow Twins run from images to encoder."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augmentations.transform_utils import Views, step_generator
from dataset_loader.xrays import PHANTOMS, open_xrays, read_columns
from self_sup_classes.backbones import save_backbone
from self_sup_classes.barlow import BarlowTwins, BarlowTwinsLoss
from self_sup_classes.initialisation import random_backbone
from selfsup_task.monitor import PROBES, Gauge
from selfsup_task.pretrain_config import PretrainConfig, derived_name
from utils import distributed
from utils.config import UserError
from utils.hardware import describe_device, placed, prepare
from utils.logging_utils import Run
from utils.randomness import mixed_seed
from utils.training_utils import StepFunction, check_batch_size, fit


def pretrain(config: PretrainConfig) -> Run:
    """Train a Barlow Twins network as `config` says; the finished run, or the stored one if it was finished.

    Under torchrun, the loss and the BatchNorm statistics are those of the global batch.
    Raises UserError for a config, data or a run folder that cannot be used, before anything is written.
    """
    device = prepare(config.device, config.threads)
    with distributed.process_group(device):
        try:
            run = Run(config.run_name or derived_name(config), config, "pretraining")
        except UserError:
            if config.dataset not in PHANTOMS:  # which would be drawn there
                read_columns(config)  # of two mistakes, a data folder that is not there is the one to be told of
            raise
        if run.summary is None:
            _pretrain(config, device, run)
        return run


def build_model(config: PretrainConfig) -> BarlowTwins:
    """The network, initialised from config.random_seed alone."""
    backbone = random_backbone(config.backbone, config.in_channels, config.random_seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(config.random_seed, 1))  # 0 is the backbone's
        return BarlowTwins(backbone, config.projector_dims, config.barlow_lambda)


def twin_step(
    twins: Callable[..., BarlowTwinsLoss], images_of: Callable[[Tensor], Tensor], config: PretrainConfig
) -> StepFunction:
    """The engine's step for Barlow Twins; `images_of` gives the pixels uint8 [B, 1, S, S] of a batch of indices."""
    """The engine's step for Barlow Twins; `images_of` gives the pixels uint8 [B, 1, S, S] of a batch of indices."""
    views = Views(config.recipe, config.img_res, config.views)

    def step(batch: Tensor, epoch: int, step_in_epoch: int) -> Mapping[str, Tensor]:
        generator = step_generator(config.random_seed, epoch, step_in_epoch, distributed.rank())
        drawn = views(images_of(batch), generator)  # float32 [B, 1, R, R] each
        return twins(*(y.expand(-1, config.in_channels, -1, -1) for y in drawn))._asdict()

    return step


def _pretrain(config: PretrainConfig, device: torch.device, run: Run) -> None:
    model = build_model(config)
    with distributed.main_process_first():
        xrays = open_xrays(config, device)
    indices = xrays.indices(config.pretrain_on)
    check_batch_size(config.batch_size, len(indices))
    run.start(device=describe_device(device), data=xrays.facts(), pretrained_on=len(indices))
    if run.is_writer:
        xrays.write_split(run.folder)
    model = placed(model, device).eval()
    step = twin_step(distributed.data_parallel(model), xrays.batch, config)
    gauge = Gauge(model, xrays, indices, config, run)
    if run.is_writer and run.checkpoint() is None:
        run.save_figure("views", gauge.views_figure(), step=0)
        run.save_figure("recipe", gauge.recipe_figure(), step=0)
        random_network = gauge.measure_random_network()
        run.log(0, random_network)
        run.add_row({"epoch": 0, "step": 0, **random_network})
    fit(model, step, gauge, indices, config, run)
    if run.is_writer:
        save_backbone(run.folder / f"{config.backbone}_final_state_dict.pt", model.backbone, gauge.provenance)
        run.save_figure("curves", gauge.curves_figure(), step=int(run.rows[-1]["step"]))
        run.finish(_summary(config, gauge, run, len(indices)))
    distributed.barrier()


def _summary(config: PretrainConfig, gauge: Gauge, run: Run, images: int) -> dict[str, Any]:
    before, first, last = run.rows[0], run.rows[1], run.rows[-1]
    probed = [row for row in run.rows[1:] if "probe/linear" in row]
    best = max(probed, key=lambda row: row["probe/linear"], default={})
    rates = [row["time/images_per_second"] for row in run.rows[1:]]
    return {
        "synthetic": gauge.xrays.synthetic,
        "verdict": gauge.health(last).verdict(),
        "images": images,
        "epochs": config.num_epochs,
        "loss_first_epoch": first["train/loss"],
        "loss_last_epoch": last["train/loss"],
        "rank_random_network": before["health/rank"],
        "rank": last["health/rank"],
        "metric": gauge.metric,
        "chance": gauge.chance,
        **{f"{tag}_random_network": before[tag] for tag in PROBES if tag in before},
        **{tag: last[tag] for tag in PROBES if tag in last},
        "probe/linear_best": best.get("probe/linear"),
        "epoch_best": best.get("epoch"),
        "images_per_second": float(np.median(rates)),
        "split_hash": gauge.provenance.split_hash,
        "list_hash_seen": gauge.provenance.list_hash,
    }
