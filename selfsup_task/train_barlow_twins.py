"""Pretrain a backbone on chest X-rays without labels, with Barlow Twins. The main job.

    python selfsup_task/train_barlow_twins.py
    python selfsup_task/train_barlow_twins.py --dataset covid --recipe base --num-epochs 300 --img-res 224 \\
        --store-res 256

As it stands, the config trains on built-in synthetic X-rays and takes two minutes on two cores, which shows that
everything works and that the probes rise (README, "Measured"). Afterwards runs/<run_name>/ holds the
backbone (plain torchvision weights), metrics.csv, TensorBoard events and figures. Look at figures/views.png first: it
shows what the network has to see as the same. The same command again resumes an interrupted run, and prints the
summary of a finished one.

The original project's final trainings (ResNet-18, 224 px, Adam, RTX 2070 Super):
    COVID-19 Radiography, 300 epochs, 15 h there:
        --dataset covid --num-epochs 300 --store-res 256 --img-res 224 --batch-size 128 --recipe original
        --optimizer adam --lr 2e-3 --optimizer-weight-decay 1e-5 --warmup-epochs 0
        (lambda 5e-3, projector 512 and cosine are the defaults)
    CheXpert, 60 epochs, 32 h there:
        the same with --dataset chexpert --num-epochs 60

On several GPUs: torchrun --nproc-per-node 4 selfsup_task/train_barlow_twins.py --batch-size 512
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    # data
    "dataset": "phantom",  # "phantom" (built in, synthetic) | "phantom_marker" | "covid" | "chexpert"
    "data_root": "",  # the data set's folder, from the repo root; "" is where datasets/README.md says
    "store_res": 36,  # pixels a side at which images are decoded, once; a little more than img_res
    "split_seed": 0,  # train/val/test; keep it, so that runs can be compared
    "pretrain_on": "train",  # "train" | "all" (then no held-out image is unseen any more)
    # run
    "run_name": "",  # runs/<run_name>/; "" derives one from what varies
    "random_seed": 0,  # of weights, views and the order of images
    # network
    "backbone": "resnet18",  # resnet18/34/50/101, efficientnet_b0 ... b4
    "in_channels": 1,  # 1 (gray) | 3
    "projector_dims": [512],  # widths of the projector's layers; one width is one linear layer
    "barlow_lambda": 5e-3,  # weight of the off-diagonal (redundancy) term
    # views
    "img_res": 32,  # pixels a side of the views
    "recipe": "short",  # a name in augmentations/recipes.py; for real X-rays start with "base"
    "views": 2,  # random views of each X-ray in a step; more than 2 use the mean-view loss
    # optimisation
    "num_epochs": 10,  # passes over the unlabelled images
    "batch_size": 64,  # X-rays in a step, over all processes
    "optimizer": "adamw",  # "adam" | "adamw" | "sgd"
    "lr": 5e-4,  # its largest value, after the warmup
    "optimizer_weight_decay": 1e-4,  # of weights; not of biases and BatchNorm
    "scheduler": "cosine",  # "cosine" | "constant" | "multiplicative"
    "warmup_epochs": 1,  # in which the learning rate rises from 0
    "gradient_clip": 0.0,  # largest gradient norm; 0 is off
    "precision": "auto",  # "auto" (bfloat16 where the hardware is made for it) | "float32" | "bfloat16"
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
    # what to watch
    "probe_every": 2,  # epochs between linear and kNN probes on validation
    "checkpoint_every": 500,  # steps between checkpoints inside an epoch; each epoch ends with one
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import shlex
from pathlib import Path

from selfsup_task.pretrain_config import PretrainConfig
from selfsup_task.pretraining import pretrain
from utils.wording import metric_name

WORSE = 0.02  # of the probe's score, below which it is worth a word


def main(config: PretrainConfig) -> None:
    """Pretrain, then say how it went, where things are, and what to do next."""
    run = pretrain(config)
    if run.is_writer and run.summary is not None:
        print(report(run.summary, str(run), config))


def report(summary: dict[str, Any], folder: str, config: dict[str, Any]) -> str:
    """The last words of a run."""
    kind = "synthetic X-rays" if summary["synthetic"] else "X-rays"
    lines = [
        "",
        f"{summary['epochs']} epochs on {summary['images']:,} {kind}: {summary['verdict']}",
        f"  loss             {summary['loss_first_epoch']:.4g} -> {summary['loss_last_epoch']:.4g} (first, last epoch)",
        f"  effective rank   {summary['rank_random_network']:.1f} -> {summary['rank']:.1f} (random network, now)",
    ]
    metric = metric_name(summary.get("metric", ""))  # older runs do not say
    for tag, name in {"probe/linear": "linear probe", "probe/knn": "kNN probe   "}.items():
        if tag in summary:
            lines.append(
                f"  {name}     {summary[f'{tag}_random_network']:.3f} -> {summary[tag]:.3f} "
                f"{metric} on validation (random network, now; chance {summary['chance']:.2f})"
            )
    if summary.get("probe/linear", 1) < summary.get("probe/linear_random_network", 0) - WORSE:
        lines.append("  the features tell less than a random network's: train longer, or change lr or recipe")
    lines += [
        f"  speed            {summary['images_per_second']:.0f} images/s",
        "",
        f"weights   {folder}/{config.backbone}_final_state_dict.pt",
        f"figures   {folder}/figures/",
        "curves    tensorboard --logdir runs",
        f"next      {_comparison(config, folder)}",
    ]
    return "\n".join(lines)


def _comparison(config: dict[str, Any], folder: str) -> str:
    """The command that says what the encoder is worth, on the same data and at the same size."""
    shared = ("dataset", "data_root", "store_res", "img_res", "split_seed", "backbone", "in_channels")
    words = ["python", "downstream_task/trained_vs_no_trained_compare.py", "--run-name", f"compare/{Path(folder).name}"]
    words += [word for key in shared if config[key] != "" for word in (f"--{key.replace('_', '-')}", str(config[key]))]
    words += ["--allow-seen"] if config.pretrain_on == "all" else []
    return shlex.join([*words, "--encoders", "random", f"{folder}/{config.backbone}_final_state_dict.pt"])


if __name__ == "__main__":
    run_script(main, PretrainConfig, config)
