"""How many labels does pretraining save? Every initialisation on the same few labels.

    python downstream_task/trained_vs_no_trained_compare.py
    python downstream_task/trained_vs_no_trained_compare.py --dataset covid --run-name compare/covid \\
        --encoders random imagenet runs/pretrain/covid/resnet18_final_state_dict.pt --img-res 224 --store-res 256

As it stands, it compares random weights, ImageNet's and the encoder that selfsup_task/train_barlow_twins.py leaves, on
built-in synthetic X-rays. For each arm, share of the labels and draw of the labels there is a linear probe and a
fine-tuning (LP-FT: from that probe, with a smaller learning rate for the backbone). Arms get the same split, label
subsets and number of steps; the learning rate is chosen for each on validation. Scores are of the validation part, by
which the choices were made too: the test part is confusion_matrix.py's. runs/<run_name>/ holds summary.csv (a row a
run), curves.csv and differences.csv (with intervals for new images and new draws) and figures/label_efficiency.png.
The same command again goes on where it stopped.
"""

from typing import Any

import pandas as pd

from downstream_task.compare_networks import compare, interval_cells
from downstream_task.label_savings import savings_sentence
from utils import plots
from utils.config import run_script
from utils.logging_utils import Run

config: dict[str, Any] = {
    # data
    "dataset": "phantom",  # "phantom" (built in, synthetic) | "covid" | "chexpert"
    "data_root": "",  # the data set's folder, from the repo root; "" is where datasets/README.md says
    "store_res": 36,  # pixels a side at which images are decoded, once
    "split_seed": 0,  # that of the pretraining: an encoder that has seen today's validation or test part is refused
    "findings": ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"],  # CheXpert alone
    "uncertain": "ignore",  # CheXpert's -1: "ignore" | "zeros" | "ones"
    "blank": "zero",  # CheXpert's blanks: "zero" (not mentioned is negative, as its authors count) | "ignore"
    "class_weights": True,  # rare classes count as much as frequent ones
    # run
    "run_name": "compare/phantom",
    "random_seed": 0,  # of the first draw; draw k has random_seed + k
    # arms
    "encoders": [  # "random" | "imagenet" | "imagenet:FILE" | *_state_dict.pt; differences are to the first
        "random",
        "imagenet",
        "runs/pretrain/phantom_resnet18_32px_short_b64_lr0.001_lambda0.005_p512_e9_s0/resnet18_final_state_dict.pt",
    ],
    "backbone": "resnet18",
    "in_channels": 1,
    "allow_seen": False,  # True: take encoders that have seen held-out images, and say so in every result
    # labels
    "fractions": [0.01, 0.05, 0.10, 0.15, 0.20, 0.25, 0.50, 1.0],  # of the train part's labels; nested
    "draws": 3,  # label subsets for each fraction
    # training
    "methods": ["linear", "finetune"],
    "head": "probe",  # fine-tuning starts from the linear "probe" (LP-FT) | "zeros"
    "img_res": 32,
    "recipe": "supervised",  # a name in augmentations/recipes.py
    "num_steps": 40,  # optimiser steps of a fine-tuning, the same for every arm and fraction
    "evaluations": 4,  # on validation, evenly spread; the best one's weights are kept
    "batch_size": 32,
    "optimizer": "adam",
    "lrs": [1e-3],  # to choose from on validation, for each arm; one is no choice
    "backbone_lr_factor": 0.3,  # the backbone learns at this share of the head's rate
    "optimizer_weight_decay": 1e-5,
    "precision": "auto",  # "auto" | "float32" | "bfloat16"
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}


def main(config: dict[str, Any]) -> None:
    """Compare, draw the figure, say what pretraining saves."""
    run = compare(config)  # type: ignore[arg-type]  # checked there against CompareConfig
    curves, differences = (_table(run, name) for name in ("curves", "differences"))
    assert run.summary is not None
    metric = run.summary["metric"].replace("_", " ")
    title = "Label efficiency on validation" + (" (synthetic X-rays)" if run.summary["synthetic"] else "")
    chance = 1 / len(run.summary["classes"]) if metric == "balanced accuracy" else 0.5
    run.save_figure("label_efficiency", plots.label_efficiency(curves, metric, title, chance))
    print(report(curves, differences, metric, run))


def report(curves: pd.DataFrame, differences: pd.DataFrame, metric: str, run: Run) -> str:
    """The table of all arms, and a sentence for each pretrained arm, method and fraction."""
    cells = curves.assign(cell=interval_cells(curves))
    table = cells.pivot_table("cell", ["method", "labels"], "arm", aggfunc="first", sort=False)
    lines = ["", f"{metric} on validation, mean [95% interval]", table.to_string(), ""]
    most = max(curves["labels"].tolist())
    for row in differences.to_dict("records"):
        gap = f"{100 * row['difference']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        sentence = savings_sentence(row, row["arm"], row["reference"], most)
        lines.append(f"{plots.METHOD_NAMES[row['method']]}, {row['labels']} labels: {gap}. {sentence}")
    notes = run.summary["notes"] if run.summary else []
    return "\n".join([*lines, *notes, "", f"tables and figure   {run}/"])


def _table(run: Run, name: str) -> pd.DataFrame:
    return pd.read_csv(run.folder / f"{name}.csv")


if __name__ == "__main__":
    run_script(main, config, __doc__)
