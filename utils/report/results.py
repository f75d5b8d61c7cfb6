"""What encoders are worth and what networks look at: comparisons, the test part, maps. One function per kind of run."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from utils.intervals import (
    HEADLINE,
    SALIENCY_NAMES,
    interval_scope,
    interval_text,
    metric_name,
    savings_sentence,
    way_name,
)
from utils.report.content import Block, Note, count, estimate, number, table, triple
from utils.report.runs import FoundRun

SCORED_ON = {"comparison": "the validation part", "test comparison": "the test part"}
UNSCORED = "confusion_matrix.py scores its test rows."
TEST_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auroc_by_study", "auprc", "ece")
TEST_SCORES += ("ece_after_temperature_scaling",)
PAGE = {  # tables of a tested network
    "classes": "each class against the rest [95% interval]",
    "operating_points": "sensitivity and specificity at thresholds chosen on validation [95% interval]",
    "conformal": "conformal sets that promise to hold the right class for 90% of the X-rays [95% interval]",
    "subgroups": "score of subgroups [95% interval]",
}
MAX_ROWS = 12  # a longer table of tested networks is folded
QUANTITIES = {
    "lung mass": "lung_mass",
    "lung mass over area (1 is chance)": "lung_mass_over_area",
    **{name: name.replace(" ", "_") for name in ("peak in lungs", "deletion", "insertion")},
}


def answers(runs: Sequence[FoundRun]) -> list[Block]:
    """Show what each comparison says, and the figure of the first."""
    notes: list[Block] = [note for run in runs if _is_scored(run) for note in _verdicts(run)]
    return [*notes, *_curves(runs[0])] or [Note(UNSCORED, f"{runs[0].label}:")]


def comparison(run: FoundRun) -> list[Block]:
    """Show a comparison's scores and the differences between its arms; the headline ways come first."""
    if not _is_scored(run):
        return [Note(UNSCORED, f"{run.label}:")]
    curves, differences = run.csv("curves"), run.csv("differences")
    metric, arms = metric_name(run.summary["metric"]), dict.fromkeys(curves["arm"])
    score, setting = estimate("mean"), {"way": lambda row: way_name(row["way"]), "labels": count("labels")}
    both: Any = pd.concat([curves[curves["headline"]].assign(way=HEADLINE), curves])
    rows = [
        {"way": way, "labels": labels, "arms": {row["arm"]: row for row in cell.to_dict("records")}}
        for (way, labels), cell in both.groupby(["way", "labels"], sort=False)
    ]
    scores = {arm: lambda row, arm=arm: score(row["arms"][arm]) if arm in row["arms"] else "not run" for arm in arms}
    draws, folds = int(curves["draws"].min()), int(curves["folds"].min())
    drawn = f"{_many(draws, 'draw')} of the labels in {_many(folds, 'fold')}"
    where = f"{metric} on {SCORED_ON[run.kind]}, mean [95% interval] of {drawn}"
    limits = int(curves["labels"].min()), int(curves["labels"].max())
    gaps = {
        **setting,
        "difference": lambda row: f"{row['arm']} - {row['reference']}",
        "points": estimate("difference", "+.1f", scale=100),
        "labels saved": lambda row: (
            savings_sentence(row, row["arm"], row["reference"], *limits) if row["way"] == HEADLINE else ""
        ),
    }
    scope = interval_scope(dict(curves.groupby("arm", sort=False)["starts"].max()))
    intervals = f", with 95% intervals for {scope}" if curves["low"].notna().any() else ""
    caption = f"differences of {metric} in points{intervals}"
    reasons = [f"left out: {name}: {reason}" for name, reason in run.summary.get("left_out", {}).items()]
    blocks: list[Block] = [*_curves(run), run.table(where, rows, {**setting, **scores})]
    blocks += [run.table(caption, differences, gaps)] if len(differences) else []
    return [*blocks, *(Note(note, f"{run.name}:") for note in [*run.summary.get("notes", []), *reasons])]


def frozen_parts(run: FoundRun) -> list[Block]:
    """Show the score by what is trained."""
    metric = metric_name(run.summary["metric"])
    columns = {"trained": "trainable", "start": "arm", "labels": count("labels"), metric: estimate("mean")}
    caption = f"{metric} on validation by what is trained, mean [95% interval]; everything else is frozen"
    drawn = run.figures(frozen_parts="score by what is trained, one marker per initialisation")
    return [run.table(caption, run.csv("table"), columns), *drawn]


def tested(runs: Sequence[FoundRun]) -> list[Block]:
    """Show scores on the test part, and the page of one network for each arm."""
    rows = [{**run.summary, **run.csv("scores").set_index("score").to_dict("index"), "run": run.label} for run in runs]
    columns = {"network": "run", "images": count("images"), **{metric_name(name): _score(name) for name in TEST_SCORES}}
    columns["temperature, fitted on validation"] = number("temperature", ".2f")
    columns["validation labels"] = count("validation_labels")
    caption = "Each network on the test part [95% interval over patients or duplicate groups]"
    blocks: list[Block] = [table(caption, rows, columns, [run.name for run in runs], len(rows) > MAX_ROWS)]
    for run in _most_labels(runs):
        drawn = {
            "confusion_matrix": "confusion matrix on the test part, as counts and as shares of each label",
            "roc": "ROC curves on the test part, one line for each class or finding",
            "reliability": "how often the network is right over the probability that it states, on the test part",
        }
        blocks += [*run.figures(**drawn), *_clinic(run)]
    return blocks


def external(runs: Sequence[FoundRun]) -> list[Block]:
    """Show scores on another collection beside those on the test part, and a confusion matrix for each collection."""
    blocks: list[Block] = []
    for where in dict.fromkeys(run.summary["collection"] for run in runs):
        chosen = [run for run in runs if run.summary["collection"] == where]
        lacks = ", ".join(chosen[0].summary["missing"])
        mark = " (synthetic)" if chosen[0].synthetic else ""
        caption = f"{metric_name(chosen[0].summary['metric'])} on {where}{mark}, all images of another collection"
        scored = {"test part": "internal", "external": "outside"}
        columns: dict[str, Any] = {"network": lambda row: row["tested"], "images": count("images")}
        columns |= {heading: triple(key, ".3f") for heading, key in scored.items()}
        columns["drop"] = triple("drop", "+.3f")
        blocks += [table(f"{caption} [95% interval]", [run.summary for run in chosen], columns)]
        blocks += [Note(f"{where} has no images of {lacks}, left out of both scores.")] if lacks else []
        blocks += chosen[0].figures(confusion_matrix=f"confusion matrix on {where}, all images")
    return blocks


def all_films(runs: Sequence[FoundRun]) -> list[Block]:
    """Say of each classifier of all films whose scores belong to it."""
    return [Note(f"{run.summary['note']}.", f"{run.name}:") for run in runs]


def predictions(runs: Sequence[FoundRun]) -> list[Block]:
    """List what networks were asked to predict."""
    columns = {"predictions": "run", "X-rays": count("images"), "files left out": count("rejected")}
    columns["temperature"] = number("temperature", ".2f")
    return [table("Predictions", [{**run.summary, "run": run.label} for run in runs], columns)]


def maps(run: FoundRun) -> list[Block]:
    """Show quantities of each network's saliency maps, and their differences from the first network's."""
    found, method = run.summary, SALIENCY_NAMES[run.config["method"]]
    networks = [{"network": name, "sanity": "not checked", **values} for name, values in found["checkpoints"].items()]
    first = next(iter(found["checkpoints"]))
    gaps = [{"networks": f"{name} - {first}", **values} for name, values in found["differences"].items()]
    images = f"{found['images']} X-rays, {found['with_lung_mask']} with a lung mask"
    columns = {"network": "network", **_quantities(".3f"), "sanity check": "sanity"}
    blocks: list[Block] = [run.table(f"{method} on {images}; mean [95% interval]", networks, columns)]
    if gaps:
        caption = "differences on the same images; mean [95% interval]"
        blocks.append(run.table(caption, gaps, {"networks": "networks", **_quantities("+.3f")}))
    blocks += [Note(note, f"{run.name}:") for note in found.get("notes", [])]
    return [*blocks, *run.figures(panel=f"X-rays with the {method} of each network over them, one row per network")]


def audit(run: FoundRun) -> list[Block]:
    """Show scores on X-rays with parts removed, lung mass by class, the source probe and the verdict."""
    found, scores, masses = run.summary, run.csv("scores"), run.csv("lung_mass")
    metric, source = metric_name(found["metric"]), found.get("source")
    scores = scores[scores["score"] == found["metric"]]
    caption = f"{metric} on {found['images']:,} test X-rays [95% interval], chance {found['chance']:.2f}"
    columns = {"X-rays": "images", "head": "head", metric: estimate()}
    blocks: list[Block] = [Note(found["verdict"], f"{run.label}:"), run.table(caption, scores, columns)]
    if len(masses):
        columns = {"class": "class", "method": lambda row: SALIENCY_NAMES[row["method"]], "images": count("images")}
        columns["lung mass over area (1 is chance)"] = estimate(form=".2f")
        blocks.append(run.table("lung mass by class [95% interval]", masses, columns))
    if source:
        accuracy = interval_text(source["value"], source["low"], source["high"])
        alone = f"; from the class alone: {source['by_class']:.3f}" if "by_class" in source else ""
        text = (
            f"a probe predicts the source of an X-ray with balanced accuracy {accuracy}, chance {source['chance']:.2f}"
        )
        blocks.append(Note(f"{text}{alone}.", f"{run.label}:"))
    return [*blocks, *run.figures(audit="score by what is left of the X-rays, and beside it what that looks like")]


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _is_scored(run: FoundRun) -> bool:
    return (run.folder / "curves.csv").exists()


def _verdicts(run: FoundRun) -> list[Block]:
    """Count the headline differences above and below 0 for each pair of arms; encoders against random get a verdict."""
    gaps: Any = _towards_random(run.csv("differences").query("way == @HEADLINE"))
    notes: list[Block] = []
    for (arm, reference), rows in gaps.groupby(["arm", "reference"], sort=False):
        known = int(rows[["low", "high"]].notna().all(axis=1).sum())
        above, below = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
        counts = (
            f"{arm} is better than {reference} at {above} of {known} numbers of labels, worse at {below}; no "
            f"difference is shown at {known - above - below} (95% intervals, each by itself)"
        )
        found = counts if known else f"{arm} beside {reference}"
        text = f"{run.label}, {SCORED_ON[run.kind]}, headline ways: {found}. {_at(rows)}"
        judged = reference == "random" and arm != "imagenet"
        notes.append(Note(text, _verdict(above, below, known) if judged else f"{arm}, {reference}:"))
    return notes


def _towards_random(gaps: Any) -> Any:
    """Swap arm and reference where the arm is "random", so that random is always the reference."""
    flip = gaps["arm"] == "random"
    swapped = gaps[flip].rename(columns={"arm": "reference", "reference": "arm", "low": "high", "high": "low"})
    swapped[["difference", "low", "high"]] *= -1
    return pd.concat([gaps[~flip], swapped])


def _verdict(above: int, below: int, pairs: int) -> str:
    """Sum up. By chance alone some intervals exclude 0, so up to a fifth of them are not a "Yes, in part"."""
    if pairs == 0:
        return "Not known: no intervals."
    if above and below:
        return "Mixed."
    if above + below <= pairs / 5:
        return "Not shown." if above + below == 0 else "Hardly shown."
    return ("Yes" if above else "It hurts") + ("." if above + below > pairs / 2 else ", in part.")


def _at(rows: Any) -> str:
    """Say the differences at the fewest and the most labels."""
    first, last = rows.sort_values("labels").iloc[[0, -1]].to_dict("records")
    points = [
        f"with {row['labels']:,.0f} labels "
        + interval_text(*(100 * row[key] for key in ("difference", "low", "high")), form="+.1f")
        for row in ([first, last] if len(rows) > 1 else [first])
    ]
    return f"In points: {', '.join(points)}."


def _curves(run: FoundRun) -> list[Any]:
    return run.figures(
        label_efficiency="score over the number of labels, one line with its interval per initialisation"
    )


def _score(name: str) -> Any:
    return lambda row: estimate()(row[name]) if isinstance(row.get(name), dict) else ""


def _quantities(form: str) -> dict[str, Any]:
    return {heading: triple(name, form) for heading, name in QUANTITIES.items()}


def _most_labels(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Return, for each comparison and arm, the network that has learnt from most labels (of several: the first)."""
    best: dict[Any, FoundRun] = {}
    for run in sorted(runs, key=lambda run: -run.summary["labels"]):
        best.setdefault((run.folder.parent, run.summary["arm"]), run)
    return [run for run in runs if run in best.values()]


def _clinic(run: FoundRun) -> list[Block]:
    """Show classes, operating points, conformal sets and subgroups, as far as the run has them."""
    found = {name: run.csv(name) for name in PAGE if (run.folder / f"{name}.csv").exists()}
    labels, rates = count("validation_labels"), {rate: _score(rate) for rate in ("sensitivity", "specificity")}
    scores = dict.fromkeys(found["classes"]["score"]) if "classes" in found else {}
    columns: dict[str, dict[str, Any]] = {
        "classes": {"class": "class", **{metric_name(name): _score(name) for name in scores}},
        "operating_points": {"class": "class", "chosen on validation": "rule", **rates},
        "conformal": {"class": "class", "images": count("images"), "right class in the set": estimate("coverage")},
        "subgroups": {"detail": "detail", "group": "group", "images": count("images"), "score": estimate()},
    }
    columns["operating_points"]["validation labels"] = lambda row: labels(row["sensitivity"])
    columns["conformal"] |= {"classes in a set": number("mean_size", ".2f"), "empty sets": number("empty", ".2f")}
    columns["conformal"]["validation labels"] = labels
    columns["subgroups"]["note"] = lambda row: row["note"] if isinstance(row["note"], str) else ""
    for name, key in {"classes": "score", "operating_points": "rate"}.items():
        if name in found:
            found[name] = _wide(found[name], [at for at in ("class", "rule") if at in found[name]], key)
    return [run.table(PAGE[name], rows, columns[name], name == "operating_points") for name, rows in found.items()]


def _wide(frame: Any, keys: list[str], name: str) -> list[dict[str, Any]]:
    """Return a row for each value of `keys`, with a dict of the other columns for each value of `name`."""
    return [
        {**rows.iloc[0][keys], **rows.set_index(name).to_dict("index")} for _, rows in frame.groupby(keys, sort=False)
    ]
