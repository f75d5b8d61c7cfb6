"""The runs that comparisons are made of: which arm, method and label subset; checked together, run one by one."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from dataset_loader.xrays import XRays
from downstream_task.finetuning import FinetuneConfig, TrainingConfig, finetune, labelled_subset
from downstream_task.targets import check_learnable, read_targets
from self_sup_classes.initialisation import start_from
from self_sup_classes.provenance import check_unseen
from utils.config import UserError, part_of
from utils.logging_utils import Run
from utils.progress import progress_bar


@dataclass(frozen=True)
class Trial:
    """One run of a comparison."""

    arm: str
    encoder: str
    method: str
    fraction: float
    draw: int
    lr: float
    trainable: str = "all"

    @property
    def name(self) -> str:
        """Its folder inside the comparison's."""
        what = f"{self.method}_lr{self.lr:g}" if self.method == "finetune" else self.method
        part = "" if self.trainable == "all" else f"_{self.trainable}"
        return f"{self.arm}_{what}{part}_f{self.fraction:g}_d{self.draw}"


def arm_names(encoders: Iterable[str]) -> dict[str, str]:
    """A short name for each encoder: what it is, or, of several files, the run that each comes from.

    Raises UserError for equal ones.
    """
    names: dict[str, str] = {}
    encoders = list(encoders)
    kinds = {encoder: encoder.partition(":")[0] for encoder in encoders}
    files = [encoder for encoder, kind in kinds.items() if kind not in ("random", "imagenet")]
    for encoder in encoders:
        path = Path(encoder)
        stem = path.parent.name if path.name.endswith("_state_dict.pt") and path.parent.name else path.stem
        name = kinds[encoder] if encoder not in files else "pretrained" if len(files) == 1 else stem
        if name in names:
            raise UserError(f"encoders holds {encoder!r} and {names.get(name)!r}, both named {name!r}; keep one.")
        names[name] = encoder
    return names


def usable_arms(config: TrainingConfig, encoders: list[str], xrays: XRays) -> dict[str, str]:
    """Arms whose weights can be had. ImageNet's may be out of reach: said on stderr, and the others go on.

    Raises UserError for any other that cannot be loaded or has seen held-out images, and if none is left.
    """
    arms = arm_names(encoders)
    for name, encoder in list(arms.items()):
        try:
            start = start_from(encoder, config.backbone, config.in_channels, config.random_seed)
            check_unseen(start.provenance, xrays, config.allow_seen, encoder)
        except UserError as error:
            if encoder != "imagenet":
                raise
            print(f"warning: left out: {error}", file=sys.stderr)
            del arms[name]
    if not arms:
        raise UserError("encoders names nothing that can be run; give 'random' and a *_state_dict.pt under runs/.")
    return arms


def check_trials(trials: Sequence[Trial], config: TrainingConfig, xrays: XRays) -> None:
    """Raise UserError, before anything is written, for settings or label subsets that no run could be trained with."""
    targets = read_targets(xrays, config)
    check_learnable(targets, {"the validation part": xrays.indices("val")})
    for trial in trials:
        whole = trial_config(trial, config)
        train = labelled_subset(xrays, targets, whole)
        check_learnable(targets, {f"the {trial.fraction:.0%} of the labels in draw {trial.draw}": train})


def trial_config(trial: Trial, config: TrainingConfig) -> FinetuneConfig:
    """The config of one fine-tuning."""
    return FinetuneConfig(
        **{
            **part_of(config, TrainingConfig),
            "run_name": f"{config.run_name}/{trial.name}",
            "random_seed": config.random_seed + trial.draw,
        },
        encoder=trial.encoder,
        method=trial.method,
        trainable=trial.trainable,
        label_fraction=trial.fraction,
        label_draw=trial.draw,
        lr=trial.lr,
    )


def run_trial(trial: Trial, config: TrainingConfig, xrays: XRays) -> dict[str, Any]:
    """Fine-tune, or look up what was fine-tuned before; a row of summary.csv."""
    run = finetune(trial_config(trial, config), xrays, show_progress=False)
    assert run.summary is not None
    scores = {key.removeprefix("val/"): value for key, value in run.summary.items() if key.startswith("val/")}
    return {
        **vars(trial),
        "labels": run.summary["labels"],
        "score": run.summary["score"],
        **scores,
        "note": run.summary["note"],
        "run": trial.name,
    }


def run_trials(trials: Sequence[Trial], config: TrainingConfig, xrays: XRays, run: Run) -> pd.DataFrame:
    """Run them all with a progress bar; a row each, in `run`'s summary.csv after every one."""
    rows: list[dict[str, Any]] = []
    with progress_bar(len(trials), str(run), unit="run") as bar:
        for trial in trials:
            rows.append(run_trial(trial, config, xrays))
            run.save_table("summary", pd.DataFrame(rows))
            tqdm.write(f"{trial.name}: {rows[-1]['labels']} labels, {rows[-1]['score']:.3f}", file=sys.stderr)
            bar.update()
    return pd.DataFrame(rows)


def shared_summary(table: pd.DataFrame, config: TrainingConfig, arms: dict[str, str], xrays: XRays) -> dict[str, Any]:
    """What every comparison's summary.json says, given the rows of its runs."""
    return {
        "synthetic": xrays.synthetic,
        "metric": read_targets(xrays, config).metric,
        "arms": arms,
        "notes": sorted(set(table["note"]) - {""}),
    }
