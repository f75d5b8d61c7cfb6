"""Which layers may be frozen? The same fine-tuning with more and more of the network trained."""

import sys

import pandas as pd
from tqdm import tqdm

from dataset_loader.xrays import open_xrays
from downstream_task.curves import analyse
from downstream_task.finetuning import TrainingConfig
from downstream_task.trials import Trial, check_lists, check_trials, metric_of, run_trial, usable_arms
from self_sup_classes.classifier import FROZEN_STAGES
from utils.config import check_at_least, check_choice, check_config
from utils.hardware import choose_device
from utils.logging_utils import Run
from utils.progress import progress_bar


class FrozenPartsConfig(TrainingConfig):
    """Every key of downstream_task/train_models_with_frozen_parts.py."""

    encoders: list[str]
    parts: list[str]
    label_fraction: float
    draws: int
    lr: float


def train_with_frozen_parts(config: FrozenPartsConfig) -> Run:
    """All arms x parts x draws; table.csv has a row an arm and part with its interval."""
    check_config(config, FrozenPartsConfig)
    check_at_least("draws", config["draws"], 1)
    check_lists(config, "encoders", "parts")
    for part in config["parts"]:
        check_choice("parts", part, list(FROZEN_STAGES))
    run = Run(config["run_name"], config)
    if run.summary is not None:
        return run
    xrays = open_xrays(config, choose_device(config["device"]))
    arms = usable_arms(config, config["encoders"], xrays)
    rows = []
    trials = [
        Trial(arm, encoder, "finetune", config["label_fraction"], draw, config["lr"], part)
        for draw in range(config["draws"])
        for part in config["parts"]
        for arm, encoder in arms.items()
    ]
    check_trials(trials, config, xrays)
    run.start(data=xrays.facts(), arms=arms)
    with progress_bar(len(trials), "training", unit="run") as bar:
        for trial in trials:
            rows.append(run_trial(trial, config, xrays))
            run.save_table("summary", pd.DataFrame(rows))
            tqdm.write(f"{trial.name}: {rows[-1]['score']:.3f}", file=sys.stderr)
            bar.update()
    parts = [
        analyse(group, run.folder, "predictions_val.csv")[0].assign(trainable=part)
        for part, group in pd.DataFrame(rows).groupby("trainable", sort=False)
    ]
    run.save_table("table", pd.concat(parts))
    run.finish(
        {
            "synthetic": xrays.synthetic,
            "metric": metric_of(xrays),
            "labels": int(rows[0]["labels"]),
            "arms": arms,
            "notes": sorted({row["note"] for row in rows} - {""}),
        }
    )
    return run
