"""How many labels does pretraining save? Every initialisation on the same few labels.

    python downstream_task/trained_vs_no_trained_compare.py
    python downstream_task/trained_vs_no_trained_compare.py --dataset covid --run-name compare/covid \\
        --encoders imagenet random 'runs/pretrain/covid/fold*/tf_efficientnet_lite0_final_state_dict.pt'

By default it compares random weights and the encoder of selfsup_task/train_barlow_twins.py on built-in synthetic
X-rays; on real ones it compares both with ImageNet's weights. Arms get the same folds, labels, ways and budget.
The budget is fixed beforehand, and with n labels nothing is chosen on images other than these n. Each way of training
is a curve of its own; which one is the main way is fixed too (HEADLINE). Draw d of the labels belongs to fold d mod 5,
whose images are its test part, and takes an encoder that has not seen them. An arm that cannot be run is left out, and
named at the end with the reason; the exit code is then not 0, and the same command tries the arm again.

runs/<run_name>/ holds summary.csv (one row per run), each run's predictions.csv and, for the validation part,
curves.csv, differences.csv (with intervals), plateaus.csv (how many labels for a score?) and figures/. The test part is
left to confusion_matrix.py. The same command resumes; several processes may share one comparison.
"""

from typing import Any

from downstream_task.shared_keys import DATA, FILES, MACHINE, TARGETS
from utils.scripts import command, flags, run_script

config: dict[str, Any] = {
    # data
    **DATA,  # dataset_loader/data_keys.py: dataset, data_root, split_seed, ...
    **TARGETS,  # downstream_task/shared_keys.py: findings, uncertain, blank, class_weights
    "folds": [0],  # of 0 to 4, each the test part of its draws; where the data name parts, these stay
    # run
    "run_name": "compare/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "random_seed": 0,  # of the first draw; draw k has random_seed + k
    # arms
    "encoders": [  # "random" | "imagenet" | "imagenet:FILE" | "shared" | weights | features:FILE | predictions:FOLDER
        "random",  # the first is the reference; weights may be a pattern with *
        "runs/pretrain/{dataset}/resnet18_final_state_dict.pt",
    ],
    "backbone": "resnet18",  # torchvision's name, such as densenet121, or timm/NAME
    "in_channels": 1,  # 1 (gray) | 3
    "allow_seen": False,  # True: take encoders that have seen held-out images, and say so in every result
    # labels
    "num_labels": [20, 120, "all"],  # labels to learn from: numbers, shares such as 0.1, "all"; nested
    "draws": 3,  # of the labels, for each number; a multiple of the folds
    "target_score": 0.8,  # "how many labels for this score?", from curves of 4 numbers or more
    # training
    "ways": ["linear", "spread", "zeros"],  # names in WAYS, each a curve
    "img_res": 32,  # pixels per side of what the network sees
    "features_res": 0,  # the same of "linear" and "spread", whose features are computed once; 0 is img_res
    "recipe": "supervised",  # a name in augmentations/recipes.py
    # The same budget for every arm. What twice as long changes: docs/RESULTS.md, "The budget of a fine-tuning".
    "epochs": 40,  # passes over the labels ...
    "min_steps": 600,  # ... or so many steps, if these are more; then the last weights count
    "batch_size": 32,  # labelled images per step
    "optimizer": "adam",  # "adam" | "adamw" | "sgd"
    "lr": 0.0,  # peak rate of all fine-tunings; 0 is that of LEARNING_RATES
    "optimizer_weight_decay": 1e-5,  # of weights; not of biases and BatchNorm
    "keep_weights": False,  # True: of every run; otherwise of draw 0 of the main ways
    **MACHINE,  # downstream_task/shared_keys.py: precision, device, threads, jobs
}

# Ways of training. "linear" is a logistic regression on fixed features; "spread" is one that learns from the train
# images without a label too (spreading.py); "as_is" is a file's own head. The others train all layers: `head` starts
# from that regression ("probe", LP-FT) or from zeros; the backbone learns at the share `backbone_lr_factor` of the
# head's rate; BatchNorm normalises by the batch ("train") or the running values ("eval").
WAYS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "spread": {"method": "spread"},
    "probe": {"head": "probe", "backbone_lr_factor": 0.3, "batch_norm": "train"},
    "zeros": {"head": "zeros", "backbone_lr_factor": 1.0, "batch_norm": "train"},
    "as_is": {"method": "as_is"},
}

# Peak learning rates by kind of start, each the best of the same three on synthetic X-rays (docs/RESULTS.md, "Learning
# rates"); ImageNet's are those of pretrained ones, which two draws on the COVID layout found too low for them.
LEARNING_RATES: dict[str, dict[str, float]] = {
    "probe": {"random": 3e-3, "imagenet": 1e-3, "pretrained": 1e-3},
    "zeros": {"random": 3e-3, "imagenet": 3e-4, "pretrained": 3e-4},
}

# Which way is the main one from so many labels for each class or finding on, fixed on synthetic X-rays and NIH
# (docs/RESULTS.md, "Which way is the main result").
HEADLINE: dict[str, dict[int, str]] = {
    "random": {0: "linear", 25: "zeros"},
    "imagenet": {0: "spread", 25: "zeros"},
    "pretrained": {0: "spread", 25: "zeros"},
}

# Where both ways are compared, the mean of their probabilities is a curve too, at no cost: predict.py takes both.
MEAN = ["spread", "zeros"]

# What changes when `dataset` is not a phantom; flags win over both.
real_xrays: dict[str, Any] = {
    "folds": [0, 1, 2, 3, 4],
    "encoders": ["imagenet", "random", "runs/pretrain/{dataset}/fold*/tf_efficientnet_lite0_final_state_dict.pt"],
    "backbone": "timm/tf_efficientnet_lite0",
    "num_labels": [20, 93, 187, "all"],
    "draws": 5,
    "img_res": 128,
    "features_res": 224,  # of 128 px files too: NIH, ImageNet, 300 labels, validation, AUROC 59.2; at 128 px 57.2
}

if __name__ == "__main__":  # before the slow imports
    config = flags(config, __doc__, __file__, *FILES, real_xrays=real_xrays, best="finetuning")

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pandas as pd

from dataset_loader.xrays import Fold, SizeOrZero, with_room
from downstream_task import label_efficiency
from downstream_task.compare_networks import (
    KINDS,
    PRETRAINED,
    Arm,
    Comparison,
    Draws,
    Trial,
    open_comparison,
    run_comparison,
    trial_name,
)
from downstream_task.finetuning import ON_FEATURES, TrainingConfig
from downstream_task.predictions import CELL, FILE, reader
from utils import plots
from utils.config import Distinct, NotNegative, UserError, between, one_of, part_of
from utils.files import write_json, write_table
from utils.hardware import MachineConfig
from utils.jobs import JobsConfig, with_jobs
from utils.logging_utils import Run
from utils.wording import metric_name


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainingConfig, JobsConfig):
    """The config above, checked."""

    folds: Distinct[Fold]
    encoders: Distinct[str]
    num_labels: Distinct[int | float | str]
    draws: Draws
    target_score: Annotated[float, between(0, 1)]
    ways: Distinct[Annotated[str, one_of(WAYS)]]
    lr: NotNegative
    features_res: SizeOrZero

    later: ClassVar = {"lr": 0.0, "features_res": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws % len(self.folds):
            raise UserError(
                f"draws is {self.draws} and folds {self.folds}: each fold needs the same number of draws; give "
                f"draws a multiple of {len(self.folds)}."
            )
        for entry in self.num_labels:
            if entry != "all" and (
                isinstance(entry, str) or not 0 < entry <= (1 if isinstance(entry, float) else entry)
            ):
                raise UserError(f'num_labels holds {entry!r}; expected numbers, shares such as 0.1, or "all".')
        if self.features_res > self.store_res > 0:
            raise UserError(
                f"store_res is {self.store_res} and features_res {self.features_res}: the images would be enlarged;"
                " set store_res to 0, or features_res to 0, which is img_res."
            )

    @property
    def also(self) -> list[str] | None:
        """What open_xrays takes beside the labelled images: the data set's others, where labels spread to them."""
        return [] if "spread" in self.ways else None

    @property
    def trials(self) -> int:
        """Return how many there are at most."""
        return self.draws * len(self.encoders) * len(self.ways) * len(self.num_labels)

    @property
    def largest_view(self) -> int:
        """Side of the largest images that a network sees, in pixels."""
        return max(self.img_res, self.features_res)


def main(config: CompareConfig) -> None:
    """Train every arm on the same label subsets; compare what they say of validation; print what pretraining saves."""

    def tested(run: Run) -> str:
        return command("downstream_task/confusion_matrix.py", {"runs": [str(run)], **part_of(config, MachineConfig)})

    run_comparison(config, "comparison", compare, ["curves.csv", "differences.csv"], tested)


def compare(config: CompareConfig, run: Run) -> None:
    """Run the comparison; its summary holds what main prints."""
    opened = open_comparison(config, config.encoders, config.num_labels, config.folds, config.draws, run)
    rows = [opened.train(trials_of(config, opened))]
    if opened.joined:
        rows.append(with_headlines(pd.DataFrame(opened.joined), len(opened.targets.names)))
    table = with_means(pd.concat([some for some in rows if len(some)], ignore_index=True), run)
    run.save_table("summary", table)

    summary = {**opened.summary(table), "target_score": config.target_score, "part": "val"}
    tables, text, figure = label_efficiency.report(
        label_efficiency.read_cells(table, reader(run.folder), "val"), summary
    )
    for name, one in tables.items():
        run.save_table(name, one)
    run.save_figure("label_efficiency", figure)
    save_convergence(run, table, summary)
    run.finish({**summary, "report": [text, *summary["notes"], *opened.cautions]})


def trials_of(config: CompareConfig, opened: Comparison) -> list[Trial]:
    """Return a trial for each draw, arm, way and number of labels."""
    classes, size = len(opened.targets.names), opened.xrays.store.size
    return [
        Trial(
            arm,
            way,
            {**keys_of(arm, way, config.lr), **sizes_of(way, config, size)},
            number,
            draw,
            fold,
            way == headline_of(arm.kind, number, classes, ways_of(arm, config.ways)),
        )
        for draw, fold in zip(range(config.draws), itertools.cycle(config.folds), strict=False)
        for arm in opened.arms
        for way in ways_of(arm, config.ways)
        for number in ([0] if way == "as_is" else opened.counts)
    ]


def with_headlines(joined: pd.DataFrame, classes: int) -> pd.DataFrame:
    """Return the rows of tables from elsewhere with a column `headline`, by HEADLINE as for arms that are trained."""
    joined = joined.assign(headline=False)
    groups: Any = joined.groupby(["arm", "labels"])
    for (arm, labels), rows in groups:
        kind = arm if arm in KINDS else PRETRAINED  # as comparisons name arms
        joined.loc[rows.index, "headline"] = rows["way"] == headline_of(kind, labels, classes, [*rows["way"]])
    return joined


def with_means(table: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Return the rows of heads, and one more for each that both ways of MEAN have; write what the two say together.

    It is marked as transductive if one of the two is.
    """
    read, taken, means = reader(run.folder), {*table["trial"]}, []
    for _, pair in table[table["way"].isin(MEAN)].groupby(["arm", "labels", "draw"], sort=False):
        known: Any = pair.iloc[0][[*CELL, "encoder", "metric"]]
        trial = trial_name(known["arm"], "mean", known["labels"], known["draw"])
        if len(pair) < len(MEAN) or trial in taken:  # tables from elsewhere may bring it
            continue
        one, other = map(read, pair["trial"])
        names = [name for name in one if str(name).startswith("p ")]
        one[names] = (one[names] + other.set_index("file").loc[one["file"], names].to_numpy()) / 2
        write_table(run.folder / trial / FILE, one.assign(way="mean"))
        notes = sorted({*pair["note"]} - {""})
        stated = {"transductive": bool(pair["transductive"].any()), "note": "; ".join(notes)}
        write_json(run.folder / trial / "summary.json", {**stated, "mean_of": list(pair["trial"])})
        means.append({**known, **stated, "trial": trial, "way": "mean", "headline": False})
    return pd.concat([table, pd.DataFrame(means)], ignore_index=True)


def keys_of(arm: Arm, way: str, lr: float) -> dict[str, Any]:
    """Return the keys of a fine-tuning of an arm, at the rate `lr`, 0 for that of LEARNING_RATES."""
    rates = LEARNING_RATES.get(way)
    return {**WAYS[way], **({"lr": lr or rates[arm.kind]} if rates else {})}


def sizes_of(way: str, config: CompareConfig, stored: int) -> dict[str, int]:
    """Return the sizes of a way of training, where `features_res` gives ON_FEATURES their own, or files are small.

    stored  side of the images in the store that all ways share, which a run that is opened alone needs to know
    """
    seen = (config.features_res if way in ON_FEATURES else 0) or config.img_res
    known = config.store_res or (stored if seen <= stored != with_room(seen) else 0)
    return {"img_res": seen, "store_res": known}


def ways_of(arm: Arm, ways: Sequence[str]) -> list[str]:
    """Return the ways in which an arm can be trained; UserError if there is none.

    A table of features can only be probed, and random or ImageNet's weights have no head for these classes.
    """
    barred, reason = set[str](), ""
    if not arm.has_network:
        barred, reason = {*WAYS} - {*ON_FEATURES}, "is a table of features, which can only be probed"
    elif not arm.has_head:
        barred, reason = {"as_is"}, "has no head for these classes"
    possible = [way for way in ways if way not in barred]
    if not possible:
        raise UserError(f"{arm.name} {reason}; put linear into ways, or leave {arm.name} out of encoders.")
    return possible


def headline_of(kind: str, labels: int, classes: int, ways: Sequence[str]) -> str:
    """Return which of `ways` headlines for a kind of start and number of labels: HEADLINE's, linear, or the first."""
    by_labels = HEADLINE[kind]
    wanted = by_labels[max(least for least in by_labels if least <= labels / classes)]
    return next(way for way in (wanted, "linear", *ways) if way in ways)


def save_convergence(run: Run, table: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Draw validation over the steps of the fine-tunings that headline, or of the first way that is one."""
    curves: dict[str, dict[str, list[pd.DataFrame]]] = {}
    tuned = [row for row in table.to_dict("records") if row.get("method") == "finetune"]
    for row in sorted(tuned, key=lambda row: row["labels"]):
        beside = [one for one in tuned if (one["arm"], one["labels"]) == (row["arm"], row["labels"])]
        if row["way"] == max(beside, key=lambda one: one["headline"])["way"]:
            metrics = pd.read_csv(run.folder / row["trial"] / "metrics.csv")
            metrics = metrics.rename(columns={f"val/{row['metric']}": "score"})
            arm = plots.marked(row["arm"], False, row["transductive"])
            curves.setdefault(f"{row['labels']:,}", {}).setdefault(arm, []).append(metrics)
    if curves:
        title = plots.marked("Fine-tuning on validation: each draw, and their median", summary["synthetic"])
        run.save_figure("convergence", plots.convergence(curves, metric_name(summary["metric"]), title))


if __name__ == "__main__":
    run_script(with_jobs(main), CompareConfig, config)
