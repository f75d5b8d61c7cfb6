"""The parts of a Barlow Twins pretraining, which train_barlow_twins.py joins: config, run, network, step, training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from augmentations.transform_utils import Views, step_generator
from dataset_loader.xrays import XRays, listed_facts
from self_sup_classes.backbones import BackboneName, save_backbone, weights_file
from self_sup_classes.barlow import BarlowTwins
from self_sup_classes.cuda_graphs import replayed
from self_sup_classes.initialisation import seen_by, start_from, weights_hashes
from self_sup_classes.provenance import Provenance, check_unseen
from selfsup_task.monitor import PROBES, Monitor, MonitorConfig
from utils import distributed
from utils.config import Natural, NotNegative, Positive, UserError, bound, each_once, launched_processes, one_of
from utils.files import check_files
from utils.hardware import MachineConfig, choose_precision, describe_device, memory_for
from utils.logging_utils import Run
from utils.messages import say
from utils.seeds import mixed_seed
from utils.training_utils import StepFunction, fit

# Of a pretraining whose length is not given: fewer steps teach less (docs/RESULTS.md, "Levers of pretraining").
EPOCHS, EPOCH_STEPS = 20, 55
MAX_WIDTH = 2**16  # of the projector: the cross-correlation of more takes over 16 GB
Widths = Annotated[
    list[int],
    bound(
        lambda widths: widths and 2 <= min(widths) <= max(widths) <= MAX_WIDTH,
        f"expected widths from 2 to {MAX_WIDTH}, such as [512, 512]",
    ),
]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(MonitorConfig, MachineConfig):
    """Every key of a pretraining; train_barlow_twins.py says what each means."""

    run_name: str
    pretrain_on: Annotated[str, one_of(["train", "all"])]
    also: Annotated[list[str], each_once]
    exclude: list[str]
    positives: Annotated[str, one_of(["image", "patient"])]
    backbone: BackboneName
    start: str
    barlow_lambda: NotNegative
    projector_dims: Widths
    num_epochs: Natural  # 0 is EPOCHS, each of one pass, or of EPOCH_STEPS where a pass has fewer
    lr: Positive
    micro_batch_size: int
    deterministic: bool
    later: ClassVar = {"exclude": []}

    def __post_init__(self) -> None:
        super().__post_init__()
        processes = launched_processes()
        share, micro = self.batch_size // processes, self.micro_batch_size
        if micro and (micro < 2 or (micro < share and share % micro)):
            raise UserError(
                f"micro_batch_size is {micro}; it must be 0 or a divisor, larger than 1, of the {share} X-rays that "
                f"{'a step has' if processes == 1 else f'each of {processes} processes has in a step'}."
            )


def open_run(config: PretrainConfig) -> Run:
    """Return the run that `config` names; UserError if its folder holds another one, or has lost its weights."""
    run = Run(config.run_name, config, "pretraining", look=lambda: facts_of(config))
    if run.summary is not None:
        check_files(run.folder, weights_file(config.backbone), "metrics.csv")
    return run


def facts_of(config: PretrainConfig) -> dict[str, Any]:
    """Return what a finished pretraining compares with its records: data, and the weights that it started from."""
    return {"data": listed_facts(config, config.also), "weights": weights_hashes([config.start])}


def build_model(config: PretrainConfig) -> BarlowTwins:
    """Return the network on the CPU: the backbone that config.start names, and a random projector."""
    backbone = start_from(config.start, config.backbone, config.in_channels, config.random_seed).backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed("projector", config.random_seed))
        return BarlowTwins(backbone, config.projector_dims, config.barlow_lambda, config.micro_batch_size)


class Partners:
    """For each X-ray of a pretraining, the others of the same patient and study (MedAug, arXiv 2102.10663).

    Those without a label, and those of collections whose reader knows the patients, are among them. An X-ray without
    another is its own partner. Raises UserError if that holds for all.
    """

    def __init__(self, xrays: XRays, indices: np.ndarray):
        key = xrays.visits()[indices]
        order = np.argsort(key, kind="stable")
        self.members = torch.from_numpy(indices[order])  # [n], by patient and study
        counts = np.bincount(key)
        self.start, self.count, self.place = (torch.zeros(indices.max() + 1, dtype=torch.int64) for _ in range(3))
        self.start[indices] = torch.from_numpy((counts.cumsum() - counts)[key])
        self.count[indices] = torch.from_numpy(counts[key])
        self.place[self.members] = torch.arange(len(indices)) - self.start[self.members]
        if counts.max() < 2:
            raise UserError(
                'positives is "patient", but no patient has two X-rays of one study; use positives "image", or a data '
                "set that knows its patients."
            )

    def draw(self, batch: Tensor, generator: torch.Generator, shard: distributed.Shard) -> Tensor:
        """Return the index of a partner, one of the others at random, for each of a batch of indices [B]."""
        count = self.count[batch]
        drawn = torch.rand(shard.total, generator=generator)[shard.rows]
        others = (drawn * (count - 1)).long()  # [B] 0 .. count - 2
        partner = (self.place[batch] + 1 + others) % count
        return self.members[self.start[batch] + partner]


def partners_of(xrays: XRays, config: PretrainConfig) -> Partners | None:
    """Return what pretraining_step draws positives from: None for two views of one image."""
    return Partners(xrays, xrays.pretraining_indices(config.pretrain_on)) if config.positives == "patient" else None


def loss_of_views(model: BarlowTwins, config: PretrainConfig) -> Callable[..., Mapping[str, Tensor]]:
    """Return the function from views to loss and terms that `pretraining_step` calls, for `model` on its device.

    Several processes share a batch; one with a CUDA GPU replays graphs, unless there are micro-batches. Raises
    UserError if the GPU's memory does not hold a step.
    """
    device = next(model.parameters()).device
    if distributed.world_size() > 1 or device.type != "cuda" or config.micro_batch_size:
        return distributed.data_parallel(model)
    size = (config.batch_size, config.in_channels, config.img_res, config.img_res)
    views = [torch.zeros(size, device=device) for _ in range(config.views)]
    with memory_for(config.batch_size):
        return replayed(model.train(), views, choose_precision(config.precision, device))


def pretraining_step(
    loss_of: Callable[..., Mapping[str, Tensor]],
    images_of: Callable[[Tensor], Tensor],
    config: PretrainConfig,
    partners: Partners | None = None,
) -> StepFunction:
    """Return the engine's step; `images_of` gives the pixels uint8 [B, 1, S, S] of a batch of indices [B].

    With `partners`, every second view is of another X-ray of the same patient and study.
    """
    views = Views(config.recipe, config.img_res, config.views)

    def step(batch: Tensor, epoch: int, step_in_epoch: int) -> Mapping[str, Tensor]:
        generator = step_generator("twin views", config.random_seed, epoch, step_in_epoch)
        shard = distributed.own_shard(len(batch))
        if partners is None:
            drawn = views(images_of(batch), generator, shard)  # float32 [B, 1, R, R] each
        else:
            others = images_of(partners.draw(batch, generator, shard))
            drawn = views.of_pairs(images_of(batch), others, generator, shard)
        return loss_of(*(y.expand(-1, config.in_channels, -1, -1) for y in drawn))

    return step


def train(
    model: BarlowTwins,
    step: StepFunction,
    xrays: XRays,
    config: PretrainConfig,
    run: Run,
    until: int | None = None,
) -> dict[str, float]:
    """Train `model`, which is on its device, from the start or the run's checkpoint; write all files of the run.

    `until` ends the training after so many epochs of the whole schedule, with a checkpoint from which the next call
    continues, and returns the probes' scores then. Raises UserError, before anything is written, for a run on other
    data.
    """
    indices = xrays.pretraining_indices(config.pretrain_on)
    steps_per_epoch = None  # one pass
    if config.num_epochs == 0:
        config = replace(config, num_epochs=EPOCHS)
        steps_per_epoch = EPOCH_STEPS if len(indices) // config.batch_size < EPOCH_STEPS else None
    device = next(model.parameters()).device
    facts = {"data": xrays.facts(), "weights": weights_hashes([config.start])}
    run.start(device=describe_device(device), **facts, pretrained_on=len(indices))
    if run.is_writer:
        xrays.write_split(run.folder)
    model.eval()
    seen, note = provenance(config, xrays, indices)
    monitor = Monitor(model, xrays, indices, config, run)
    if run.is_writer and run.checkpoint() is None:
        with memory_for(config.batch_size):
            monitor.record_start()
    last = until or config.num_epochs
    fit(model, step, monitor, indices, config, run, steps_per_epoch=steps_per_epoch, until=last)
    if last < config.num_epochs:
        return monitor.probe()
    if run.is_writer:
        save_backbone(run.folder / weights_file(config.backbone), model.backbone, seen)
        run.save_figure("curves", monitor.curves_figure(), step=int(run.rows[-1]["step"]))
        length = {"images": len(indices), "epochs": config.num_epochs, "steps": int(run.rows[-1]["step"])}
        labels = len(xrays.indices("train")) if xrays.columns.label_names else 0
        fold = config.fold if xrays.has_folds else None
        known = {"labels": labels, "fold": fold, "note": note, "list_hash_seen": seen and seen.list_hash}
        run.finish({**length, **known, **monitor.facts(), **_progress(run.rows)})
        run.drop_checkpoint()
    distributed.barrier()
    return {}


def provenance(config: PretrainConfig, xrays: XRays, indices: np.ndarray) -> tuple[Provenance | None, str]:
    """Return what the encoder will have been trained on: these images, and those of the weights that it starts from.

    None if it starts from a file that does not say. Also a note on held-out images that these weights have seen.
    """
    before = seen_by(config.start)
    note = check_unseen(before, xrays, allow_seen=True, encoder=config.start)
    if note and distributed.rank() == 0:
        say(f"warning: {note}; so a comparison will refuse the new encoder too")
    return before and before.joined(xrays.split_hash, xrays.image_ids(indices)), note


def _progress(rows: list[dict[str, float]]) -> dict[str, float | None]:
    """Return numbers of the start, epoch 0, of the last epoch, and of the best epoch by probe."""
    before, first, last = rows[0], rows[1], rows[-1]
    probed = [row for row in rows[1:] if "probe/linear" in row]
    best = max(probed, key=lambda row: row["probe/linear"], default={})
    return {
        "loss_first_epoch": first["train/loss"],
        "loss_last_epoch": last["train/loss"],
        "rank_at_start": before["health/rank"],
        "rank": last["health/rank"],
        **{f"{tag}_at_start": before[tag] for tag in PROBES if tag in before},
        **{tag: last[tag] for tag in PROBES if tag in last},
        "probe/linear_best": best.get("probe/linear"),
        "epoch_best": best.get("epoch"),
        "images_per_second": float(np.median([row["time/images_per_second"] for row in rows[1:]])),
    }
