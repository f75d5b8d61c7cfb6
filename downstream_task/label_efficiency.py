"""Label efficiency: scores over labels, the arms' differences and the labels saved, each with its interval."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from downstream_task.targets import labels_and_probabilities, read_predictions
from utils import plots
from utils.intervals import (
    METHOD_NAMES,
    Difference,
    interval_text,
    metric_name,
    paired_difference,
    resampled_scores,
    savings_sentence,
)
from utils.logging_utils import Run
from utils.metrics import balanced_accuracy, finding_scores

REPEATS = 500  # resamples of the images behind an interval
CELL = ["arm", "method", "fraction"]
DIFFERENCE_COLUMNS = [
    *("arm", "reference", "method", "fraction", "labels", "difference", "low", "high"),
    *("reference_needs", "reference_needs_low", "reference_needs_high"),
]


@dataclass(frozen=True)
class Cell:
    """The runs of one arm, method and fraction, one for each of K draws.

    scores     [K] on the images that they predicted
    resampled  [R, K] on resamples of these images, the same for every cell
    units      groups (patients, duplicates) among the images
    """

    arm: str
    method: str
    fraction: float
    labels: int
    scores: np.ndarray
    resampled: np.ndarray
    units: int

    def interval(self) -> tuple[float, float, float]:
        """Return mean and bounds in 0..1 for new images and new draws; NaN bounds for a single draw."""
        found = paired_difference(self.scores, 0 * self.scores, self.resampled, 0 * self.resampled, self.units)
        return found.mean, *np.clip([found.low, found.high], 0, 1)  # Student's t knows no bounds

    def less(self, other: "Cell") -> Difference:
        """Return the difference to another cell of the same draws, paired by draw and image."""
        found = paired_difference(self.scores, other.scores, self.resampled, other.resampled, self.units)
        return found._replace(low=float(np.clip(found.low, -1, 1)), high=float(np.clip(found.high, -1, 1)))


def read_cells(table: pd.DataFrame, folder: Path, file: str) -> list[Cell]:
    """Return the cells of a comparison's runs, arm by arm, from the predictions `file` of each run in `folder`.

    table  one row per run; columns trial, arm, method, fraction, draw, labels
    """
    return [
        _read_cell(rows.sort_values("draw"), folder, file)
        for _, of_arm in table.groupby("arm", sort=False)
        for _, rows in of_arm.groupby(CELL, sort=False)
    ]


def _read_cell(rows: pd.DataFrame, folder: Path, file: str) -> Cell:
    first = rows.iloc[0]
    tables = [read_predictions(folder / trial / file) for trial in rows["trial"]]
    labels, predictions = zip(*map(labels_and_probabilities, tables), strict=True)
    score = balanced_accuracy if labels[0].ndim == 1 else _mean_auroc
    groups = tables[0]["group"].to_numpy()
    return Cell(
        *(first[key] for key in CELL),
        labels=int(first["labels"]),
        scores=np.array([score(labels[0], p) for p in predictions]),
        resampled=resampled_scores(score, predictions, labels[0], groups, REPEATS),
        units=len(np.unique(groups)),
    )


def curve_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return one row per cell: arm, method, fraction, labels, draws, mean, low, high."""
    rows = [(c.arm, c.method, c.fraction, c.labels, len(c.scores), *c.interval()) for c in cells]
    return pd.DataFrame(rows, columns=[*CELL, "labels", "draws", "mean", "low", "high"])


def difference_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return the differences of each arm to the first one, and the labels that the first needs for the same score."""
    reference = cells[0].arm
    rows: list[dict[str, Any]] = []
    for cell in cells:
        curve = [other for other in cells if (other.arm, other.method) == (reference, cell.method)]
        base = next(other for other in curve if other.fraction == cell.fraction)
        if cell.arm != reference:
            gap = cell.less(base)
            found = {"difference": gap.mean, "low": gap.low, "high": gap.high, **labels_needed(cell, curve)}
            place = {key: getattr(cell, key) for key in (*CELL, "labels")}
            rows.append({**place, "reference": reference, **found})
    return pd.DataFrame(rows, columns=DIFFERENCE_COLUMNS)


def labels_needed(cell: Cell, curve: Sequence[Cell], seed: int = 0) -> dict[str, float]:
    """Return the labels at which `curve` reaches the cell's mean score: reference_needs, with a 95% interval.

    The interval (_low, _high) is the percentile one over images and draws together; of three draws it is rather too
    narrow. Beyond the curve's last point: inf (more labels than were tried); below its first: 0 (fewer).
    """
    curve = sorted(curve, key=lambda point: point.labels)
    labels = np.array([point.labels for point in curve])
    now = _crossing(labels, np.array([point.scores.mean() for point in curve]), cell.scores.mean())
    generator = np.random.default_rng(seed)
    crossings = []
    for r in range(len(cell.resampled)):
        draws = generator.integers(0, len(cell.scores), len(cell.scores))
        levels = np.array([point.resampled[r, draws].mean() for point in curve])
        crossings.append(_crossing(labels, levels, cell.resampled[r, draws].mean()))
    low, high = np.quantile(crossings, (0.025, 0.975), method="nearest") if len(cell.scores) > 1 else (np.nan, np.nan)
    return {"reference_needs": now, "reference_needs_low": low, "reference_needs_high": high}


def _crossing(labels: np.ndarray, levels: np.ndarray, target: float) -> float:
    """Where the curve, made to rise by its running maximum, reaches the target, interpolated over log labels."""
    levels = np.maximum.accumulate(levels)
    if target > levels[-1]:
        return float("inf")
    if target < levels[0]:
        return 0.0
    after = max(1, int(np.searchsorted(levels, target)))
    if len(levels) == 1 or levels[after] == levels[after - 1]:
        return float(labels[after - 1])
    share = (target - levels[after - 1]) / (levels[after] - levels[after - 1])
    return float(np.exp((1 - share) * np.log(labels[after - 1]) + share * np.log(labels[after])))


def report(run: Run, summary: dict[str, Any], curves: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Write curves.csv, differences.csv and figures/label_efficiency.png; return the table and sentences as text.

    summary  of the comparison: metric, chance, part ("validation" or "test"), synthetic, transductive
    """
    run.save_table("curves", curves)
    run.save_table("differences", differences)
    metric, is_test = metric_name(summary["metric"]), summary["part"] == "test"
    part = "the test part" if is_test else "validation, also used to make choices"
    title = plots.marked(f"Label efficiency on {part}", summary["synthetic"], summary["transductive"])
    run.save_figure("label_efficiency", plots.label_efficiency(curves, metric, title, summary["chance"]))
    lines = ["", f"{title}: {metric}, mean [95% interval]", interval_text_table(curves, ["method", "labels"]), ""]
    labels = curves["labels"].tolist()
    for row in differences.to_dict("records"):
        gap = interval_text(*(100 * row[key] for key in ("difference", "low", "high")), form="+.1f")
        sentence = savings_sentence(row, row["arm"], row["reference"], min(labels), max(labels))
        lines.append(f"{METHOD_NAMES[row['method']]}, {row['labels']} labels: {gap} points. {sentence}")
    lines.append("Intervals are for new images and new draws of labels, not for a new pretraining run.")
    if 2 in curves["draws"].tolist():
        lines.append("Two draws say little about the next one: three or more give useful intervals.")
    return "\n".join(lines)


def interval_text_table(table: pd.DataFrame, index: str | Iterable[str]) -> str:
    """Return a table as text, one column per arm: `0.712 [0.680, 0.744]` of each row's mean, low and high."""
    cells = table.assign(cell=[interval_text(*row) for row in table[["mean", "low", "high"]].to_numpy()])
    return cells.pivot_table("cell", index, "arm", aggfunc="first", sort=False).to_string()


def _mean_auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return finding_scores(labels, probabilities)["auroc"]
