"""The report's sections on how the encoders came about: data, recipe, scans, cost, pretraining."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from utils.plots import marked
from utils.report.blocks import Block, Cell, Missing, Table, Text, change, count, number
from utils.report.runs import PRETRAINING, RANGE, RESOURCES, SCAN, SEARCH, FoundRun, first_of_each, pictures
from utils.wording import metric_name

MOST_LABELS = 30  # classes or findings that the split's table lists


def data_sets(runs: Sequence[FoundRun]) -> list[Block]:
    """Images, groups, duplicates and parts of each split, and its labels by part."""
    known = [run for run in runs if (run.environment.get("data") or {}).get("split_hash")]
    splits = first_of_each(known, lambda run: run.environment["data"]["split_hash"])
    rows: list[list[Cell]] = []
    for run in splits:
        data = run.environment["data"]
        parts = [count(data["images_by_part"].get(part, 0)) for part in ("train", "val", "test")]
        kind = "synthetic" if data["synthetic"] else "real"
        counts = [count(data.get(key, float("nan"))) for key in ("images", "groups")]
        layout = run.config.get("dataset", "")  # near-duplicates are looked for where no patient is known
        pairs = count(data.get("duplicate_pairs", float("nan"))) if layout != "chexpert" else "not looked for"
        rows.append([data["split_hash"], layout, kind, *counts, pairs, *parts])
    columns = ["split", "layout", "X-rays", "images", "groups", "near-duplicate pairs", "train", "val", "test"]
    caption = (
        "Data sets and splits by hash. No group lies in two parts: a patient, or, where none is known, near-duplicates"
    )
    blocks: list[Block] = [Table(columns, rows, caption, [run.name for run in splits])]
    for shown in splits:
        same = [run for run in known if run.environment["data"]["split_hash"] == _hash(shown)]
        with_split = next((run for run in same if (run.folder / "split.csv").exists()), None)
        blocks += labels_by_part(with_split) if with_split else []
    return blocks


def labels_by_part(run: FoundRun) -> list[Block]:
    """How many images of each class, or with each finding, a split's parts have."""
    split: Any = pd.read_csv(run.folder / "split.csv", dtype=str, keep_default_na=False)
    findings = split["label"].str.contains("=").any()
    labels = split.assign(label=split["label"].str.split(";")).explode("label") if findings else split
    if findings:
        labels = labels[labels["label"].str.endswith("=1")].assign(label=lambda t: t["label"].str.removesuffix("=1"))
    counts = labels.groupby(["label", "part"]).size().unstack(fill_value=0)
    left_out = f", the first {MOST_LABELS} of {len(counts)}" if len(counts) > MOST_LABELS else ""
    counts = counts.head(MOST_LABELS)
    parts = [part for part in ("train", "val", "test") if part in counts]
    rows: list[list[Cell]] = [[str(label), *(count(row[part]) for part in parts)] for label, row in counts.iterrows()]
    what = "images with each finding" if findings else "images of each class"
    return [
        Table([what, *parts], rows, marked(f"Labels of split {_hash(run)}", bool(run.synthetic)) + left_out, [run.name])
    ]


def recipe(run: FoundRun) -> list[Block]:
    """What augmentations do to X-rays."""
    name = run.config["recipe"]
    drawn = pictures(
        run,
        recipe=f"One X-ray through each operator of recipe {name} alone, several draws",
        views=f"Some X-rays, each with two views by recipe {name}: what the network is to see as the same",
    )
    return [*drawn]


def lr_range(run: FoundRun) -> list[Block]:
    """What a range test suggests."""
    found = run.summary
    rates: list[Cell] = [number(found[key], ".2g") for key in ("steepest", "lowest", "diverged")]
    if found["diverged"] is None:
        rates[-1] = "never"
    columns = ["training", "steepest fall", "lowest loss", "diverged"]
    rows: list[list[Cell]] = [[run.name.rpartition("range_")[2], *rates]]
    table = Table(columns, rows, f"{run.label}: learning rates of a range test (one run)", [run.name])
    return [table, *pictures(run, lr_range="Training loss over the learning rate of a range test")]


def scan(run: FoundRun) -> list[Block]:
    """The trials of a scan, best first."""
    table = run.table("summary")
    ranked = table[~_failed(table)].sort_values("linear", ascending=False)
    forms = {"linear": ".3f", "full": ".3f", "loss": ".4g", "rank": ".0f"}
    rows: list[list[Cell]] = [
        [row["trial"], *(number(row[key], form) for key, form in forms.items())] for row in ranked.to_dict("records")
    ]
    metric = metric_name(str(table["metric"].dropna().iloc[0]))
    columns = ["trial", "linear probe", "fine-tuning", "pretraining loss", "effective rank"]
    caption = (
        f"{run.label}: {metric} on validation (one run each); fine-tuning starts from the linear probe and counts "
        "where it is better; the loss, whose scale varies, ranks nothing"
    )
    name = run.name.rpartition("/")[2]
    drawn = pictures(run, **{name: f"Scores of the trials of {run.label}"})
    return [Table(columns, rows, caption, [run.name]), *_failures(table), *drawn]


def resources(run: FoundRun) -> list[Block]:
    """Time and memory of each setting."""
    table = run.table("summary")
    names = {
        "images_per_second": ("images/s", ",.0f"),
        "seconds_step": ("s a batch", ".3f"),
        "peak_memory_gb": ("peak GB", ".2f"),
        "hours": ("hours", ".3g"),
    }
    known = {column: shown for column, shown in names.items() if column in table}
    rows: list[list[Cell]] = []
    for row in table.to_dict("records"):
        cells: list[Cell] = [number(row[column], form) for column, (_, form) in known.items()]
        bottleneck = row.get("bottleneck")
        ended = "out of memory" if row.get("out_of_memory") is True else "failed"
        rows.append([row["trial"], *cells, bottleneck if isinstance(bottleneck, str) else ended])
    epochs = run.config.get("forecast_epochs")
    caption = f"{run.label}: cost of a pretraining (one run each); hours are the forecast for {epochs} epochs"
    columns = ["setting", *(shown for shown, _ in known.values()), "bottleneck"]
    drawn = pictures(run, resources="Forecast hours by image size and batch size")
    return [Table(columns, rows, caption, [run.name]), *_failures(table), *drawn]


def search(run: FoundRun) -> list[Block]:
    """What a supervised search found."""
    best = ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in run.summary["best"].items())  # fmt: skip
    metric, score = metric_name(run.summary["metric"]), run.summary["score"]
    text = f"{run.label}: best {metric} on validation {score:.3f} (one run, the best of many: too high), by {best}."
    return [Text(text), *pictures(run, search="History, importances and trials of the search")]


def pretrainings(runs: Sequence[FoundRun]) -> list[Block]:
    """A row a run, and each one's curves."""
    rows: list[list[Cell]] = []
    for run in runs:
        s = run.summary
        probes: list[Cell] = [
            change(s[f"{tag}_random_network"], s[tag]) if tag in s else "no labels"
            for tag in ("probe/linear", "probe/knn")
        ]
        loss = change(s["loss_first_epoch"], s["loss_last_epoch"], ".4g")
        rank = change(s["rank_random_network"], s["rank"], ".0f")
        numbers = [count(s["images"]), count(s["epochs"])]
        metric = f"{metric_name(s['metric'])}, chance {s['chance']:.2f}" if "metric" in s else "not said"
        speed = number(s["images_per_second"], ",.0f")
        rows.append([run.label, *numbers, loss, rank, *probes, metric, speed, s["verdict"]])
    columns = [
        "run",
        "images",
        "epochs",
        "loss",
        "rank",
        "linear probe",
        "kNN probe",
        "probes' score",
        "images/s",
        "health",
    ]
    caption = "Pretrainings (one run each): loss in the first → last epoch; rank and probes of the random network → now"
    blocks: list[Block] = [Table(columns, rows, caption, [run.name for run in runs])]
    for run in runs:
        blocks += pictures(
            run,
            curves=f"Loss, effective rank and probes over the epochs of {run.label}",
            cross_correlation=f"Cross-correlation of two views' embeddings in {run.label}; the goal is the identity",
        )
    return blocks


def sections_of_recipes(runs: Sequence[FoundRun]) -> dict[str, tuple[str, list[Any]]]:
    """By anchor: title and what to show, a list of (run or runs, function), or what is missing."""
    pretrained = [run for run in runs if run.kind == PRETRAINING]
    scans = {run.name for run in runs if run.kind == SCAN}
    own = [run for run in pretrained if not any(run.name.startswith(f"{name}/") for name in scans)]
    pictured = first_of_each(own, lambda run: (run.config.get("dataset"), run.config.get("recipe")))
    script = "python selfsup_task/"
    pretrain = f"{script}train_barlow_twins.py"
    no_encoder = Missing("No encoder has been pretrained.", pretrain)
    lr_scans = [*_all(runs, RANGE, lr_range), *_scans(runs, "schedulers")]
    return {
        "data": (
            "Data sets and splits",
            [(runs, data_sets)] if any("data" in run.environment for run in runs) else [no_encoder],
        ),
        "recipe": ("The recipe in pictures", [(run, recipe) for run in pictured] or [no_encoder]),
        "lr": (
            "Learning rate and schedules",
            lr_scans or [Missing("No learning rate has been looked for.", f"{script}scan_optimal_lr.py")],
        ),
        "transformations": (
            "Transformations",
            _scans(runs, "recipes")
            or [Missing("No transformations have been compared.", f"{script}scan_best_transformations.py")],
        ),
        "hyperparameters": (
            "Lambda and projector",
            _scans(runs, "lambdas")
            or [Missing("No lambda and projector have been compared.", f"{script}scan_best_hyperparameters.py")],
        ),
        "search": (
            "Supervised hyperparameters",
            _all(runs, SEARCH, search)
            or [
                Missing(
                    "No supervised search has been run.",
                    "python downstream_task/scan_best_supervised_hyperparameters.py",
                )
            ],
        ),
        "resources": (
            "Time and memory",
            _all(runs, RESOURCES, resources)
            or [Missing("The cost has not been measured.", f"{script}check_bt_resources.py")],
        ),
        "pretraining": ("Pretraining and its health", [(own, pretrainings)] if own else [no_encoder]),
    }


def _all(runs: Sequence[FoundRun], kind: str, show: Callable[[FoundRun], list[Block]]) -> list[Any]:
    return [(run, show) for run in runs if run.kind == kind]


def _scans(runs: Sequence[FoundRun], varied: str) -> list[Any]:
    return [(run, scan) for run in runs if run.kind == SCAN and varied in run.config["varied"]]


def _failures(table: Any) -> list[Block]:
    """What went wrong in a sweep's trials."""
    rows = table[_failed(table)].to_dict("records") if "error" in table else []
    return [Text(f"{row['trial']} failed: {row['error']}") for row in rows]


def _failed(table: Any) -> Any:
    """Which rows of a sweep's table have an error."""
    return table["error"].fillna("") != ""


def _hash(run: FoundRun) -> str:
    return run.environment["data"]["split_hash"]
