"""Pretrain a backbone on chest X-rays without labels, with Barlow Twins. The main job.

    python selfsup_task/train_barlow_twins.py
    python selfsup_task/train_barlow_twins.py --dataset covid

By default it trains on built-in synthetic X-rays for some minutes on two cores, which shows that everything works and
that the probes rise. Afterwards runs/<run_name>/ holds the backbone (plain torchvision weights), metrics.csv,
TensorBoard events and figures. Look at figures/views.png first: it shows what the network has to see as
the same. The same command again resumes an interrupted run, and prints the summary of a finished one.

For real X-rays the values of `real_xrays` replace those of `config`; `--from runs/scans/<name>/best.json` takes what a
scan has chosen; flags win over both.

The original project's final trainings (ResNet-18, 224 px, Adam, RTX 2070 Super):
    COVID-19 Radiography, 300 epochs, 15 h there:
        --dataset covid --num-epochs 300 --img-res 224 --views 2 --recipe original --projector-dims 512 --optimizer adam
        --lr 2e-3 --optimizer-weight-decay 1e-5 --batch-size 128 --backbone resnet18 --start random
        (lambda 5e-3, cosine and no warmup are the defaults for real X-rays)
    CheXpert, 60 epochs, 32 h there:
        the same with --dataset chexpert --num-epochs 60

Barlow Twins' own recipe (section 2.2, on ImageNet; lr is 0.2 * batch_size / 256), not tried on X-rays:
    --num-epochs 1000 --warmup-epochs 10 --optimizer lars --lr 0.8 --optimizer-weight-decay 1.5e-6 --batch-size 1024
    --micro-batch-size 128 --views 2 --projector-dims 8192 8192 8192 --backbone resnet50 --start random

On several GPUs: torchrun --nproc-per-node 4 -- selfsup_task/train_barlow_twins.py --batch-size 512
A batch that does not fit into memory, normalised by the micro-batch: --batch-size 1024 --micro-batch-size 128
"""

from typing import Any

from dataset_loader import data_keys
from dataset_loader.data_keys import DATA
from utils.scripts import command, flags, run_script

config: dict[str, Any] = {
    # data
    **DATA,  # dataset_loader/data_keys.py: dataset, data_root, split_seed, ...
    "fold": 0,  # 0 to 4: the fifth of the images that is held out as the test part, where the data do not name one
    "pretrain_on": "train",  # "train", and what has no label | "all" (then no held-out image is unseen any more)
    "also": [],  # more X-rays without labels: FOLDER, or with its layout: covid: chexpert: nih: folder:
    "exclude": [],  # collections, as in `also`, of which no copy and no patient is learnt from: to be tested on
    # run
    "run_name": "pretrain/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "random_seed": 0,  # of weights, views and the order of images
    # network
    "backbone": "resnet18",  # torchvision's name, such as densenet121, or timm/NAME
    "in_channels": 1,  # 1 (gray) | 3
    "start": "random",  # "random" | "imagenet" | "imagenet:FILE" | "shared" | a file of weights, to continue from it
    "projector_dims": [512],  # widths of the projector's layers; one width is one linear layer
    "barlow_lambda": 5e-3,  # weight of the off-diagonal (redundancy) term
    # views
    "img_res": 32,  # pixels a side of the views
    "recipe": "short",  # a name in augmentations/recipes.py
    "views": 2,  # random views of each X-ray in a step; more than 2 use the mean-view loss
    "positives": "image",  # two views are of one "image" | "patient": of X-rays of one patient and study, if several
    # optimisation
    "num_epochs": 20,  # passes over all images that it takes; 0 is 20, of 55 steps each where a pass has fewer
    "batch_size": 64,  # X-rays in a step, over all processes
    "micro_batch_size": 0,  # how many of them pass through the network at once, which bounds memory; 0 is all
    "optimizer": "adamw",  # "adam" | "adamw" | "sgd" | "lars" (for large batches)
    "lr": 5e-4,  # its largest value, after the warmup
    "optimizer_weight_decay": 1e-4,  # of weights; not of biases and BatchNorm
    "scheduler": "cosine",  # "cosine" | "constant" | "multiplicative"
    "warmup_epochs": 1,  # in which the learning rate rises from 0
    "gradient_clip": 0.0,  # largest gradient norm; 0 is off
    "precision": "auto",  # "auto" (bfloat16 where the hardware is made for it) | "float32" | "bfloat16"
    "deterministic": True,  # the same bits again on this machine; False lets a GPU try algorithms for speed
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
    # what to watch
    "probe_every": 2,  # epochs between linear and kNN probes on validation
    "checkpoint_minutes": 5.0,  # between checkpoints; a signal to stop writes one too
}
# What changes when `dataset` is not a phantom: ImageNet's weights, trained further for a few epochs. Linear heads on
# features at 224 px by 20, 93, 187 labels, COVID layout, five folds, reach 59.3, 70.8, 75.2 (ImageNet's weights alone
# 53.1, 67.3, 71.6; docs/RESULTS.md). The values were chosen by a prototype, one run and seed each, on other images: it
# reached 64.2, 70.5, 74.2, with which the numbers below compare. From random weights: resnet18 at 64 px, 4 views of
# 128 X-rays, num_epochs 0, lr 1e-3, warmup_epochs 1 (docs/RESULTS.md).
real_xrays: dict[str, Any] = {
    "backbone": "timm/tf_efficientnet_lite0",
    "start": "imagenet",  # downloaded once, 19 MB; without a network imagenet:FILE, or random
    "img_res": 128,  # 224 px, three times as long: 62.5, 70.9, 74.0
    "recipe": "solarize",
    "num_epochs": 3,  # 1: 60.0, 69.2, 74.2; 8: 62.3, 68.9, 72.4
    "warmup_epochs": 0,
    "projector_dims": [1024, 1024],
}
defaults = config

if __name__ == "__main__":  # before the slow imports
    config = flags(
        config, __doc__, __file__, data_keys.__file__, real_xrays=real_xrays, torchrun=True, best="pretraining"
    )

from collections.abc import Mapping
from math import inf

from dataset_loader.xrays import open_xrays
from self_sup_classes.backbones import weights_file
from selfsup_task.pretraining import (
    PretrainConfig,
    build_model,
    loss_of_views,
    open_run,
    partners_of,
    pretraining_step,
    train,
)
from utils import distributed
from utils.hardware import placed, prepare
from utils.training_utils import check_batch_size
from utils.wording import metric_name

# Of a comparison: numbers of labels beside all, the fewest that hold each of several findings, and draws of them.
NUM_LABELS, FEWEST_FINDINGS, DRAWS = (20, 93, 187), 60, 5
SHARED = ("backbone", "in_channels", "precision", "device", "threads")  # keys with the same defaults there
WORSE = 0.02  # a fall of the probe's score that is worth a word


def main(config: PretrainConfig) -> None:
    """Pretrain, then print how it went, where the files are, and what to do next."""
    device = prepare(config.device, config.threads, config.deterministic)
    with distributed.process_group(device):  # this process, or those of torchrun
        run = open_run(config)
        if run.summary is None:
            with distributed.main_process_first():  # which decodes the images, once
                xrays = open_xrays(config, device, config.also)  # pixels uint8 [N, 1, S, S]; parts by patient
                xrays = xrays.without(config.exclude)
            check_batch_size(config.batch_size, len(xrays.pretraining_indices(config.pretrain_on)))
            partners = partners_of(xrays, config)
            model = placed(build_model(config), device)  # backbone, projector, loss
            # images -> views -> loss
            step = pretraining_step(loss_of_views(model, config), xrays.batch, config, partners)
            train(model, step, xrays, config, run)  # utils/training_utils.py; the update: utils/optimisation.py
    if run.is_writer and run.summary is not None:
        print(report(run.summary, config))
        print(f"weights            {run}/{weights_file(config.backbone)}")
        print(f"figures            {run}/figures/   (curves: tensorboard --logdir runs)")
        if config.val_share == 0 and "metric" not in run.summary:
            print(
                "\nA comparison needs validation images that the encoder has not seen: pretrain with --val-share 0.1."
            )
            return
        first = "" if "metric" in run.summary else "give labels in labels.csv (datasets/README.md), then "
        print(f"\nnext: {first}{comparison(config, run.name, run.summary)}")


def report(summary: dict[str, Any], config: PretrainConfig) -> str:
    """Return what a finished run has reached, as lines."""
    kind = "synthetic X-rays" if summary["synthetic"] else "X-rays"
    before = "random network" if config.start == "random" else config.start
    epochs = f"{summary['epochs']} epoch{'s' * (summary['epochs'] > 1)}"
    lines = [
        f"\n{epochs}, {summary['steps']:,} steps, on {summary['images']:,} {kind}, "
        f"{summary['images_per_second']:.0f} images/s: {summary['verdict']}",
        f"loss               {summary['loss_first_epoch']:.4g} -> {summary['loss_last_epoch']:.4g} (first, last epoch)",
        f"effective rank     {summary['rank_at_start']:.1f} -> {summary['rank']:.1f} ({before}, now)",
    ]
    for tag, name in {"probe/linear": "linear probe", "probe/knn": "kNN probe   "}.items():
        if tag in summary:
            lines.append(
                f"{name}       {summary[f'{tag}_at_start']:.3f} -> {summary[tag]:.3f} "
                f"{metric_name(summary['metric'])} on validation (chance {summary['chance']:.2f})"
            )
    if "metric" not in summary:
        lines.append(f"probes             skipped: {summary.get('probes_skipped', 'the X-rays have no labels')}")
    if summary.get("probe/linear", 1) < summary.get("probe/linear_at_start", 0) - WORSE:
        lines.append(f"The probe is below that of the start ({before}): train longer, or change lr or recipe.")
    return "\n".join(lines)


def comparison(chosen: PretrainConfig, run_name: str, summary: Mapping[str, Any]) -> str:
    """Return the command that measures what the encoder is worth; flags say what its defaults do not."""
    real = not chosen.dataset.startswith("phantom")
    shared = {**defaults, **(real_xrays if real else {})}
    values = {key: getattr(chosen, key) for key in (*DATA, "img_res", *SHARED)}
    values["allow_seen"] = chosen.pretrain_on == "all" or bool(summary.get("note"))
    if (run_name, chosen.backbone) != ("pretrain/phantom", defaults["backbone"]):
        encoder = f"runs/{run_name}/{weights_file(chosen.backbone)}"
        start = [chosen.start] if chosen.start.partition(":")[0] in ("imagenet", "shared") else []
        arms = ["random", *start, encoder]
        values |= {"run_name": f"compare/{run_name.removeprefix('pretrain/')}", "encoders": arms}
        fewest, most = FEWEST_FINDINGS if summary.get("metric") == "auroc" else 1, summary.get("labels") or inf
        values["num_labels"] = [*(number for number in NUM_LABELS if fewest <= number < most), "all"]
        if summary.get("fold") is not None:  # the encoder has seen what the others hold out
            values |= {"folds": [summary["fold"]], "draws": DRAWS}
    known = {key: shared[key] for key in (*DATA, "img_res", *SHARED)}
    return command("downstream_task/trained_vs_no_trained_compare.py", values, {**known, "allow_seen": False})


if __name__ == "__main__":
    run_script(main, PretrainConfig, config)
