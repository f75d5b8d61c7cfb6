"""The first lines of the page: what pretraining is worth, at how many labels, and what speaks against it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from utils.report.blocks import Block, cell, figures, intervals, table
from utils.report.runs import FoundRun
from utils.wording import HEADLINE, OVER_DRAWS, headline_range, interval_text, labels_text, metric_name, way_name

PARTS = {"comparison": "validation", "test comparison": "the test part"}
CAUTION = (
    "Each 95% interval stands by itself: where nothing differs, about one in 20 excludes 0. A number without brackets "
    "has too few draws, folds or X-rays for an interval."
)
MAX_AGAINST = 3  # networks that are named beside the answer: those that lose most
BORDER = "only the border"  # X-rays of an audit without all but their border, and the head that is fitted to them
WHOLE, REFITTED = "as is", "refitted"


def answer(runs: Sequence[FoundRun]) -> list[Block]:
    """Say what each comparison found, and what speaks against it."""
    verdicts = [block for run in comparisons(runs) for block in _verdicts(run)]
    return [*verdicts, *_elsewhere(runs), *_border(runs), *([Block("", text=CAUTION)] if verdicts else [])]


def _elsewhere(runs: Sequence[FoundRun]) -> list[Block]:
    """Say how far scores fall on another collection."""
    found = [run for run in runs if run.kind == "external test"]
    return [
        Block(
            "Another hospital:",
            text=f"{run.summary['tested']} ({run.origin}) loses {cell(run.summary['drop'])} of its "
            f"{metric_name(run.summary['metric'])} on {run.summary['collection']}: {cell(run.summary['internal'])} on "
            f"the test part, {cell(run.summary['outside'])} there.",
        )
        for run in sorted(found, key=lambda run: -run.summary["drop"][0])[:MAX_AGAINST]
    ]


def _border(runs: Sequence[FoundRun]) -> list[Block]:
    """Say what the border of the X-rays alone gives away."""
    heads = {run.label: (run.summary, run.summary["scores"]) for run in runs if run.kind == "audit"}
    found = {label: (of, scores[BORDER][REFITTED]) for label, (of, scores) in heads.items() if BORDER in scores}
    return [
        Block(
            "Border alone:",
            text=f"{label}: a new head gets {metric_name(of['metric'])} {cell(border)} from the border of the X-rays, "
            f"{cell(of['scores'][WHOLE][REFITTED])} from whole ones; chance is {of['chance']:.2f}.",
        )
        for label, (of, border) in sorted(found.items(), key=lambda one: -one[1][1][0])[:MAX_AGAINST]
    ]


def comparisons(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Return the comparisons, those on the test part in place of what they score."""
    tested = {run.name.removeprefix("test/").removesuffix("/all") for run in runs if run.kind == "test comparison"}
    return [run for run in runs if run.kind in PARTS and run.name not in tested]


def comparison(run: FoundRun) -> list[Block]:
    """Show a comparison's figure, its scores by the main ways and, folded, by each way of training."""
    if not _is_scored(run):
        return []
    reasons = [f"left out: {name}: {reason}" for name, reason in run.summary.get("left_out", {}).items()]
    return [
        *figures(run, label_efficiency="score over the number of labels, one line with its interval per arm"),
        *(_compared(run, headline) for headline in (True, False)),
        *(Block(f"{run.name}:", text=note) for note in [*run.summary.get("notes", []), *reasons]),
    ]


def _is_scored(run: FoundRun) -> bool:
    return (run.folder / "curves.csv").exists()


def _compared(run: FoundRun, headline: bool) -> Block:
    """Return the arms' scores, their differences in points, and the labels that one needs for the other's score."""
    curves, gaps, place = run.csv("curves"), run.csv("differences"), ["way", "labels"]
    curves["cell"] = intervals(curves, "mean")
    rows: Any = curves[curves["headline"]].assign(way=HEADLINE) if headline else curves
    shown = rows.pivot_table("cell", place, "arm", aggfunc="first", sort=False)[[*dict.fromkeys(rows["arm"])]]
    for (arm, reference), pair in gaps.set_index(place).groupby(["arm", "reference"], sort=False):
        points = intervals(100 * pair[["difference", "low", "high"]], "difference", "+.1f")
        shown[f"{arm} minus {reference}, points"] = pd.Series(points, pair.index)
        if headline:
            known = gaps[(gaps["arm"] == arm) & (gaps["reference"] == reference)].dropna(subset="reference_needs")
            tried = headline_range(curves, reference)
            needs = [labels_text(row, "reference_needs", *tried) for row in known.to_dict("records")]
            shown[f"for {arm}'s score {reference} needs"] = pd.Series(needs, known.set_index(place).index)
    shown = shown.reset_index()
    shown["way"] = shown["way"].map(way_name)
    draws, folds = int(curves["draws"].min()), int(curves["folds"].min())
    drawn = f"{draws} draw{'s' * (draws != 1)} of the labels in {folds} fold{'s' * (folds != 1)}"
    what = "main ways" if headline else "each way of training"
    caption = f"{run.label}, {what}: {metric_name(run.summary['metric'])} on {PARTS[run.kind]}, mean of {drawn}"
    return table(f"{caption} {OVER_DRAWS}", shown, folded=not headline)


def _verdicts(run: FoundRun) -> list[Block]:
    """Say for each pair of arms at how many labels their main ways differ."""
    if not _is_scored(run):
        return [Block(f"{run.label}:", text="confusion_matrix.py scores its test rows.")]
    gaps, curves, blocks = run.csv("differences"), run.csv("curves"), []
    for (arm, reference), rows in gaps[gaps["way"] == HEADLINE].groupby(["arm", "reference"], sort=False):
        _, most = headline_range(curves, reference)
        text = verdict(rows.sort_values("labels"), arm, reference, most)
        blocks.append(Block(f"{run.label}, {PARTS[run.kind]}:", text=text))
    return blocks


def verdict(gaps: Any, arm: str, reference: str, most: int) -> str:
    """Sum up differences of one pair, rows of ascending numbers of labels; `most` is the largest of the reference."""
    better, worse, unknown = gaps["low"] > 0, gaps["high"] < 0, gaps["low"].isna() | gaps["high"].isna()
    parts = [f"with {row['labels']:,} labels {_gain(row, arm, most)}" for row in gaps[better].to_dict("records")]
    for row in gaps[worse].to_dict("records"):
        lost = _points(-row["difference"], -row["high"], -row["low"])
        parts.append(f"with {row['labels']:,} labels {arm} is {lost} points worse")
    if len(open_ := gaps[~(better | worse | unknown)]):
        parts.append(f"with {_numbers(open_['labels'], gaps['labels'])} labels nothing was shown")
    if unknown.any():
        found = ", ".join(f"{100 * gap:+.1f}" for gap in gaps.loc[unknown, "difference"])
        which = _numbers(gaps.loc[unknown, "labels"], gaps["labels"])
        parts.append(f"with {which} labels there are too few draws or folds to tell ({found} points)")
    return f"{arm} against {reference}: {'; '.join(parts)}."


def _gain(row: Any, arm: str, most: int) -> str:
    """Say how many labels an arm saves, with the interval in brackets, or else by how many points it is better."""
    saved, low, high = (row[f"reference_needs{end}"] - row["labels"] for end in ("", "_low", "_high"))
    beyond = most - row["labels"]

    def text(labels: float) -> str:
        return f"more than {beyond:,}" if np.isinf(labels) else f"{max(float(f'{labels:.2g}'), 0):,.0f}"

    if not (beyond > 0 if np.isinf(saved) else saved > 0):
        return f"{arm} is {_points(row['difference'], row['low'], row['high'])} points better"
    interval = " [the whole interval]" if low == np.inf else f" [{text(low)} to {text(high)}]" * (not np.isnan(low))
    return f"{arm} saves {'about ' * bool(np.isfinite(saved))}{text(saved)} labels{interval}"


def _points(*shares: float) -> str:
    return interval_text(*(100 * share for share in shares), form=".1f")


def _numbers(chosen: Any, of: Any) -> str:
    """Return numbers of labels as words: "20, 93 and 187", or "187 or more" if no larger one is left out."""
    chosen = [int(number) for number in chosen]
    if len(chosen) > 1 and chosen == [int(number) for number in of][-len(chosen) :]:
        return f"{chosen[0]:,} or more"
    *first, last = (f"{number:,}" for number in chosen)
    return f"{', '.join(first)} and {last}" if first else last
