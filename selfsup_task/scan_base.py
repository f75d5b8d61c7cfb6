"""The pretraining and the fine-tuning that every scan varies from. Plain data; each script's flags reach all of it.

As it stands, a trial takes half a minute on two cores, on built-in synthetic X-rays: enough to see a scan work, too
short to choose a recipe by. For real X-rays give --dataset, --data-root, --img-res, --store-res and --num-epochs.
"""

from typing import Any

PRETRAINING: dict[str, Any] = {
    # train_barlow_twins.py explains the keys
    "dataset": "phantom",
    "data_root": "",
    "store_res": 36,
    "split_seed": 0,
    "pretrain_on": "train",
    "random_seed": 0,
    "backbone": "resnet18",
    "in_channels": 1,
    "projector_dims": [512],
    "barlow_lambda": 5e-3,
    "img_res": 32,
    "recipe": "short",
    "views": 2,
    "num_epochs": 1,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 1e-3,
    "optimizer_weight_decay": 1e-4,
    "scheduler": "cosine",
    "warmup_epochs": 0,
    "gradient_clip": 0.0,
    "precision": "auto",
    "device": "auto",
    "threads": 0,
    "probe_every": 1000,
    "checkpoint_every": 500,
    "only": [],  # names of trials, to run a part
}


def without(base: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The base for a scan that varies `keys` itself, so that no flag of that name does nothing."""
    return {key: value for key, value in base.items() if key not in keys}


SCAN_BASE: dict[str, Any] = {
    **PRETRAINING,
    "finetune": {  # what judges an encoder; trained_vs_no_trained_compare.py explains the keys
        "findings": ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"],
        "uncertain": "ignore",
        "blank": "zero",
        "class_weights": True,
        "label_fraction": 1.0,  # of the train part's labels
        "head": "probe",
        "recipe": "supervised",
        "num_steps": 40,
        "evaluations": 4,
        "batch_size": 32,
        "optimizer": "adam",
        "lr": 3e-4,  # of the head; the backbone's is backbone_lr_factor of it
        "backbone_lr_factor": 0.3,
        "optimizer_weight_decay": 1e-5,
    },
}
