"""How many labels does pretraining save? Every initialisation on the same few labels.

    python downstream_task/trained_vs_no_trained_compare.py
    python downstream_task/trained_vs_no_trained_compare.py --dataset covid --run-name compare/covid \\
        --encoders random imagenet runs/pretrain/covid/resnet18_final_state_dict.pt --img-res 224 --store-res 256

By default it compares random weights, ImageNet's and the encoder of selfsup_task/train_barlow_twins.py on built-in
synthetic X-rays. For each arm, share of the labels and draw of the labels there is a linear probe and a fine-tuning
(LP-FT: from that probe, with a smaller learning rate for the backbone). Arms get the same split, label subsets and
number of steps; the learning rate is chosen for each on validation. Scores are of the validation part, also used to
make choices; confusion_matrix.py reads the test part. runs/<run_name>/ holds summary.csv (one row per run), curves.csv
and differences.csv (with intervals for new images and new draws) and figures/label_efficiency.png.
The same command resumes; several processes may share one comparison. Eight minutes on two cores by default.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    # data
    "dataset": "phantom",  # "phantom" (built in, synthetic) | "phantom_marker" | "covid" | "chexpert"
    "data_root": "",  # the data set's folder, from the repo root; "" is where datasets/README.md says
    "store_res": 36,  # pixels per side at which images are decoded, once
    "split_seed": 0,  # that of the pretraining: an encoder that has seen today's validation or test part is refused
    "findings": ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"],  # CheXpert only
    "uncertain": "ignore",  # CheXpert's -1: "ignore" | "zeros" | "ones"
    "blank": "zero",  # CheXpert's blanks: "zero" (not mentioned is negative, as its authors count them) | "ignore"
    "class_weights": True,  # rare classes count as much as frequent ones
    # run
    "run_name": "compare/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "random_seed": 0,  # of the first draw; draw k has random_seed + k
    # arms
    "encoders": [  # "random" | "imagenet" | "imagenet:FILE" | *_state_dict.pt; differences are to the first
        "random",
        "imagenet",
        "runs/pretrain/phantom/resnet18_final_state_dict.pt",
    ],
    "backbone": "resnet18",  # resnet18/34/50/101, efficientnet_b0 ... b4
    "in_channels": 1,  # 1 (gray) | 3
    "allow_seen": False,  # True: take encoders that have seen held-out images, and say so in every result
    # labels
    "fractions": [0.01, 0.05, 0.10, 0.15, 0.20, 0.25, 0.50, 1.0],  # of the train part's labels; nested
    "draws": 3,  # label subsets for each fraction
    # training
    "methods": ["linear", "finetune"],  # "linear" (probe on features computed once) | "finetune"
    "head": "probe",  # fine-tuning starts from the linear "probe" (LP-FT) | "zeros"
    "img_res": 32,  # pixels per side of what the network sees
    "recipe": "supervised",  # a name in augmentations/recipes.py
    "num_steps": 40,  # optimiser steps of a fine-tuning, for any number of labels
    "evaluations": 4,  # on validation, every num_steps / evaluations steps; the best one's weights are kept
    "batch_size": 32,  # labelled images per step
    "optimizer": "adam",  # "adam" | "adamw" | "sgd"
    "lrs": [3e-4, 1e-3],  # learning rates of the head; each arm takes the best on validation
    "backbone_lr_factor": 0.3,  # the backbone learns at this share of the head's rate
    "optimizer_weight_decay": 1e-5,  # of weights; not of biases and BatchNorm
    "precision": "auto",  # "auto" | "float32" | "bfloat16"
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

from dataclasses import dataclass

import pandas as pd

from dataset_loader.xrays import XRays, open_xrays
from downstream_task import label_efficiency
from downstream_task.compare_networks import Arm, Trial, check_subsets, run_side_by_side, shared_summary, usable_arms
from downstream_task.finetune_config import METHODS, TrainingConfig
from downstream_task.targets import read_targets
from utils.config import check_at_least, check_choice, check_list
from utils.hardware import prepare
from utils.logging_utils import Run


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainingConfig):
    """The config above, checked."""

    encoders: list[str]
    methods: list[str]
    fractions: list[float]
    draws: int
    lrs: list[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("draws", self.draws, 1)
        for key in ("encoders", "methods", "fractions", "lrs"):
            check_list(key, getattr(self, key))
        for lr in self.lrs:
            check_at_least("lrs", lr, 0)
        for method in self.methods:
            check_choice("methods", method, METHODS)


def main(config: CompareConfig) -> None:
    """Fine-tune every arm on the same label subsets; compare their scores; say what pretraining saves."""
    run = Run(config.run_name, config, "comparison")
    if run.summary is None:
        compare(config, run)
    assert run.summary is not None
    print("\n".join(run.summary["report"]))


def compare(config: CompareConfig, run: Run) -> None:
    """Run the comparison; its summary holds what main prints."""
    xrays = open_xrays(config, prepare(config.device, config.threads))
    targets = read_targets(xrays, config)
    arms = usable_arms(config, config.encoders, xrays)
    check_subsets(config.fractions, config.draws, targets, xrays, config.split_seed)
    run.start(alone=False, data=xrays.facts(), arms=[arm.name for arm in arms])

    lrs = {arm: chosen_lr(config, arm, xrays, run) for arm in arms}
    trials = [
        Trial(arm, method, fraction, draw, lrs[arm] if method == "finetune" else 0.0)
        for draw in range(config.draws)
        for fraction in config.fractions
        for method in config.methods
        for arm in arms
    ]
    table = run_side_by_side(run, trials, config, xrays)

    cells = label_efficiency.read_cells(table, run.folder, "predictions_val.csv")
    curves, differences = label_efficiency.curve_table(cells), label_efficiency.difference_table(cells)
    summary = {
        **shared_summary(table, arms, targets, xrays),
        "lrs": {arm.name: lr for arm, lr in lrs.items()},
        "left_out": [encoder for encoder in config.encoders if encoder not in [arm.encoder for arm in arms]],
        "part": "validation",
    }
    lines = [
        label_efficiency.report(run, summary, curves, differences),
        *probes_kept(table),
        *(f"left out: {name}" for name in summary["left_out"]),
        *summary["notes"],
        "",
        f"tables and figure   {run}/",
        f"next                python downstream_task/confusion_matrix.py --runs {run}",
    ]
    run.finish({**summary, "report": lines})


def chosen_lr(config: CompareConfig, arm: Arm, xrays: XRays, run: Run) -> float:
    """Return the learning rate of an arm: the best on validation at the middle fraction, first draw."""
    if "finetune" not in config.methods or len(config.lrs) == 1:
        return config.lrs[0]
    fraction = sorted(config.fractions)[(len(config.fractions) - 1) // 2]
    trials = [Trial(arm, "finetune", fraction, 0, lr) for lr in config.lrs]
    table = run_side_by_side(run, trials, config, xrays)
    scores = table["score"].tolist()
    return config.lrs[scores.index(max(scores))]


def probes_kept(table: pd.DataFrame) -> list[str]:
    """Say how many fine-tunings ended with the linear probe that they started from."""
    fine, linear = (table[table["method"] == method] for method in ("finetune", "linear"))
    both = fine.merge(linear, on=["arm", "fraction", "draw"], suffixes=("", "_of_probe"))
    kept = int((both["score"].to_numpy() == both["score_of_probe"].to_numpy()).sum())
    return [f"{kept} of {len(fine)} fine-tunings kept the linear probe that they started from."] if kept else []


if __name__ == "__main__":
    run_script(main, CompareConfig, config)
