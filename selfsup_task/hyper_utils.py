"""What the scans share: a trial is a pretraining, judged by a linear probe and a full fine-tuning on validation."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from augmentations.transform_utils import Views, denormalise, step_generator
from dataset_loader.splits import SHARES
from dataset_loader.xrays import DataConfig, XRays, described, read_columns
from downstream_task.finetuning import FinetuneConfig, check_finetune_config, finetune
from downstream_task.targets import TargetConfig
from selfsup_task.pretrain_config import PretrainConfig
from selfsup_task.pretraining import check_pretrain_config, pretrain
from selfsup_task.timing import seconds_an_image
from utils.config import UserError, check_config
from utils.locks import exclusive_lock
from utils.logging_utils import Run
from utils.sweeps import check_all_finished, open_sweep, ranked, run_sweep
from utils.training_utils import check_fit_config
from utils.wording import about_minutes

SECONDS_A_TRIAL = 14  # for probes, heads, figures and files, on two cores


class FinetunePart(TargetConfig):
    """How a scan fine-tunes: what FinetuneConfig has and the pretraining does not say."""

    label_fraction: float
    head: str
    recipe: str
    num_steps: int
    evaluations: int
    batch_size: int
    optimizer: str
    lr: float
    backbone_lr_factor: float
    optimizer_weight_decay: float


class ScanConfig(PretrainConfig):
    """The keys that all scans have; scan_base.py holds their values."""

    finetune: FinetunePart
    only: list[str]


class Scan(NamedTuple):
    """A scan that has been checked and can be run."""

    run: Run
    trials: dict[str, Run]
    only: list[str]
    data: dict[str, Any]


def open_scan(config: Mapping[str, Any], trials: Mapping[str, Mapping[str, Any]], varied: Sequence[str]) -> Scan:
    """The scan of the trials {name: overrides of config}; prints the plan.

    `varied` are keys of the script that make the table of trials: with other lists the same folder goes on.
    Raises UserError for a config that cannot be used, before anything is written.
    """
    shared = {key: value for key, value in config.items() if key not in {*varied, "only", "run_name"}}
    run, runs = open_sweep(config["run_name"], {"varied": list(varied), **shared}, trials, config["only"])
    chosen = {name: runs[name] for name in config["only"] or runs}
    any_trial = next(iter(chosen.values())).config
    data = described(read_columns(_pretraining(any_trial)))
    images = round(SHARES["train"] * data["images"])
    for one in chosen.values():
        check_trial(one.config, images)
    print_plan(chosen, images)
    return Scan(run, runs, config["only"], data)


def check_trial(config: Mapping[str, Any], images: int) -> None:
    """Raise UserError for whatever can be known to be wrong with a trial on so many training images."""
    check_config({key: value for key, value in config.items() if key != "varied"} | {"only": []}, ScanConfig)
    check_pretrain_config(_pretraining(config))
    check_finetune_config(finetuning(config, "linear", "random"))
    check_fit_config(_pretraining(config), images)
    if config["pretrain_on"] != "train":
        raise UserError(
            f"pretrain_on is {config['pretrain_on']!r}, but trials are ranked by validation images, which must be "
            'unseen; set it to "train".'
        )


def pretrain_and_probe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Pretrain on the train part, then a linear probe and a full fine-tuning, both scored on validation.

    Returns linear and full (balanced accuracy, or mean AUROC of findings), by which trials may be ranked: where
    finetune.head is "probe", full starts from linear and is never below it, and full_step, the optimiser step of its
    best, is 0 where no step gained anything. And the pretraining's loss, which may not rank them (its scale depends
    on lambda, batch and projector), and rank.
    """
    run = pretrain(_pretraining(config))
    assert run.summary is not None
    encoder = f"{run}/{config['backbone']}_final_state_dict.pt"
    linear, full = (finetune(finetuning(config, method, encoder)).summary for method in ("linear", "finetune"))
    assert linear is not None
    assert full is not None
    return {
        "linear": linear["score"],
        "full": full["score"],
        "full_step": full["step_best"],
        "metric": linear["metric"],
        "loss": run.summary["loss_last_epoch"],
        "rank": run.summary["rank"],
        "synthetic": run.summary["synthetic"],
    }


def random_score(scan: Scan) -> float:
    """What every trial has to beat: the linear probe's score of the random weights that they start from."""
    any_trial = next(iter(scan.trials.values())).config  # trials differ in nothing that a fine-tuning reads
    config = finetuning({**any_trial, "run_name": f"{scan.run.name}/random"}, "linear", "random")
    with exclusive_lock(scan.run.folder / ".random.lock", "probing random weights"):
        summary = finetune(config).summary
    assert summary is not None
    return summary["score"]


def finetuning(config: Mapping[str, Any], method: str, encoder: str) -> FinetuneConfig:
    """The fine-tuning of a trial."""
    shared = {key: config[key] for key in (*DataConfig.__annotations__, *_SHARED)}
    whole: Any = {
        **shared,
        **config["finetune"],
        "run_name": f"{config['run_name']}/{method}",
        "encoder": encoder,
        "method": method,
        "trainable": "all",
        "label_draw": 0,
        "allow_seen": False,
    }
    return whole


def run_scan(scan: Scan, draw: Callable[[pd.DataFrame, float], Figure]) -> None:
    """Run what is not finished, save the figure of the trials that are, print their ranking.

    `draw` gets a row a trial (utils.sweeps.run_sweep), and the linear probe's score of random weights. UserError with
    the failed ones of this call.
    """
    run = scan.run
    table = run_sweep(run, scan.trials, pretrain_and_probe, scan.only, data=scan.data)
    best = ranked(table, by="linear")
    if len(best):
        random = random_score(scan)
        run.save_figure(run.name.rpartition("/")[2], draw(best.sort_index(), random))
        print(f"\n{best.to_string(index=False, float_format='{:.3f}'.format)}")
        note = ", synthetic" if best["synthetic"].tolist()[0] else ""
        print(f"\nbest by linear on validation, one run each{note}: {best['trial'].iloc[0]}")
        print(f"random weights, linear: {random:.3f}")
        if best["linear"].tolist()[0] <= random:
            print("No trial is better than random weights: pretrain for longer, or on more X-rays, before you choose.")
    print(f"table and figure   {run}/")
    print("next               put what you choose into the dict of selfsup_task/train_barlow_twins.py")
    check_all_finished(table, scan.only or list(scan.trials))


def contact_sheet(xrays: XRays, recipes: Sequence[str], size: int, views: int = 4) -> dict[str, np.ndarray]:
    """What each recipe makes of one training X-ray: [views, size, size] in 0..1 by recipe."""
    image = xrays.batch(torch.from_numpy(xrays.indices("train")[:1]).expand(views))
    return {
        recipe: denormalise(Views(recipe, size)(image, step_generator(0, 0, 0))[0])[:, 0].cpu().numpy()
        for recipe in recipes
    }


def print_plan(runs: Mapping[str, Run], images: int) -> None:
    """Say on stderr what will be run and how long it may take, by a short probe of each kind of network."""
    todo = [run.config for run in runs.values() if run.summary is None]
    print(f"{len(todo)} of {len(runs)} trials to run: {', '.join(str(c['run_name']) for c in todo)}", file=sys.stderr)
    if todo:
        print(f"{_forecast(todo, images)} by a probe of a few steps", file=sys.stderr)


def _forecast(configs: Sequence[Mapping[str, Any]], images: int) -> str:
    try:
        seconds = sum(
            SECONDS_A_TRIAL + seconds_an_image(_pretraining(config)) * _steps_of_an_image(config, images)
            for config in configs
        )
    except (RuntimeError, MemoryError) as error:  # one trial needs more memory than there is: the others will run
        return f"about an unknown number of minutes ({str(error).splitlines()[0] if str(error) else 'out of memory'})"
    return about_minutes(seconds)


def _steps_of_an_image(config: Mapping[str, Any], images: int) -> float:
    """What a trial costs, in pretraining steps of one X-ray: fine-tuning sees one view, a forward pass is a third."""
    part = config["finetune"]
    one_view = part["num_steps"] * part["batch_size"] + 3 * images / 3
    return config["num_epochs"] * images + one_view / config["views"]


def _pretraining(config: Mapping[str, Any]) -> PretrainConfig:
    whole: Any = {key: config[key] for key in PretrainConfig.__annotations__}
    whole["run_name"] = f"{config['run_name']}/pretrain"
    return whole


_SHARED = ["random_seed", "backbone", "in_channels", "img_res", "precision", "device", "threads"]
