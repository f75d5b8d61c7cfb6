"""The pretraining and the fine-tuning that every scan varies from: plain data, which each script's flags reach.

By default a trial takes half a minute on two cores, on built-in synthetic X-rays: enough to see a scan work, too short
to choose a recipe by. A setting has a trial for each seed.
"""

from typing import Any

from downstream_task import shared_keys
from downstream_task.shared_keys import DATA, TARGETS

FILES = __file__, *shared_keys.FILES  # whose comments --help shows

PRETRAINING: dict[str, Any] = {
    **DATA,  # dataset_loader/data_keys.py
    "fold": 0,  # 0 to 4: the fifth of the images that is held out as the test part, where the data do not name one
    "pretrain_on": "train",  # trials are ranked by validation images, which must be unseen
    "also": [],  # more X-rays without labels: FOLDER, or with its layout: covid: chexpert: nih: folder:
    "exclude": [],  # collections, as in `also`, of which no copy and no patient is learnt from: to be tested on
    "random_seed": 0,  # of weights, views and the order of images
    "backbone": "resnet18",  # torchvision's name, such as densenet121, or timm/NAME
    "in_channels": 1,  # 1 (gray) | 3
    "start": "random",  # "random" | "imagenet" | "imagenet:FILE" | "shared" | a file of weights, to continue from it
    "projector_dims": [512],  # widths of the projector's layers; one width is one linear layer
    "barlow_lambda": 5e-3,  # weight of the off-diagonal (redundancy) term
    "img_res": 32,  # pixels a side of the views
    "recipe": "short",  # a name in augmentations/recipes.py
    "views": 2,  # random views of each X-ray; more than 2 are each compared with the mean of all
    "positives": "image",  # two views are of one "image" | "patient": of X-rays of one patient and study, if several
    "num_epochs": 1,  # passes over the unlabelled images
    "batch_size": 64,  # X-rays per step
    "micro_batch_size": 0,  # how many of them pass through the network at once, which bounds memory; 0 is all
    "optimizer": "adamw",  # "adam" | "adamw" | "sgd" | "lars" (for large batches)
    "lr": 1e-3,  # its largest value, after the warmup
    "optimizer_weight_decay": 1e-4,  # of weights; not of biases and BatchNorm
    "scheduler": "cosine",  # "cosine" | "constant" | "multiplicative"
    "warmup_epochs": 0,  # in which the learning rate rises from 0
    "gradient_clip": 0.0,  # largest gradient norm; 0 is off
    "precision": "auto",  # "auto" (bfloat16 where the hardware is made for it) | "float32" | "bfloat16"
    "deterministic": True,  # the same bits again; False lets a GPU try algorithms for speed, when fine-tuning too
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
    "probe_every": 1000,  # epochs between the probes of a trial's own curves; the last epoch is always probed
    "checkpoint_minutes": 5.0,  # between checkpoints; a signal to stop writes one too
    "only": [],  # names of trials, to run some of them
}


def without(base: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the base for a scan that varies `keys` itself, so that no flag of that name does nothing."""
    return {key: value for key, value in base.items() if key not in keys}


SCAN_BASE: dict[str, Any] = {
    **without(PRETRAINING, "random_seed"),
    "seeds": [0, 1, 2],  # of weights, views and the order of images: a trial for each
    "halving": True,  # drop the worse half of the settings after a third of the epochs, by a linear probe
    "keep_all": False,  # keep the weights of trials that are finished
    "jobs": 0,  # processes that share the trials; 0 is one for each GPU or else for each core, with one thread each
    "finetune": {  # how an encoder is judged, beside a linear probe
        **TARGETS,  # downstream_task/shared_keys.py
        "num_labels": 0,  # labels to learn from; 0 is all of the train part
        "head": "probe",  # where it starts: "probe" (the linear probe) | "zeros"
        "recipe": "supervised",  # a name in augmentations/recipes.py
        "epochs": 0,  # passes over the labels ...
        "min_steps": 60,  # ... or so many steps, if these are more; then the last weights count
        "batch_size": 32,  # labelled X-rays per step
        "optimizer": "adam",
        "lr": 3e-4,  # of the head
        "backbone_lr_factor": 0.3,  # what lr is multiplied by for the backbone
        "batch_norm": "train",  # normalises by the batch ("train") | the running values ("eval")
        "optimizer_weight_decay": 1e-5,
    },
}

# What changes when `dataset` is not a phantom: train_barlow_twins.py's defaults, and its evidence.
REAL_XRAYS: dict[str, Any] = {
    "backbone": "timm/tf_efficientnet_lite0",
    "start": "imagenet",  # downloaded once, 19 MB; without a network imagenet:FILE, or random
    "img_res": 128,
    "recipe": "solarize",
    "num_epochs": 3,
    "lr": 5e-4,
    "projector_dims": [1024, 1024],
    "finetune": {"min_steps": 600},  # 60 steps are too few to improve on a probe
}
