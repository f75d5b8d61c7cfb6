"""How encoders are made: data, recipes, scans, cost and health. One function per kind of run."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from utils.intervals import metric_name
from utils.report.content import Block, Note, Table, change, count, number, table
from utils.report.runs import FoundRun

MAX_LABELS = 30  # classes or findings that are listed for a split
MAX_DRAWN = 30  # pretrainings whose figures are shown: hundreds would make a page that no browser opens
PARTS = ("train", "val", "test")


def data_sets(runs: Sequence[FoundRun]) -> list[Block]:
    """Show images, groups, duplicates and parts of each split, and its labels by part."""
    known = [run for run in runs if "split_hash" in run.data]
    splits = _first_of_each(known, _split)
    rows = [
        {**run.data, **run.data["images_by_part"], "layout": run.config.get("dataset", ""), "origin": run.origin}
        for run in splits
    ]
    columns = {
        **{"split": "split_hash", "layout": "layout", "X-rays": "origin"},
        **{"images": count("images"), "groups": count("groups")},
        **{"near-duplicate pairs": count("duplicate_pairs", "not looked for"), **{part: count(part) for part in PARTS}},
    }
    caption = (
        "Splits. No group (a patient, or a set of near-duplicates) is in two parts, unless the source's split has it so"
    )
    listed = _first_of_each([run for run in known if (run.folder / "split.csv").exists()], _split)
    shown = table(caption, rows, columns, [run.name for run in splits])
    return [shown, *map(_labels_by_part, listed)] if splits else []


def recipes(runs: Sequence[FoundRun]) -> list[Block]:
    """Show what each recipe does to the X-rays of each data set."""
    blocks: list[Block] = []
    for run in _first_of_each(_own(runs), lambda run: (run.config.get("dataset"), run.config["recipe"])):
        name = run.config["recipe"]
        blocks += run.figures(
            recipe=f"one X-ray through each operator of recipe {name} alone, several draws",
            views=f"X-rays and two views of each by recipe {name}, which the network learns to embed at the same point",
        )
    return blocks


def learning_rates(run: FoundRun) -> list[Block]:
    """Show what a learning-rate range test suggests."""
    columns = {name: number(key, ".2g") for name, key in {"steepest fall": "steepest", "lowest loss": "lowest"}.items()}
    columns["diverged"] = number("diverged", ".2g", "never")
    rates = run.table("learning rates of a range test (one run)", [run.summary], columns)
    return [rates, *run.figures(lr_range="training loss over the learning rate of a range test")]


def scan(run: FoundRun) -> list[Block]:
    """Show the trials of a scan, the best first."""
    trials = run.csv("summary")
    finished = trials[trials["error"].isna()]
    if finished.empty:
        return _failures(run, trials)
    ranked = finished.sort_values("linear", ascending=False)
    caption = (
        f"{metric_name(ranked['metric'].iloc[0])} on validation (one run each); fine-tuning starts from the linear "
        "probe and counts where it is better; the loss does not rank trials, because its scale varies"
    )
    columns = {
        **{"trial": "trial", "linear probe": number("linear"), "fine-tuning": number("full")},
        **{"pretraining loss": number("loss", ".4g"), "effective rank": number("rank", ".0f")},
    }
    drawn = {path.stem: "scores of the trials" for path in sorted((run.folder / "figures").glob("*.png"))}
    return [run.table(caption, ranked, columns), *_failures(run, trials), *run.figures(**drawn)]


def resources(run: FoundRun) -> list[Block]:
    """Show time and memory of each setting."""
    settings = run.csv("summary")
    columns = {
        "images/s": ("images_per_second", ",.0f"),
        "s per batch": ("seconds_step", ".3f"),
        "peak GB": ("peak_memory_gb", ".2f"),
        "hours": ("hours", ".3g"),
    }
    known = {heading: number(*column) for heading, column in columns.items() if column[0] in settings}
    ended = settings["out_of_memory"].map({True: "out of memory"}).fillna("failed")
    settings["bottleneck"] = settings.get("bottleneck", ended).astype(object).fillna(ended)
    caption = f"cost of pretraining (one run each); hours are the forecast for {run.config['forecast_epochs']} epochs"
    costs = run.table(caption, settings, {"setting": "trial", **known, "bottleneck": "bottleneck"})
    return [costs, *_failures(run, settings), *run.figures(resources="forecast hours by image size and batch size")]


def search(run: FoundRun) -> list[Block]:
    """Show the best trial of a supervised search."""
    best = [f"{key} {v:g}" if isinstance(v, float) else f"{key} {v}" for key, v in run.summary["best"].items()]
    text = (
        f"best {metric_name(run.summary['metric'])} on validation {run.summary['score']:.3f} (one run; the best of "
        f"many trials, so too high) with {', '.join(best)}."
    )
    return [Note(text, f"{run.label}:"), *run.figures(search="history, importances and trials of the search")]


def pretrainings(runs: Sequence[FoundRun]) -> list[Block]:
    """Show one row per pretraining that is not a scan's, and the curves of the first MAX_DRAWN."""
    own = _own(runs)
    columns = {
        **{"run": "run", "images": count("images"), "epochs": count("epochs")},
        "loss": change("loss_first_epoch", "loss_last_epoch", ".4g"),
        "rank": change("rank_random_network", "rank", ".0f"),
        "linear probe": change("probe/linear_random_network", "probe/linear", unknown="no probe"),
        "kNN probe": change("probe/knn_random_network", "probe/knn", unknown="no probe"),
        **{"probes' score": "score", "images/s": number("images_per_second", ",.0f"), "health": "verdict"},
    }
    caption = "Pretrainings (one run each): loss of the first → last epoch; rank and probes at the start → now"
    rows = [{**run.summary, "run": run.label, "score": _score(run.summary)} for run in own]
    blocks: list[Block] = [table(caption, rows, columns, [run.name for run in own])] if own else []
    for run in own[:MAX_DRAWN]:
        blocks += run.figures(
            curves="loss, effective rank and probes over the epochs",
            cross_correlation="cross-correlation of two views' embeddings, which should be the identity",
        )
    if len(own) > MAX_DRAWN:
        text = f"of {len(own):,} pretrainings are shown; those of the others are in their folders, under figures/."
        blocks.append(Note(f"Figures of the first {MAX_DRAWN} {text}"))
    return blocks


def _labels_by_part(run: FoundRun) -> Table:
    """Count the images of each class, or with each finding, in the parts of a split."""
    split: Any = pd.read_csv(run.folder / "split.csv", dtype=str, keep_default_na=False)
    split = split[split["part"].isin(PARTS)]
    findings = run.data.get("multilabel", False)
    if findings:  # "Edema=1;Cardiomegaly=-1"
        split = split.assign(label=split["label"].str.split(";")).explode("label")
        split = split[split["label"].str.endswith("=1")].assign(label=lambda rows: rows["label"].str.removesuffix("=1"))
    counts = split.groupby(["label", "part"]).size().unstack(fill_value=0).reset_index()
    columns = {"images with each finding" if findings else "images of each class": "label"}
    columns |= {part: count(part) for part in PARTS if part in counts}
    left_out = f", the first {MAX_LABELS} of {len(counts)}" if len(counts) > MAX_LABELS else ""
    return run.table(f"labels of split {_split(run)}{left_out}", counts.head(MAX_LABELS), columns)


def _own(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Return the pretrainings that are not in a scan's folder."""
    scans = tuple(f"{run.name}/" for run in runs if run.kind == "scan")
    return [run for run in runs if run.kind == "pretraining" and not run.name.startswith(scans)]


def _score(summary: dict[str, Any]) -> str:
    return f"{metric_name(summary['metric'])}, chance {summary['chance']:.2f}" if "metric" in summary else "no probe"


def _failures(run: FoundRun, trials: Any) -> list[Block]:
    failed = trials[trials["error"].notna()].to_dict("records")
    return [Note(f"{row['trial']} failed: {row['error']}", f"{run.label}:") for row in failed]


def _split(run: FoundRun) -> str:
    return run.data["split_hash"]


def _first_of_each(runs: Iterable[FoundRun], key: Callable[[FoundRun], Any]) -> list[FoundRun]:
    """Return the first run for each value of `key`."""
    firsts: dict[Any, FoundRun] = {}
    for run in runs:
        firsts.setdefault(key(run), run)
    return list(firsts.values())
