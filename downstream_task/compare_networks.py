"""What comparisons share: arms, trials, and running them side by side on the same label subsets."""

import glob
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset_loader.xrays import XRays, listed_facts, open_xrays
from downstream_task.finetuning import FinetuneConfig, TrainingConfig, finetune, labelled_subset
from downstream_task.targets import Targets, check_learnable, read_targets
from self_sup_classes.initialisation import start_from, weights_hashes
from self_sup_classes.provenance import check_unseen
from utils.config import UserError, make_config, part_of, repo_path
from utils.hardware import prepare
from utils.logging_utils import Run
from utils.sweeps import check_all_finished, errors_of, run_trials, with_reasons


@dataclass(frozen=True)
class Arm:
    """An initialisation: the short name that tables and figures have for it, and its encoders, one per pretraining."""

    name: str
    encoders: tuple[str, ...]

    def encoder(self, draw: int) -> str:
        """Return the encoder of a draw: the pretrainings take turns."""
        return self.encoders[draw % len(self.encoders)]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A way to train a classifier: the keys of a fine-tuning that a comparison chooses between."""

    name: str = ""
    method: str = "finetune"
    head: str = "probe"
    lr: float = 0.0
    backbone_lr_factor: float = 1.0
    batch_norm: str = "train"


LINEAR = Setting(method="linear")
AS_IS = Setting(method="as_is")


@dataclass(frozen=True)
class Trial:
    """One run of a comparison."""

    arm: Arm
    setting: Setting
    fraction: float
    draw: int
    trainable: str = "all"

    @property
    def name(self) -> str:
        """Return its folder inside the comparison's."""
        setting = f"_{self.setting.name}" if self.setting.name else ""
        part = "" if self.trainable == "all" else f"_{self.trainable}"
        return f"{self.arm.name}_{self.setting.method}{setting}{part}_f{self.fraction:g}_d{self.draw}"

    @property
    def cell(self) -> tuple[str, float]:
        """Return what it is compared under: the arm's name and the fraction."""
        return self.arm.name, self.fraction

    def config(self, shared: TrainingConfig) -> FinetuneConfig:
        """Return the config of its fine-tuning; draw k has the seed random_seed + k."""
        own = {"run_name": f"{shared.run_name}/{self.name}", "random_seed": shared.random_seed + self.draw}
        setting = {key: value for key, value in vars(self.setting).items() if key != "name"}
        return FinetuneConfig(
            **{**part_of(shared, TrainingConfig), **own, **setting},
            encoder=self.arm.encoder(self.draw),
            trainable=self.trainable,
            label_fraction=self.fraction,
            label_draw=self.draw,
        )


def named_arms(encoders: Iterable[str]) -> list[Arm]:
    """Return an arm for each entry, named by its kind or, of several entries of files, by the run that each comes from.

    An entry with *, ? or [ is a pattern: its files are one arm, such as the pretrainings of several seeds.
    Raises UserError for equal names and a pattern without files.
    """
    arms: dict[str, Arm] = {}
    encoders = list(encoders)
    kinds = {encoder: encoder.partition(":")[0] for encoder in encoders}
    files = [encoder for encoder, kind in kinds.items() if kind not in ("random", "imagenet")]
    for encoder in encoders:
        path = Path(encoder)
        stem = path.parent.name if path.name.endswith("_state_dict.pt") and path.parent.name else path.stem
        if glob.has_magic(encoder):
            stem = re.sub(r"[^\w.+-]", "", "-".join(path.parent.parts[-2:])).strip("-_.")  # a/s* and b/s*
        name = kinds[encoder] if encoder not in files else "pretrained" if len(files) == 1 else stem
        if name in arms:
            raise UserError(
                f"encoders holds {encoder!r} and {arms[name].encoders[0]!r}, both named {name!r}; keep one."
            )
        arms[name] = Arm(name, _matching(encoder))
    return list(arms.values())


def _matching(encoder: str) -> tuple[str, ...]:
    if not glob.has_magic(encoder):
        return (encoder,)
    parts = Path(encoder).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:fixed])  # as written, so that configs keep relative paths
    found = sorted(repo_path(folder).glob("/".join(parts[fixed:])))
    if not found:
        raise UserError(f"no file matches {encoder!r} in encoders; expected *_state_dict.pt of several runs.")
    return tuple(str(folder / file.relative_to(repo_path(folder))) for file in found)


def usable_arms(config: TrainingConfig, arms: Sequence[Arm], xrays: XRays) -> tuple[list[Arm], dict[str, str]]:
    """Return the arms whose weights can be loaded, and why ImageNet's, which need a network, are left out if they are.

    Raises UserError for any other that cannot be loaded or has seen held-out images, and if no arm remains.
    """
    usable, left_out = [], {}
    for arm in arms:
        try:
            for encoder in arm.encoders:
                start = start_from(encoder, config.backbone, config.in_channels, config.random_seed)
                check_unseen(start.provenance, xrays, config.allow_seen, encoder)
            usable.append(arm)
        except UserError as error:
            if arm.encoders != ("imagenet",):
                raise
            print(f"warning: {arm.name} is left out: {error}", file=sys.stderr)
            left_out[arm.name] = str(error)
    if not usable:
        raise UserError(f"encoders names nothing that can be run: {with_reasons(left_out)}.")
    return usable, left_out


def open_comparison(
    config: TrainingConfig, encoders: list[str], fractions: Sequence[float], draws: int, run: Run
) -> tuple[XRays, Targets, list[Arm], dict[str, str]]:
    """Open the data, check the arms and label subsets of a comparison, and start its run.

    Returns the X-rays, their targets, the arms, and which others are left out, with the reason.
    """
    xrays = open_xrays(config, prepare(config.device, config.threads))
    targets = read_targets(xrays, config)
    named = named_arms(encoders)
    arms, left_out = usable_arms(config, named, xrays)
    check_subsets(fractions, draws, targets, xrays, config.split_seed)
    run.start(alone=False, data=xrays.facts(), **facts_of(named))
    return xrays, targets, arms, left_out


def facts_of(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return what a comparison records of its arms: their encoders, and hashes of the files."""
    encoders = {arm.name: list(arm.encoders) for arm in arms}
    return {"arms": encoders, "weights": weights_hashes(itertools.chain(*encoders.values()))}


def look_again(config: TrainingConfig, encoders: Sequence[str]) -> dict[str, Any]:
    """Return what a finished comparison compares with its records: data and arms, without a look at a pixel."""
    return {"data": listed_facts(config), **facts_of(named_arms(encoders))}


def check_subsets(fractions: Sequence[float], draws: int, targets: Targets, xrays: XRays, seed: int) -> None:
    """Raise UserError, before anything is written, for label subsets that no run could be trained with."""
    check_learnable(targets, {"the validation part": xrays.indices("val")})
    for fraction in fractions:
        for draw in range(draws):
            subset = labelled_subset(xrays, targets, fraction, draw, seed)
            check_learnable(targets, {f"the {fraction:.0%} of the labels in draw {draw}": subset})


def run_of(trial: Trial, config: TrainingConfig) -> Run:
    """Return the run of a trial, which may not have been started yet."""
    return Run(f"{config.run_name}/{trial.name}", trial.config(config), "fine-tuning")


def run_side_by_side(
    run: Run, trials: Sequence[Trial], config: TrainingConfig, xrays: XRays, left_out: dict[str, str]
) -> pd.DataFrame:
    """Fine-tune all trials that are not finished; return one row per trial of the arms of which none failed, in order.

    Columns: trial, arm, setting, encoder, method, trainable, fraction, draw, labels, score, every score on validation,
    and what the runs' summaries say besides. The other arms are added to `left_out`, with their trials and the reason.
    Raises UserError if no arm remains.
    """
    runs = {trial.name: run_of(trial, config) for trial in trials}

    def work(one: Run) -> None:
        finetune(make_config(FinetuneConfig, one.config), xrays, one, show_progress=False)

    table = run_trials(run, runs, work)
    for arm in dict.fromkeys(trial.arm.name for trial in trials):
        if failed := errors_of(table, [trial.name for trial in trials if trial.arm.name == arm]):
            left_out[arm] = with_reasons(failed)
    remaining = [trial for trial in trials if trial.arm.name not in left_out]
    if not remaining:
        check_all_finished(table, list(runs))
    table = table.set_index("trial").loc[[trial.name for trial in remaining]].reset_index()
    table.insert(1, "arm", [trial.arm.name for trial in remaining])
    table.insert(2, "setting", [trial.setting.name for trial in remaining])
    return table.drop(columns=["classes", "error"]).rename(columns=lambda name: name.removeprefix("val/"))


def check_complete(run: Run) -> None:
    """Print which arms a comparison had to leave out, with the reasons; then raise UserError if there are any."""
    if left_out := (run.summary or {}).get("left_out"):
        print("\n".join(f"left out: {arm}: {reason}" for arm, reason in left_out.items()))
        raise UserError(
            f"{', '.join(left_out)} left out for the reason above, so {run} compares the other arms only; the same "
            "command tries again."
        )


def best_by(table: pd.DataFrame, column: str) -> dict[tuple[str, float], str]:
    """Return the value of `column` with the best mean validation score of each (arm, fraction); the first of equals."""
    scores: dict[tuple[str, float], dict[str, list[float]]] = {}
    for row in table.to_dict("records"):
        scores.setdefault((row["arm"], row["fraction"]), {}).setdefault(row[column], []).append(row["score"])
    return {cell: max(found, key=lambda value: float(np.mean(found[value]))) for cell, found in scores.items()}


def shared_summary(
    table: pd.DataFrame, arms: Sequence[Arm], left_out: Mapping[str, str], targets: Targets, xrays: XRays
) -> dict[str, Any]:
    """Return what every comparison's summary.json holds, given the rows of its runs."""
    arms = [arm for arm in arms if arm.name not in left_out]
    return {
        "synthetic": xrays.synthetic,
        "metric": targets.metric,
        "multilabel": targets.multilabel,
        "chance": targets.chance,
        "classes": list(targets.names),
        "arms": {arm.name: list(arm.encoders) for arm in arms},
        "left_out": dict(left_out),
        "pretrainings": max(table.loc[table["arm"] == arm.name, "encoder"].nunique() for arm in arms),
        "transductive": bool(table["transductive"].any()),
        "notes": sorted(set(table["note"]) - {""}),
    }
