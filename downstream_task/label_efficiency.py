"""Label efficiency: scores over labels, the arms' differences and the labels saved, each with its interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from downstream_task.predictions import labels_and_probabilities, read_predictions
from utils import plots
from utils.intervals import (
    Difference,
    interval_scope,
    interval_text,
    labels_text,
    metric_name,
    paired_difference,
    resampled_scores,
    savings_sentence,
)
from utils.logging_utils import Run
from utils.metrics import fit_plateau, labels_for, weighted_scores
from utils.seeds import mixed_seed

REPEATS = 500  # resamples of the images behind an interval
MIN_POINTS = 4  # numbers of labels to which a plateau is fitted
MAX_MISS = 0.03  # of a fit at the scores; one that misses by more predicts nothing
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
    encoders   [K] the encoder of each draw
    """

    arm: str
    method: str
    fraction: float
    labels: int
    scores: np.ndarray
    resampled: np.ndarray
    units: int
    encoders: tuple[str, ...]

    def interval(self) -> tuple[float, float, float]:
        """Return mean and bounds in 0..1 for new images and new draws; NaN bounds for a single draw."""
        scores, resampled = self._by(draw_units(self))
        found = paired_difference(scores, 0 * scores, resampled, 0 * resampled, self.units)
        return found.mean, *np.clip([found.low, found.high], 0, 1)  # Student's t knows no bounds

    def less(self, other: "Cell") -> Difference:
        """Return the difference to another cell of the same draws, paired by draw and image."""
        units = draw_units(self, other)
        (ours, ours_resampled), (theirs, theirs_resampled) = self._by(units), other._by(units)
        found = paired_difference(ours, theirs, ours_resampled, theirs_resampled, self.units)
        return found._replace(low=float(np.clip(found.low, -1, 1)), high=float(np.clip(found.high, -1, 1)))

    def _by(self, units: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return scores [U] and resampled [R, U], each the mean over the draws of a unit."""
        resampled = np.stack([self.resampled[:, unit].mean(1) for unit in units], axis=1)
        return np.array([self.scores[unit].mean() for unit in units]), resampled


def draw_units(*cells: Cell) -> list[np.ndarray]:
    """Return the draws that count as one observation: each draw, or those that share one of an arm's pretrainings.

    Draws that share a pretraining share its luck, so that an interval for new pretrainings must not count them twice.
    """
    for cell in cells:
        if 1 < len(set(cell.encoders)) < len(cell.encoders):
            names = np.array(cell.encoders)
            return [np.flatnonzero(names == name) for name in dict.fromkeys(cell.encoders)]
    return [np.array([k]) for k in range(len(cells[0].scores))]


def read_cells(table: pd.DataFrame, folder: Path, file: str) -> list[Cell]:
    """Return the cells of a comparison's runs, arm by arm, from the predictions `file` of each run in `folder`.

    table  one row per run; columns trial, arm, method, fraction, draw, labels, encoder
    """
    return [
        _read_cell(rows.sort_values("draw"), folder, file)
        for _, of_arm in table.groupby("arm", sort=False)
        for _, rows in of_arm.groupby(CELL, sort=False)
    ]


def with_best(cells: Sequence[Cell], table: pd.DataFrame) -> list[Cell]:
    """Return the cells, after those of the method "best": of each arm and fraction the one whose rows are `best`."""
    best = set(table.loc[table["best"], CELL].itertuples(index=False, name=None))
    chosen = [replace(cell, method="best") for cell in cells if (cell.arm, cell.method, cell.fraction) in best]
    return [*chosen, *cells]


def _read_cell(rows: pd.DataFrame, folder: Path, file: str) -> Cell:
    first = rows.iloc[0]
    tables = [read_predictions(folder / trial / file) for trial in rows["trial"]]
    labels, predictions = zip(*map(labels_and_probabilities, tables), strict=True)
    groups, once = tables[0]["group"].to_numpy(), np.ones((1, len(tables[0])))
    return Cell(
        *(first[key] for key in CELL),
        labels=int(first["labels"]),
        scores=np.array([weighted_scores(labels[0], p, once)[0] for p in predictions]),
        resampled=resampled_scores(weighted_scores, predictions, labels[0], groups, REPEATS),
        units=len(np.unique(groups)),
        encoders=tuple(rows["encoder"]),
    )


def curve_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return one row per cell: arm, method, fraction, labels, draws, mean, low, high."""
    rows = [(c.arm, c.method, c.fraction, c.labels, len(c.scores), *c.interval()) for c in cells]
    return pd.DataFrame(rows, columns=[*CELL, "labels", "draws", "mean", "low", "high"])


def difference_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return the differences of each arm's methods to the first arm's best method.

    And the labels that the first arm needs for the same score.
    """
    reference = cells[0].arm
    curve = [cell for cell in cells if (cell.arm, cell.method) == (reference, "best")]
    base = {cell.fraction: cell for cell in curve}
    rows: list[dict[str, Any]] = []
    for cell in cells:
        if cell.arm != reference:
            gap = cell.less(base[cell.fraction])
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
    generator, units = np.random.default_rng(mixed_seed("labels needed", seed)), draw_units(cell, *curve)
    crossings = []
    for r in range(len(cell.resampled)):
        draws = np.concatenate([units[k] for k in generator.integers(0, len(units), len(units))])
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


def plateau_table(cells: Sequence[Cell], target: float, seed: int = 0) -> pd.DataFrame:
    """Fit score(n) = a - b n^-c (arXiv 2510.11553) to each arm's best method over its numbers of labels n.

    Returns one row per arm with MIN_POINTS points: arm, a (the plateau), b, c, by how much the fit `misses` a score at
    most, and the labels needed for the score `target`: interpolated between the numbers compared, 0 if the fewest are
    enough, and beyond the most by the fit, inf if it misses by more than MAX_MISS or does not say so many. a and needed
    have 95% percentile intervals (_low, _high) over images and draws. No rows for a single draw.
    """
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        curve = sorted((c for c in cells if (c.arm, c.method) == (arm, "best")), key=lambda c: c.labels)
        draws = len(curve[0].scores)
        if len(curve) < MIN_POINTS or draws < 2:
            continue
        labels = np.array([cell.labels for cell in curve], dtype=float)
        generator, units = np.random.default_rng(mixed_seed("plateaus", seed)), draw_units(*curve)
        means = [[cell.scores.mean() for cell in curve]]
        for r in range(len(curve[0].resampled)):
            drawn = np.concatenate([units[k] for k in generator.integers(0, len(units), len(units))])
            means.append([cell.resampled[r, drawn].mean() for cell in curve])
        levels = np.array(means)  # [1 + R, n]
        fits = fit_plateau(labels, levels)  # [1 + R, 3]
        a, b, c = fits[0]
        misses = np.abs(a - b * labels**-c - levels[0]).max()
        beyond = labels_for(target, fits)
        beyond[(beyond <= labels[-1]) | (misses > MAX_MISS)] = np.inf
        reached = np.array([_crossing(labels, row, target) for row in levels])
        needed = np.where(np.isinf(reached), beyond, reached)
        low, high = (np.quantile(np.c_[fits[1:, 0], needed[1:]], q, axis=0, method="nearest") for q in (0.025, 0.975))
        rows.append((arm, target, a, low[0], high[0], b, c, misses, needed[0], low[1], high[1]))
    names = ["arm", "target", "a", "a_low", "a_high", "b", "c", "misses", "needed", "needed_low", "needed_high"]
    return pd.DataFrame(rows, columns=names)


def report(run: Run, summary: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    """Write curves.csv, differences.csv, plateaus.csv and figures/label_efficiency.png; return what they say as text.

    summary  of the comparison: metric, chance, part ("validation" or "test"), synthetic, transductive, target_score,
             pretrainings (encoders of the arm that has most)
    """
    curves, differences = curve_table(cells), difference_table(cells)
    plateaus = plateau_table(cells, summary["target_score"])
    for name, table in {"curves": curves, "differences": differences, "plateaus": plateaus}.items():
        run.save_table(name, table)
    metric, is_test = metric_name(summary["metric"]), summary["part"] == "test"
    part = "the test part" if is_test else "validation, also used to make choices"
    title = plots.marked(f"Label efficiency on {part}", summary["synthetic"], summary["transductive"])
    fits = plateaus.query("misses <= @MAX_MISS")
    run.save_figure("label_efficiency", plots.label_efficiency(curves, fits, metric, title, summary["chance"]))
    lines = ["", f"{title}: {metric}, mean [95% interval]", interval_text_table(curves, ["method", "labels"]), ""]
    labels = curves["labels"].tolist()
    for row in differences.query("method == 'best'").to_dict("records"):
        gap = interval_text(*(100 * row[key] for key in ("difference", "low", "high")), form="+.1f")
        sentence = savings_sentence(row, row["arm"], f"{row['reference']}'s best", min(labels), max(labels))
        lines.append(f"{row['labels']:,} labels, best method of each: {gap} points. {sentence}")
    for row in plateaus.to_dict("records"):
        needed = labels_text(row, "needed", "labels", min(labels), max(labels))
        fit = f"fitted plateau {interval_text(row['a'], row['a_low'], row['a_high'], '.2f')}"
        if row["misses"] > MAX_MISS:
            fit = f"no plateau is fitted, since a power law misses a score by {100 * row['misses']:.1f} points"
        lines.append(f"{row['arm']}: {metric} {row['target']:g} needs {needed}; {fit}.")
    lines.append(f"Intervals are for {interval_scope(summary.get('pretrainings', 1))}.")
    if 2 in curves["draws"].tolist():
        lines.append("Two draws say little about the next one: three or more give useful intervals.")
    return "\n".join(lines)


def interval_text_table(table: pd.DataFrame, index: str | list[str]) -> str:
    """Return a table as text, one column per arm: `0.712 [0.680, 0.744]` of each row's mean, low and high.

    Numbers of labels are shown with their share of the train part.
    """
    cells = table.assign(
        cell=[interval_text(*row) for row in table[["mean", "low", "high"]].to_numpy()],
        labels=[f"{n:,} ({100 * share:g}%)" for n, share in zip(table["labels"], table["fraction"], strict=True)],
    )
    return cells.pivot_table("cell", index, "arm", aggfunc="first", sort=False).to_string()
