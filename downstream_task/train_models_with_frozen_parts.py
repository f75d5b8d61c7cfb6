"""Which layers may be frozen? Fine-tuning with the head alone, with layer4 as well, ... with everything trained.

    python downstream_task/train_models_with_frozen_parts.py
    python downstream_task/train_models_with_frozen_parts.py --dataset covid --run-name frozen/covid \\
        --encoders random runs/pretrain/covid/resnet18_final_state_dict.pt --label-fraction 0.1

A frozen part is frozen: its weights and BatchNorm statistics are compared bit by bit after every run. It runs without
gradients, and with recipe "none" what it computes is computed once. Scores are of the validation part.
runs/<run_name>/ holds summary.csv (a row a run), table.csv (with intervals) and figures/frozen_parts.png.
As it stands, minutes on two cores on synthetic X-rays.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    # data; trained_vs_no_trained_compare.py explains the keys that are not explained here
    "dataset": "phantom",
    "data_root": "",
    "store_res": 36,
    "split_seed": 0,
    "findings": ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"],
    "uncertain": "ignore",
    "blank": "zero",
    "class_weights": True,
    # run
    "run_name": "frozen/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "random_seed": 0,
    # arms
    "encoders": [
        "random",
        "runs/pretrain/phantom_resnet18_32px_short_b64_lr0.0005_lambda0.005_p512_e10_s0/resnet18_final_state_dict.pt",
    ],
    "parts": ["fc", "layer4+fc", "layer3-4+fc", "layer2-4+fc", "layer1-4+fc", "all"],  # what is trained
    "backbone": "resnet18",
    "in_channels": 1,
    "allow_seen": False,
    # labels
    "label_fraction": 0.25,  # of the train part's labels
    "draws": 3,  # label subsets
    # training
    "head": "probe",
    "img_res": 32,
    "recipe": "none",
    "num_steps": 40,  # optimiser steps, the same for every arm and part
    "evaluations": 4,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 3e-4,  # of the head; the backbone's is backbone_lr_factor of it
    "backbone_lr_factor": 0.3,
    "optimizer_weight_decay": 1e-5,
    "precision": "auto",
    "device": "auto",
    "threads": 0,
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import pandas as pd

from downstream_task.frozen_parts import train_with_frozen_parts
from downstream_task.label_efficiency import interval_cells
from utils import plots
from utils.wording import metric_name

NEXT = "next                python utils/make_report.py"


def main(config: FrozenPartsConfig) -> None:
    """Train, draw the figure, print the table."""
    run = train_with_frozen_parts(config)
    assert run.summary is not None
    table = pd.read_csv(run.folder / "table.csv")
    notes, metric = run.summary["notes"], metric_name(run.summary["metric"])
    title = f"Frozen parts, {run.summary['labels']:,} labelled X-rays, validation"
    title = plots.marked(title, run.summary["synthetic"], bool(notes))
    run.save_figure("frozen_parts", plots.frozen_parts(table, metric, title))
    cells = table.assign(cell=interval_cells(table))
    print(f"\n{title}: {metric}, mean [95% interval]")
    print(cells.pivot_table("cell", "trainable", "arm", aggfunc="first", sort=False).to_string())
    print("\n".join([*notes, "", f"tables and figure   {run}/", NEXT]))


if __name__ == "__main__":
    run_script(main, FrozenPartsConfig, config)
