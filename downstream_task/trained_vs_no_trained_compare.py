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
The same command again goes on where it stopped. As it stands, eight minutes on two cores.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    # data
    "dataset": "phantom",  # "phantom" (built in, synthetic) | "phantom_marker" | "covid" | "chexpert"
    "data_root": "",  # the data set's folder, from the repo root; "" is where datasets/README.md says
    "store_res": 36,  # pixels a side at which images are decoded, once
    "split_seed": 0,  # that of the pretraining: an encoder that has seen today's validation or test part is refused
    "findings": ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"],  # CheXpert alone
    "uncertain": "ignore",  # CheXpert's -1: "ignore" | "zeros" | "ones"
    "blank": "zero",  # CheXpert's blanks: "zero" (not mentioned is negative, as its authors count) | "ignore"
    "class_weights": True,  # rare classes count as much as frequent ones
    # run
    "run_name": "compare/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "random_seed": 0,  # of the first draw; draw k has random_seed + k
    # arms
    "encoders": [  # "random" | "imagenet" | "imagenet:FILE" | *_state_dict.pt; differences are to the first
        "random",
        "imagenet",
        "runs/pretrain/phantom_resnet18_32px_short_b64_lr0.0005_lambda0.005_p512_e10_s0/resnet18_final_state_dict.pt",
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
    "img_res": 32,  # pixels a side of what the network sees
    "recipe": "supervised",  # a name in augmentations/recipes.py
    "num_steps": 40,  # optimiser steps of a fine-tuning, however many labels it has
    "evaluations": 4,  # on validation, every num_steps / evaluations steps; the best one's weights are kept
    "batch_size": 32,  # labelled images a step
    "optimizer": "adam",  # "adam" | "adamw" | "sgd"
    "lrs": [3e-4, 1e-3],  # to choose from on validation, for each arm
    "backbone_lr_factor": 0.3,  # the backbone learns at this share of the head's rate
    "optimizer_weight_decay": 1e-5,  # of weights; not of biases and BatchNorm
    "precision": "auto",  # "auto" | "float32" | "bfloat16"
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

from downstream_task.compare_networks import compare
from downstream_task.comparison_report import report


def main(config: CompareConfig) -> None:
    """Compare, draw the figure, say what pretraining saves."""
    print(report(compare(config)))


if __name__ == "__main__":
    run_script(main, CompareConfig, config)
