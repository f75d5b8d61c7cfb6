"""Which layers may be frozen? Fine-tuning with the head alone, with layer4 as well, ... with everything trained.

    python downstream_task/train_models_with_frozen_parts.py
    python downstream_task/train_models_with_frozen_parts.py --dataset covid --run-name frozen/covid \\
        --encoders random runs/pretrain/covid/fold0/tf_efficientnet_lite0_final_state_dict.pt --num-labels 187

A frozen part is frozen: its weights and BatchNorm statistics are compared bit by bit after every run. It runs without
gradients, and with recipe "none" its output is computed once. Scores are of the validation part.
runs/<run_name>/ holds summary.csv (one row per run), table.csv (with intervals) and figures/frozen_parts.png.
By default 36 fine-tunings of 400 steps, on synthetic X-rays.
"""

from typing import Any

from downstream_task.shared_keys import DATA, FILES, MACHINE, TARGETS
from utils.scripts import command, flags, run_script

config: dict[str, Any] = {
    # data
    **DATA,  # dataset_loader/data_keys.py: dataset, data_root, split_seed, ...
    **TARGETS,  # downstream_task/shared_keys.py: findings, uncertain, blank, class_weights
    "fold": 0,  # 0 to 4: the fifth of the images that is held out as the test part, where the data do not name one
    # run
    "run_name": "frozen/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "random_seed": 0,  # of the first draw; draw k has random_seed + k
    # arms
    "encoders": [  # "random" | "imagenet" | "imagenet:FILE" | "shared" | a file of weights
        "random",
        "runs/pretrain/{dataset}/resnet18_final_state_dict.pt",
    ],
    "parts": ["fc", "layer4+fc", "layer3-4+fc", "layer2-4+fc", "layer1-4+fc", "all"],  # layers that are trained
    "backbone": "resnet18",  # torchvision's name, such as densenet121, or timm/NAME
    "in_channels": 1,  # 1 (gray) | 3
    "allow_seen": False,  # True: take encoders that have seen held-out images, and say so in every result
    # labels
    "num_labels": 300,  # labels to learn from
    "draws": 3,  # label subsets
    # training
    "head": "probe",  # starts from the linear "probe" (LP-FT) | "zeros"
    "img_res": 32,  # pixels per side of what the network sees
    "recipe": "none",  # a name in augmentations/recipes.py; with "none" frozen layers are computed once
    "epochs": 40,  # passes over the labels ...
    "min_steps": 400,  # ... or so many steps, if these are more; then the last weights count
    "batch_size": 32,  # labelled images per step
    "optimizer": "adam",  # "adam" | "adamw" | "sgd"
    "lr": 1e-3,  # of the head, at its peak; the backbone's is backbone_lr_factor of it
    "backbone_lr_factor": 0.3,  # the backbone learns at this share of the head's rate
    "batch_norm": "train",  # trained layers normalise by the batch ("train") | the running values ("eval")
    "optimizer_weight_decay": 1e-5,  # of weights; not of biases and BatchNorm
    "keep_weights": False,  # True: keep what was trained
    **MACHINE,  # downstream_task/shared_keys.py: precision, device, threads, jobs
}

# What changes when `dataset` is not a phantom; flags win over both.
real_xrays: dict[str, Any] = {
    "encoders": ["random", "runs/pretrain/{dataset}/fold0/tf_efficientnet_lite0_final_state_dict.pt"],
    "backbone": "timm/tf_efficientnet_lite0",
    "num_labels": 187,
    "img_res": 128,
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__, *FILES, real_xrays=real_xrays)  # before the slow imports

from dataclasses import dataclass

import pandas as pd

from dataset_loader.xrays import FoldConfig
from downstream_task import label_efficiency
from downstream_task.classifier import Trainable
from downstream_task.compare_networks import PREDICTIONS, Draws, Trial, open_comparison, run_comparison
from downstream_task.features import FEATURES
from downstream_task.finetuning import StartConfig, TrainingConfig
from downstream_task.predictions import reader
from utils import plots
from utils.config import Count, Distinct, Positive, UserError, part_of
from utils.jobs import JobsConfig, with_jobs
from utils.logging_utils import Run
from utils.wording import OVER_DRAWS, metric_name


@dataclass(frozen=True, kw_only=True)
class FrozenPartsConfig(TrainingConfig, StartConfig, FoldConfig, JobsConfig):
    """The config above, checked."""

    encoders: Distinct[str]
    parts: Distinct[Trainable]
    lr: Positive
    num_labels: Count
    draws: Draws

    def __post_init__(self) -> None:
        super().__post_init__()
        if tables := [entry for entry in self.encoders if entry.startswith((FEATURES, PREDICTIONS))]:
            raise UserError(f"encoders holds {tables[0]!r}, a table: there is no network whose layers could be frozen.")

    @property
    def trials(self) -> int:
        """Return how many there are at most."""
        return self.draws * len(self.encoders) * len(self.parts)


def main(config: FrozenPartsConfig) -> None:
    """Fine-tune every arm with every part of the network trained; print the table and draw the figure."""
    run_comparison(config, "frozen parts", train_parts, ["table.csv"], lambda run: command("utils/make_report.py", {}))


def train_parts(config: FrozenPartsConfig, run: Run) -> None:
    """Run the experiment; its summary holds what main prints."""
    opened = open_comparison(config, config.encoders, [config.num_labels], [config.fold], config.draws, run)
    [labels] = opened.counts
    table = opened.train(
        [
            Trial(arm, config.head, part_of(config, StartConfig), labels, draw, config.fold, trainable=part)
            for draw in range(config.draws)
            for part in config.parts
            for arm in opened.arms
        ]
    )
    run.save_table("summary", table)
    scores = pd.concat(
        label_efficiency.curve_table(label_efficiency.read_cells(rows, reader(run.folder), "val")).assign(
            trainable=part
        )
        for part, rows in table.groupby("trainable", sort=False)
    )
    run.save_table("table", scores)
    summary, metric = {**opened.summary(table), "labels": labels}, metric_name(opened.targets.metric)
    title = plots.marked(f"Frozen parts, {labels:,} labelled X-rays, validation", summary["synthetic"])
    shown = scores.replace({"arm": label_efficiency.marked_arms(scores)})
    run.save_figure("frozen_parts", plots.frozen_parts(shown, metric, title))
    text = label_efficiency.interval_text_table(shown, "trainable")
    heading = f"\n{title}: {metric}, mean {OVER_DRAWS}"
    run.finish({**summary, "report": [heading, text, *summary["notes"], *opened.cautions]})


if __name__ == "__main__":
    run_script(with_jobs(main), FrozenPartsConfig, config)
