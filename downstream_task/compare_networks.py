"""Arms side by side: the same label subsets for every initialisation, and what their scores say with intervals."""

import sys
from typing import Any

import pandas as pd
from tqdm import tqdm

from dataset_loader.xrays import XRays, open_xrays
from downstream_task.curves import analyse
from downstream_task.finetuning import METHODS, TrainingConfig
from downstream_task.trials import Trial, check_lists, check_trials, metric_of, run_trial, usable_arms
from utils.config import UserError, check_at_least, check_choice, check_config
from utils.hardware import choose_device
from utils.logging_utils import Run
from utils.progress import progress_bar


class CompareConfig(TrainingConfig):
    """Every key of downstream_task/trained_vs_no_trained_compare.py."""

    encoders: list[str]
    methods: list[str]
    fractions: list[float]
    draws: int
    lrs: list[float]


def compare(config: CompareConfig) -> Run:
    """All arms x methods x fractions x draws, then intervals; finished runs are not trained again."""
    check_compare_config(config)
    run = Run(config["run_name"], config)
    if run.summary is not None:
        return run
    xrays = open_xrays(config, choose_device(config["device"]))
    arms = usable_arms(config, config["encoders"], xrays)
    check_trials(_trials(config, arms, dict.fromkeys(arms, config["lrs"][0])), config, xrays)
    run.start(data=xrays.facts(), arms=arms)
    rows: list[dict[str, Any]] = []
    lrs = chosen_lrs(config, arms, xrays)
    trials = _trials(config, arms, lrs)
    with progress_bar(len(trials), "comparing", unit="run") as bar:
        for trial in trials:
            rows.append(run_trial(trial, config, xrays))
            run.save_table("summary", pd.DataFrame(rows))
            tqdm.write(f"{trial.name}: {rows[-1]['labels']} labels, {rows[-1]['score']:.3f}", file=sys.stderr)
            bar.update()
    table = pd.DataFrame(rows)
    curves, differences = analyse(table, run.folder, "predictions_val.csv")
    run.save_table("curves", curves)
    run.save_table("differences", differences)
    run.finish(
        {
            "synthetic": xrays.synthetic,
            "metric": metric_of(xrays),
            "classes": list(xrays.columns.label_names),
            "arms": arms,
            "lrs": lrs,
            "left_out": [encoder for encoder in config["encoders"] if encoder not in arms.values()],
            "part": "validation",
            "notes": sorted({row["note"] for row in rows} - {""}),
        }
    )
    return run


def check_compare_config(config: CompareConfig) -> None:
    """Raise UserError for whatever can be known to be wrong before the data are read."""
    check_config(config, CompareConfig)
    check_at_least("draws", config["draws"], 1)
    check_lists(config, "encoders", "methods", "fractions", "lrs")
    for lr in config["lrs"]:
        check_at_least("lrs", lr, 0)
    for method in config["methods"]:
        check_choice("methods", method, METHODS)
    for fraction in config["fractions"]:
        if not 0 < fraction <= 1:
            raise UserError(f"fractions holds {fraction}; expected numbers above 0 and up to 1, such as 0.05.")


def _trials(config: CompareConfig, arms: dict[str, str], lrs: dict[str, float]) -> list[Trial]:
    return [
        Trial(arm, encoder, method, fraction, draw, lrs[arm] if method == "finetune" else 0.0)
        for draw in range(config["draws"])
        for fraction in config["fractions"]
        for method in config["methods"]
        for arm, encoder in arms.items()
    ]


def chosen_lrs(config: CompareConfig, arms: dict[str, str], xrays: XRays) -> dict[str, float]:
    """The learning rate of each arm: the best on validation at the middle fraction, first draw."""
    if "finetune" not in config["methods"] or len(config["lrs"]) == 1:
        return dict.fromkeys(arms, config["lrs"][0])
    fraction = sorted(config["fractions"])[(len(config["fractions"]) - 1) // 2]
    chosen = {}
    for arm, encoder in arms.items():
        rows = [run_trial(Trial(arm, encoder, "finetune", fraction, 0, lr), config, xrays) for lr in config["lrs"]]
        chosen[arm] = max(rows, key=lambda row: row["score"])["lr"]
    return chosen
