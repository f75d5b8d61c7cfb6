"""How many labels does pretraining save? Every initialisation on the same few labels.

    python downstream_task/trained_vs_no_trained_compare.py
    python downstream_task/trained_vs_no_trained_compare.py --dataset covid --run-name compare/covid \\
        --encoders random imagenet runs/pretrain/covid/resnet18_final_state_dict.pt

By default it compares random weights and the encoder of selfsup_task/train_barlow_twins.py on built-in synthetic
X-rays, and on real ones ImageNet's weights too. Arms get the same split, label subsets, budget and menu of ways to
train. For each arm and share of the labels, the way of fine-tuning is chosen by the mean validation score of the first
draws, and whether it or the linear probe is the arm's best method by that of all draws. Differences are to the best
method of the first arm. A fine-tuning continues until validation stops rising, within a cap that is the same for all
arms. Scores are of the validation part, also used to make choices; confusion_matrix.py reads the test part, for what
was chosen. An arm that cannot be run is left out and named at the end, with the reason; the exit is then not 0, and the
same command tries it again.

runs/<run_name>/ holds summary.csv (one row per run), curves.csv and differences.csv (with intervals for new images and
new draws), plateaus.csv (how many labels for a score?) and figures/. The same command resumes; several processes may
share one comparison.
"""

from typing import Any

from dataset_loader import data_keys
from dataset_loader.data_keys import DATA
from downstream_task import target_keys
from downstream_task.target_keys import TARGETS
from utils.scripts import command, flags, run_script

config: dict[str, Any] = {
    # data
    **DATA,  # dataset_loader/data_keys.py: dataset, data_root, split_seed, ...
    **TARGETS,  # downstream_task/target_keys.py: findings, uncertain, blank, class_weights
    # run
    "run_name": "compare/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "random_seed": 0,  # of the first draw; draw k has random_seed + k
    # arms
    "encoders": [  # "random" | "imagenet" | "imagenet:FILE" | a file of weights | a pattern; the first is the reference
        "random",
        "runs/pretrain/{dataset}/resnet18_final_state_dict.pt",
    ],
    "backbone": "resnet18",  # resnet18/34/50/101, efficientnet_b0 ... b4
    "in_channels": 1,  # 1 (gray) | 3
    "allow_seen": False,  # True: take encoders that have seen held-out images, and say so in every result
    # labels
    "fractions": [0.01, 0.05, 0.1, 1.0],  # of the train part's labels; nested
    "draws": 3,  # label subsets for each fraction
    "target_score": 0.8,  # "how many labels for this score?", from curves of 4 fractions or more
    # training
    "menu": ["linear", "probe", "zeros"],  # "linear" (probe on fixed features), names in SETTINGS, "as_is" (own head)
    "menu_draws": 1,  # draws that try the whole menu; the others take what was best there, for each arm and fraction
    "choose_by": "validation",  # strength of linear probes: best on "validation" | "cross-validation" in the subset
    "img_res": 32,  # pixels per side of what the network sees
    "recipe": "supervised",  # a name in augmentations/recipes.py
    # A budget that stops random weights makes a weak baseline: on synthetic X-rays, 32 px, all 1,201 labels, they
    # reached .59 within 150 steps, .85 with these; on real ones see docs/RESULTS.md.
    "evaluate_every": 25,  # optimiser steps between evaluations on validation; the best one's weights are kept
    "patience": 8,  # stops after so many evaluations in a row without a new best one; random weights rise late
    "min_steps": 1200,  # cap of the steps with few labels ...
    "passes": 5,  # ... and with more labels: so many passes over them
    "batch_size": 32,  # labelled images per step
    "optimizer": "adam",  # "adam" | "adamw" | "sgd"
    "optimizer_weight_decay": 1e-5,  # of weights; not of biases and BatchNorm
    "precision": "auto",  # "auto" | "float32" | "bfloat16"
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads of a process; 0 leaves it to torch
    "jobs": 0,  # processes that share the trials; 0 is one for each GPU or else for each core, with one thread each
}

# Ways to fine-tune. `head` starts from the linear "probe" (LP-FT) or from "zeros"; the backbone learns at the share
# `backbone_lr_factor` of the head's rate; BatchNorm normalises by the batch ("train") or the running values ("eval").
SETTINGS: dict[str, dict[str, Any]] = {
    "probe": {"head": "probe", "lr": 3e-4, "backbone_lr_factor": 0.3, "batch_norm": "train"},
    "zeros": {"head": "zeros", "lr": 1e-3, "backbone_lr_factor": 1.0, "batch_norm": "train"},
    "fixed_norm": {"head": "probe", "lr": 3e-4, "backbone_lr_factor": 1.0, "batch_norm": "eval"},
}

# What changes when `dataset` is not a phantom; flags win over both. With 187 labels a patience of 6 ended half of the
# fine-tunings of random weights before they rose again (docs/RESULTS.md, "Is the budget long enough").
real_xrays: dict[str, Any] = {
    "encoders": ["random", "imagenet", "runs/pretrain/{dataset}/resnet18_final_state_dict.pt"],
    "img_res": 64,
    "patience": 12,
    "passes": 10,
}

if __name__ == "__main__":
    files = __file__, data_keys.__file__, target_keys.__file__
    config = flags(config, __doc__, *files, real_xrays=real_xrays)  # before the slow imports

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from dataset_loader.xrays import XRays
from downstream_task import label_efficiency
from downstream_task.compare_networks import (
    AS_IS,
    LINEAR,
    Setting,
    Trial,
    best_by,
    check_complete,
    look_again,
    open_comparison,
    run_of,
    run_side_by_side,
    shared_summary,
)
from downstream_task.finetune_config import MAX_DRAWS, TrainingConfig
from utils import plots
from utils.config import check_above_zero, check_between, check_choice, check_list, part_of
from utils.files import check_files
from utils.hardware import MachineConfig
from utils.intervals import metric_name
from utils.jobs import JobsConfig, with_jobs
from utils.logging_utils import Run

UNTUNED = {"linear": LINEAR, "as_is": AS_IS}


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainingConfig, JobsConfig):
    """The config above, checked."""

    encoders: list[str]
    fractions: list[float]
    draws: int
    target_score: float
    menu: list[str]
    menu_draws: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("draws", "menu_draws"):
            check_between(key, getattr(self, key), 1, MAX_DRAWS)
        for key in ("encoders", "menu", "fractions"):
            check_list(key, getattr(self, key))
        check_between("target_score", self.target_score, 0, 1)
        for fraction in self.fractions:
            check_above_zero("fractions", fraction, most=1)
        for name in self.menu:
            check_choice("menu", name, [*UNTUNED, *SETTINGS])


def main(config: CompareConfig) -> None:
    """Train every arm on the same label subsets; compare their scores; print what pretraining saves."""
    again = partial(look_again, config, config.encoders)
    run = Run(config.run_name, config, "comparison", look=again)
    if run.summary is None or run.summary.get("left_out"):
        compare(config, run)
    check_files(run.folder, "summary.csv", "curves.csv", "differences.csv")
    assert run.summary is not None
    print("\n".join(run.summary["report"]))
    print(f"\ntables and figures   {run}/")
    tested = {"runs": [str(run)], **part_of(config, MachineConfig)}
    print(f"next                 {command('downstream_task/confusion_matrix.py', tested)}")
    check_complete(run)


def compare(config: CompareConfig, run: Run) -> None:
    """Run the comparison; its summary holds what main prints."""
    xrays, targets, arms, left_out = open_comparison(config, config.encoders, config.fractions, config.draws, run)
    menu = [UNTUNED.get(name) or Setting(name=name, **SETTINGS[name]) for name in config.menu]
    trials = [
        Trial(arm, setting, fraction, draw)
        for draw in range(config.draws)
        for fraction in config.fractions
        for setting in menu
        for arm in arms
    ]
    table = train_and_choose(config, trials, xrays, run, left_out)

    cells = label_efficiency.read_cells(table.query("chosen"), run.folder, "predictions_val.csv")
    summary = {
        **shared_summary(table, arms, left_out, targets, xrays),
        "target_score": config.target_score,
        "at_cap": stopped_at_cap(table),
        "part": "validation",
    }
    save_convergence(run, table, summary)
    lines = [
        label_efficiency.report(run, summary, label_efficiency.with_best(cells, table)),
        *choices(table, summary["at_cap"]),
        *summary["notes"],
    ]
    run.finish({**summary, "report": lines})


def train_and_choose(
    config: CompareConfig, trials: list[Trial], xrays: XRays, run: Run, left_out: dict[str, str]
) -> pd.DataFrame:
    """Train what each arm and fraction needs, choosing by validation; return summary.csv, one row per run.

    Arms of which a trial fails are added to `left_out`, with the reason, and have no rows.
    chosen  whether it is not fine-tuned, or a fine-tuning by the setting that was best on the first `menu_draws` draws
    best    whether it is of the chosen method, such as linear probe or fine-tuning, that is better on all draws
    """
    tried = [trial for trial in trials if not trial.setting.name or trial.draw < config.menu_draws]
    table = run_side_by_side(run, tried, config, xrays, left_out)
    trials = [trial for trial in trials if trial.arm.name not in left_out]
    setting = best_by(table.query("method == 'finetune' and draw < @config.menu_draws"), "setting")
    taken = [trial for trial in trials if trial in tried or trial.setting.name == setting[trial.cell]]
    table = run_side_by_side(run, taken, config, xrays, left_out)
    taken = [trial for trial in taken if trial.arm.name not in left_out]
    table["chosen"] = [not trial.setting.name or trial.setting.name == setting[trial.cell] for trial in taken]
    method = best_by(table.query("chosen"), "method")
    is_best = [trial.setting.method == method[trial.cell] for trial in taken]
    table["best"] = table["chosen"] & np.array(is_best)
    run.save_table("summary", table)
    for trial, chosen in zip(taken, table["chosen"], strict=True):
        if not chosen:  # nobody tests or explains it
            run_of(trial, config).drop_weights()
    return table


def stopped_at_cap(table: pd.DataFrame) -> dict[str, list[int]]:
    """Return for each arm how many of its chosen fine-tunings the cap of steps stopped, and of how many."""
    stops: dict[str, list[str]] = {}
    for row in table.query("chosen and method == 'finetune'").to_dict("records"):
        stops.setdefault(row["arm"], []).append(row["stopped_by"])
    return {arm: [by.count("cap"), len(by)] for arm, by in stops.items()}


def choices(table: pd.DataFrame, at_cap: dict[str, list[int]]) -> list[str]:
    """Return lines that say what each arm chose on validation, and how many fine-tunings the cap stopped."""
    rows = table.query("best").assign(way=lambda rows: rows["setting"].where(rows["setting"] != "", rows["method"]))
    chosen = rows.pivot_table("way", "labels", "arm", aggfunc="first", sort=False)[list(dict.fromkeys(table["arm"]))]
    stopped = ", ".join(f"{arm} {count} of {of}" for arm, (count, of) in at_cap.items())
    lines = [f"\nbest on validation\n{chosen.to_string()}"]
    return [*lines, f"fine-tunings that the cap of steps stopped: {stopped}"] if stopped else lines


def save_convergence(run: Run, table: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Draw validation over the steps of the chosen fine-tunings."""
    curves: dict[str, dict[str, list[pd.DataFrame]]] = {}
    arms = list(dict.fromkeys(table["arm"]))  # as in the other figures
    rows = table.query("chosen and method == 'finetune'").to_dict("records")
    for row in sorted(rows, key=lambda row: (row["labels"], arms.index(row["arm"]))):
        metrics = pd.read_csv(run.folder / row["trial"] / "metrics.csv")
        metrics = metrics.rename(columns={f"val/{row['metric']}": "score"})
        curves.setdefault(f"{row['labels']:,}", {}).setdefault(row["arm"], []).append(metrics)
    if curves:
        title = plots.marked("Fine-tuning: validation over steps", summary["synthetic"], summary["transductive"])
        run.save_figure("convergence", plots.convergence(curves, metric_name(summary["metric"]), title))


if __name__ == "__main__":
    run_script(with_jobs(main), CompareConfig, config)
