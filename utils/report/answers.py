"""The report's sections on what pretraining is worth: the answer, label efficiency, frozen parts, the test part."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from utils.report.blocks import Block, Cell, Missing, Number, Table, Text, count, estimate, number, row_estimate
from utils.report.runs import COMPARISON, FROZEN, TEST, TEST_COMPARISON, FoundRun, pictures
from utils.wording import METHOD_NAMES, interval_text, metric_name, savings_sentence

PARTS = {"validation": "the validation part, by which choices were made too", "test": "the test part"}
COMPARE = "python downstream_task/trained_vs_no_trained_compare.py"
FREEZE = "python downstream_task/train_models_with_frozen_parts.py"
TESTING = "python downstream_task/confusion_matrix.py"
MOST_ROWS = 12  # of a table that stands open
TEST_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc", "ece", "ece_after_temperature_scaling")


def in_order(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Comparisons by what they are worth to a reader: the test part before validation, real X-rays before synthetic."""
    compared = [run for run in runs if run.kind in (TEST_COMPARISON, COMPARISON)]
    return sorted(compared, key=lambda run: (run.synthetic is not False, run.kind != TEST_COMPARISON, run.name))


def answer(runs: Sequence[FoundRun]) -> list[Block]:
    """Does pretraining help? What each comparison says, and the picture of the first."""
    said = {run.name: _sentences(run) for run in runs}
    pictured = next((run for run in runs if said[run.name]), None)
    sentences: list[Block] = [sentence for sentences in said.values() for sentence in sentences]
    return [*sentences, *(_curves(pictured) if pictured else [])]


def efficiency(run: FoundRun) -> list[Block]:
    """A comparison's scores and differences."""
    curves, differences = run.table("curves"), run.table("differences")
    metric, runs = metric_name(run.summary["metric"]), [run.name]
    arms = list(dict.fromkeys(curves["arm"]))
    rows: list[list[Cell]] = []
    for (method, fraction, labels), chosen in curves.groupby(["method", "fraction", "labels"], sort=False):
        by_arm = {row["arm"]: row for row in chosen.to_dict("records")}
        cells = [row_estimate(by_arm[arm], value="mean") if arm in by_arm else "not run" for arm in arms]
        rows.append([METHOD_NAMES[method], _share(fraction), count(labels), *cells])
    draws = f"{int(curves['draws'].min())} draw(s) of the labels"
    scores = Table(
        ["method", "share", "labels", *arms],
        rows,
        f"{run.label}: {metric} on {PARTS[run.summary['part']]}, mean [95% interval] of {draws}",
        runs,
    )
    fewest, most = int(curves["labels"].min()), int(curves["labels"].max())
    gaps: list[list[Cell]] = [
        [
            METHOD_NAMES[row["method"]],
            _share(row["fraction"]),
            count(row["labels"]),
            f"{row['arm']} less {row['reference']}",
            estimate(*(100 * row[key] for key in ("difference", "low", "high")), form="+.1f"),
            savings_sentence(row, row["arm"], row["reference"], fewest, most),  # type: ignore[arg-type]  # a table's row
        ]
        for row in differences.to_dict("records")
    ]
    gap = Table(
        ["method", "share", "labels", "of", "points", "labels saved"],
        gaps,
        f"{run.label}: differences of {metric} in points, with 95% intervals for new images and new draws of labels, "
        "not for a new pretraining run",
        runs,
    )
    notes = [Text(f"{run.name}: {note}") for note in run.summary.get("notes", [])]
    left_out = [Text(f"{run.name}: left out, {name}") for name in run.summary.get("left_out", [])]
    return [*_curves(run), scores, *([gap] if gaps else []), *notes, *left_out]


def frozen_parts(run: FoundRun) -> list[Block]:
    """Score by what was trained."""
    table = run.table("table")
    rows: list[list[Cell]] = [
        [row["trainable"], row["arm"], count(row["labels"]), row_estimate(row, value="mean")]
        for row in table.to_dict("records")
    ]
    metric = metric_name(run.summary["metric"])
    caption = f"{run.label}: {metric} on validation by what is trained, mean [95% interval]; all else is frozen"
    blocks: list[Block] = [Table(["trained", "start", "labels", metric], rows, caption, [run.name])]
    return [*blocks, *pictures(run, frozen_parts="Score by what is trained, a marker for each initialisation")]


def tested(runs: Sequence[FoundRun]) -> list[Block]:
    """Scores of networks on the test part, and the confusion matrix of one network of each arm and method."""
    rows: list[list[Cell]] = []
    for run in runs:
        scores = run.table("scores").set_index("score")
        cells = [row_estimate(scores.loc[name]) if name in scores.index else "" for name in TEST_SCORES]  # type: ignore[arg-type]  # a row
        images = count(run.summary["images"])
        rows.append([run.name.removeprefix("test/"), ", ".join(run.marks) or "real", images, *cells])
    columns = ["network", "X-rays", "images", *(metric_name(name) for name in TEST_SCORES)]
    caption = "Each network on the test part [95% interval over patients or duplicate groups]"
    blocks: list[Block] = [Table(columns, rows, caption, [run.name for run in runs], len(rows) > MOST_ROWS)]
    for run in _most_labels(runs):
        title = f"Confusion matrix on the test part of {run.label}, as counts and as shares of the label"
        blocks += pictures(run, confusion_matrix=title)
        blocks += _classes(run)
    return blocks


def sections_of_answers(runs: Sequence[FoundRun]) -> dict[str, tuple[str, list[Any]]]:
    """By anchor: title and what to show, a list of (run or runs, function), or what is missing."""
    compared = in_order(runs)
    frozen, tests = ([run for run in runs if run.kind == kind] for kind in (FROZEN, TEST))
    no_comparison = Missing("No comparison of initialisations has been run.", COMPARE)
    return {
        "answer": (
            "Does pretraining help?",
            [(compared, answer)] if compared else [no_comparison],
        ),
        "efficiency": (
            "Label efficiency",
            [(run, efficiency) for run in compared] or [no_comparison],
        ),
        "frozen": (
            "Frozen parts",
            [(run, frozen_parts) for run in frozen] or [Missing("Which layers may be frozen was not tried.", FREEZE)],
        ),
        "test": (
            "The test part: confusion and calibration",
            [(tests, tested)] if tests else [Missing("The test part has not been read.", TESTING)],
        ),
    }


def _sentences(run: FoundRun) -> list[Text]:
    """Counts of a comparison's 95% intervals beside 0 for each pair of arms; a verdict on encoders against random."""
    texts = []
    stored = run.table("differences")
    flip = (stored["arm"] == "random").to_numpy()
    swapped = stored.rename(columns={"arm": "reference", "reference": "arm", "low": "high", "high": "low"})
    swapped[["difference", "low", "high"]] *= -1
    table: Any = pd.concat([stored[~flip], swapped[flip]])
    # a fine-tuning that is nowhere better than the probe that it starts from is that probe, and counts once
    pairs = len(table)
    table = table.drop_duplicates(["arm", "reference", "labels", "difference", "low", "high"])
    once = "; a fine-tuning that gained nothing on its probe counts as that probe" if len(table) < pairs else ""
    for (arm, reference), rows in table.groupby(["arm", "reference"], sort=False):
        known = int((rows["low"].notna() & rows["high"].notna()).sum())
        above, below = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
        text = (
            f"{run.label}, {PARTS[run.summary['part']]}: {arm} is better than {reference} in {above} of {known} "
            f"pairs of method and number of labels, worse in {below}, not told apart in {known - above - below} "
            f"(95% intervals, each by itself{once}). "
            f"{_at(rows, rows['labels'].min())} {_at(rows, rows['labels'].max())}"
        )
        lead = _verdict(above, below, known) if reference == "random" and arm != "imagenet" else f"{arm}, {reference}:"
        texts.append(Text(text, lead=lead))
    return texts


def _share(fraction: float) -> Cell:
    """Of the labels of the train part."""
    return Number(f"{100 * fraction:.3g}%", fraction)


def _curves(run: FoundRun) -> list[Block]:
    alt = f"Score over the number of labels, a line with its interval for each initialisation, of {run.label}"
    return [*pictures(run, label_efficiency=alt)]


def _verdict(above: int, below: int, pairs: int) -> str:
    """One interval of many lies beside 0 by chance now and then: less than a fifth of them are no "in part"."""
    if pairs == 0:
        return "Not known: no intervals."
    if above and below:
        return "Mixed."
    if above + below <= pairs / 5:
        return "Not shown." if above + below == 0 else "Hardly shown."
    return ("Yes" if above else "It hurts") + ("." if above + below > pairs / 2 else ", in part.")


def _at(rows: Any, labels: float) -> str:
    """The differences at one number of labels, in words."""
    found = rows[rows["labels"] == labels].to_dict("records")
    keys = ("difference", "low", "high")
    points = [
        f"{METHOD_NAMES[r['method']]} {interval_text(*(100 * r[key] for key in keys), form='+.1f')}" for r in found
    ]
    return f"With {labels:,.0f} labels, in points: {', '.join(points)}."


def _most_labels(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Of each comparison, arm and method, the first draw's network that learnt from most labels."""
    best: dict[Any, FoundRun] = {}
    for run in runs:
        trained = run.config["trained"]
        key = (run.name.rpartition("/")[0], trained["encoder"], trained["method"], trained["trainable"])
        rank = (trained["label_fraction"], -trained["label_draw"])
        held = best.get(key)
        if held is None or rank > (held.config["trained"]["label_fraction"], -held.config["trained"]["label_draw"]):
            best[key] = run
    return list(best.values())


def _classes(run: FoundRun) -> list[Block]:
    if not (run.folder / "classes.csv").exists():
        return []
    table = run.table("classes")
    scores = list(dict.fromkeys(table["score"]))
    rows: list[list[Cell]] = []
    for name, chosen in table.groupby("class", sort=False):
        by_score = {row["score"]: row for row in chosen.to_dict("records")}
        rows.append([str(name), *(row_estimate(by_score[score]) for score in scores)])
    caption = f"{run.label}: each class against the rest [95% interval]"
    temperature = number(run.summary["temperature"], ".2f")
    note = Text(
        f"Temperature {temperature.text if not isinstance(temperature, str) else temperature}, fitted on validation."
    )
    return [Table(["class", *map(metric_name, scores)], rows, caption, [run.name]), note]
