"""Scores over labels with intervals, and the arms' differences, from the predictions that runs left."""

from pathlib import Path

import numpy as np
import pandas as pd

from downstream_task.label_savings import labels_needed
from downstream_task.predictions import labels_and_probabilities, read_predictions
from utils.intervals import paired_difference, resampled_scores
from utils.metrics import balanced_accuracy, finding_scores
from utils.wording import interval_text

REPEATS = 500  # resamples of the images behind an interval
DIFFERENCE_COLUMNS = [
    *("arm", "reference", "method", "fraction", "labels", "difference", "low", "high"),
    *("reference_needs", "reference_needs_low", "reference_needs_high"),
]


def analyse(table: pd.DataFrame, folder: Path, file: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Intervals for the runs of a comparison's summary.csv, from the predictions that each left in `file`.

    Returns the curves (arm, method, fraction, labels, mean, low, high) and, for each arm other than the first, its
    differences to the first, paired by draw and image, with the labels that the first needs for the same score.
    Intervals are for new images (by group) and new draws of labels; a single draw has none.
    """
    keys = table[["arm", "method", "fraction"]].drop_duplicates().itertuples(index=False, name=None)
    cells = {
        (arm, method, fraction): _Cell(
            table.query("arm == @arm and method == @method and fraction == @fraction"), folder, file
        )
        for arm, method, fraction in sorted(keys, key=lambda key: list(table["arm"]).index(key[0]))
    }
    curves = [{"arm": a, "method": m, "fraction": f, **cell.row()} for (a, m, f), cell in cells.items()]
    reference = table["arm"].iloc[0]
    differences = []
    for (arm, method, fraction), cell in cells.items():
        if arm == reference:
            continue
        base = cells[reference, method, fraction]
        gap = paired_difference(cell.scores, base.scores, cell.resampled, base.resampled, cell.units)
        others = [c for (a, m, _), c in cells.items() if (a, m) == (reference, method)]
        needed = labels_needed(cell.resampled, cell.scores, [(c.labels, c.scores, c.resampled) for c in others])
        low, high = np.clip([gap.low, gap.high], -1, 1)
        found = {"difference": gap.mean, "low": low, "high": high, **needed}
        row = {"arm": arm, "reference": reference, "method": method, "fraction": fraction, "labels": cell.labels}
        differences.append({**row, **found})
    return pd.DataFrame(curves), pd.DataFrame(differences, columns=DIFFERENCE_COLUMNS)


class _Cell:
    """The runs of one arm, method and fraction: a score a draw, and what resampled images would give."""

    def __init__(self, rows: pd.DataFrame, folder: Path, file: str):
        rows = rows.sort_values("draw")
        tables = [read_predictions(folder / run / file) for run in rows["run"]]
        labels, predictions = zip(*map(labels_and_probabilities, tables), strict=True)
        score = balanced_accuracy if labels[0].ndim == 1 else _mean_auroc
        groups = tables[0]["group"].to_numpy()
        self.labels, self.units = int(rows["labels"].iloc[0]), len(np.unique(groups))
        self.scores = np.array([score(labels[0], p) for p in predictions])
        self.resampled = resampled_scores(score, predictions, labels[0], groups, REPEATS)

    def row(self) -> dict[str, float]:
        nothing = np.zeros_like(self.scores), np.zeros_like(self.resampled)
        over = paired_difference(self.scores, nothing[0], self.resampled, nothing[1], self.units)
        low, high = np.clip([over.low, over.high], 0, 1)  # Student's t knows no bounds
        return {"labels": self.labels, "draws": len(self.scores), "mean": over.mean, "low": low, "high": high}


def interval_cells(table: pd.DataFrame) -> list[str]:
    """`.712 [.680, .744]` for each row's mean, low and high."""
    return [interval_text(*row) for row in table[["mean", "low", "high"]].to_numpy()]


def _mean_auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return finding_scores(labels, probabilities)["auroc"]
