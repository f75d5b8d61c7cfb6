"""Label efficiency: scores over labels, the arms' differences and the labels saved, each with its interval.

All of it is computed from tables of predictions, without the networks that made them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dataset_loader.splits import FOLDS
from downstream_task.predictions import labels_and_probabilities
from utils import plots
from utils.config import UserError
from utils.intervals import MIN_UNITS, Difference, Shared, difference_interval, draw_units, resample_weights
from utils.metrics import fit_plateau, labels_for, weighted_scores
from utils.seeds import mixed_seed
from utils.wording import (
    HEADLINE,
    OVER_DRAWS,
    headline_range,
    interval_scope,
    interval_text,
    labels_text,
    metric_name,
    savings_sentence,
)

REPEATS = 500  # resamples of the images behind an interval
MAX_COUNTS = 2**21  # of images in resamples, which are scored at once
STEPS = 16  # between two numbers of labels, at which a curve is compared with a score
MIN_POINTS = 4  # numbers of labels to which a plateau is fitted
FARTHEST = 10  # times the most labels, up to which a fit predicts
MAX_MISS = 0.03  # of a fit at the scores; one that misses by more predicts nothing
CELL = ["arm", "way", "labels"]
CURVE_COLUMNS = [*CELL, "headline", "draws", "starts", "folds", "mean", "low", "high", "transductive"]
NEEDS = ["reference_needs", "reference_needs_low", "reference_needs_high"]
COMPARED = ["arm", "reference", "way", "labels", "difference", "low", "high", "arm_way", "reference_way"]
DIFFERENCE_COLUMNS = [*COMPARED, *NEEDS]

Read = Callable[[str], pd.DataFrame]  # returns the predictions of a trial, by its name


class Images(NamedTuple):
    """The images of a part, those of all folds together.

    files    M names
    folds    the places of each fold's images among them, in order
    weights  [1 + R, M] how often each is drawn in R resamples of whole groups; in row 0 once
    groups   how many (patients, duplicates) there are
    pool     labels that a fold's train part offers; at least the most that a head learnt from, if folds do not tell
    """

    files: pd.Index
    folds: Mapping[int, np.ndarray]
    weights: np.ndarray
    groups: int
    pool: float


@dataclass(frozen=True)
class Cell:
    """The K heads of one arm, way of training and number of labels.

    draws      K pairs (fold, draw)
    starts     [K] the pretraining of each
    scores     [K] each on its fold's images
    resampled  [R, K] on resamples of the images, the same for every cell
    seen       whether some of them start from an encoder that has seen held-out images
    """

    arm: str
    way: str
    labels: int
    headline: bool
    draws: tuple[tuple[int, int], ...]
    starts: np.ndarray
    scores: np.ndarray
    resampled: np.ndarray
    images: Images
    seen: bool = False


def read_cells(runs: pd.DataFrame, read: Read, part: str) -> list[Cell]:
    """Return the cells of a comparison's runs, arm by arm, with their scores on "val" or "test".

    runs  one row per head; columns trial, arm, way, labels, fold, draw, start, headline, transductive

    Raises UserError if two heads of a fold do not predict the same images.
    """
    images = _images(runs, read, part)
    return [
        _read_cell(rows.sort_values("draw"), read, part, images)
        for _, of_arm in runs.groupby("arm", sort=False)
        for _, rows in of_arm.groupby(CELL, sort=False)
    ]


def _rows(table: pd.DataFrame, part: str) -> Any:
    return table[table["part"] == part]


def _images(runs: pd.DataFrame, read: Read, part: str) -> Images:
    """Return the images of all folds; several folds with the same test part are not of one split of FOLDS."""
    of_fold = {row["fold"]: read(row["trial"]) for row in runs.drop_duplicates("fold").to_dict("records")}
    of_part = {fold: _rows(table, part) for fold, table in of_fold.items()}
    together = pd.concat(of_part.values()).drop_duplicates("file")
    tested = [set(_rows(table, "test")["file"]) for table in of_fold.values()]
    apart = len(tested) == 1 or len(set.union(*tested)) > max(map(len, tested))
    files, groups = pd.Index(together["file"]), together["group"].to_numpy()
    return Images(
        files=files,
        folds={fold: np.sort(files.get_indexer(table["file"].tolist())) for fold, table in of_part.items()},
        weights=resample_weights(groups, REPEATS),
        groups=len(np.unique(groups)),
        pool=(FOLDS - 1) * float(np.mean([len(one) for one in tested])) if apart else float(max(runs["labels"])),
    )


def _read_cell(rows: pd.DataFrame, read: Read, part: str, images: Images) -> Cell:
    scores = []
    for row in rows.to_dict("records"):
        table = _rows(read(row["trial"]), part)
        places = images.files.get_indexer(table["file"].tolist())
        if not np.array_equal(np.sort(places), images.folds[row["fold"]]):
            raise UserError(f"{row['trial']} predicts other images of fold {row['fold']} than the runs beside it.")
        labels, probabilities = labels_and_probabilities(table)
        weights = images.weights[:, places]
        chunks = np.array_split(weights, weights.size // MAX_COUNTS + 1)
        scores.append(np.concatenate([weighted_scores(labels, probabilities, chunk) for chunk in chunks]))
    of_draws, first = np.stack(scores, axis=1), rows.iloc[0]  # [1 + R, K]
    return Cell(
        first["arm"],
        first["way"],
        int(first["labels"]),
        bool(first["headline"]),
        draws=tuple(zip(rows["fold"], rows["draw"], strict=True)),
        starts=rows["start"].to_numpy(),
        scores=of_draws[0],
        resampled=of_draws[1:],
        images=images,
        seen=bool(rows["transductive"].any()),
    )


class Draws(NamedTuple):
    """The D draws that n cells have in common.

    scores     [D, n]
    resampled  [R, D, n] without resamples in which a score is not known
    starts     [n, D] the pretraining of each
    labels     [n]
    images     that they are scored on
    """

    scores: np.ndarray
    resampled: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    images: Images

    def contrast(self, weights: Sequence[float]) -> Difference:
        """Return the sum of the cells' mean scores times weights [n], with its interval; NaN without draws."""
        used, groups = np.flatnonzero(weights), self.images.groups
        if len(self.scores) < 2:
            mean = float((self.scores @ weights).mean()) if len(self.scores) else float("nan")
            return Difference(mean, float("nan"), float("nan"))
        shares = np.abs(weights)[used]
        labels = shares.sum() / (shares / np.maximum(self.labels[used], 1)).sum()  # harmonic mean: noise is as 1 / n
        covariance = np.cov((self.resampled @ weights).T) * groups / max(groups - 1, 1)  # [D, D]
        shared = Shared(covariance, draw_units(*self.starts[used]), min(labels / self.images.pool, 1), groups)
        return difference_interval(self.scores @ weights, shared)

    def means(self) -> np.ndarray:
        """Return the cells' mean scores for new images, labels and pretrainings, [R, n]; NaN for too few of them.

        The images' part is that of the resamples. The units' part, beyond what images explain of their spread, comes
        from the units' deviations times random normal numbers (wild bootstrap, Wu 1986, Ann Stat 14:1261), widened as
        Student's t is.
        """
        units = draw_units(*self.starts)
        of_unit = (units == np.unique(units)[:, None]).astype(float)  # [U, D]
        share, count = of_unit.mean(1, keepdims=True), len(of_unit)
        if count < MIN_UNITS:
            return np.full((len(self.resampled), len(self.labels)), np.nan)
        deviations = [
            share * (of_unit @ scores / of_unit.sum(1, keepdims=True) - scores.mean(0))  # [U, n]
            for scores in (self.scores, *self.resampled)
        ]
        spread, by_images = (deviations[0] ** 2).sum(0), np.var(deviations[1:], axis=0).sum(0)  # [n]
        beyond = deviations[0] * np.sqrt(np.maximum(1 - by_images / np.maximum(spread, 1e-12), 0))
        generator, repeats = np.random.default_rng(mixed_seed("wild bootstrap", 0)), len(self.resampled)
        luck = generator.normal(size=(repeats, count)) * np.sqrt(count / generator.chisquare(count - 1, (repeats, 1)))
        return self.resampled.mean(1) + luck @ beyond


def in_common(*cells: Cell) -> Draws:
    """Return the draws (fold, draw) that all cells have, in the first one's order."""
    drawn = [draw for draw in cells[0].draws if all(draw in cell.draws for cell in cells)]
    places = [[cell.draws.index(draw) for draw in drawn] for cell in cells]
    resampled = np.stack([cell.resampled[:, k] for cell, k in zip(cells, places, strict=True)], axis=2)
    return Draws(
        scores=np.stack([cell.scores[k] for cell, k in zip(cells, places, strict=True)], axis=1),
        resampled=resampled[~np.isnan(resampled).any((1, 2))],
        starts=np.stack([cell.starts[k] for cell, k in zip(cells, places, strict=True)]),
        labels=np.array([cell.labels for cell in cells]),
        images=cells[0].images,
    )


def headlines(cells: Sequence[Cell], arm: str) -> list[Cell]:
    """Return the cells of an arm's headline curve, by numbers of labels."""
    return sorted((cell for cell in cells if cell.arm == arm and cell.headline), key=lambda cell: cell.labels)


def curve_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return one row of the CURVE_COLUMNS per cell."""
    rows = []
    for cell in cells:
        folds = {fold for fold, _ in cell.draws}
        mean, low, high = in_common(cell).contrast([1])
        counts = len(cell.draws), len(set(cell.starts)), len(folds)
        place = cell.arm, cell.way, cell.labels, cell.headline
        rows.append((*place, *counts, mean, *np.clip([low, high], 0, 1), cell.seen))  # Student's t knows no bounds
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def difference_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return the differences of each arm to the first one: of the headline ways, and of each way that both have.

    They are means over the draws that both have, at equal numbers of labels. Rows of headline ways say which these are,
    since the arms' may differ, and how many labels the first arm needs for the same score.
    """
    reference, *arms = dict.fromkeys(cell.arm for cell in cells)
    curve, rows = headlines(cells, reference), []
    for arm in arms:
        base = {(HEADLINE, cell.labels): cell for cell in curve}
        base |= {(cell.way, cell.labels): cell for cell in cells if cell.arm == reference}
        compared = [(HEADLINE, cell) for cell in headlines(cells, arm)]
        for way, cell in [*compared, *((cell.way, cell) for cell in cells if cell.arm == arm)]:
            if other := base.get((way, cell.labels)):
                mean, low, high = in_common(cell, other).contrast([1, -1])
                place = arm, reference, way, cell.labels, mean, *np.clip([low, high], -1, 1), cell.way, other.way
                needs = labels_needed(cell, curve) if way == HEADLINE else {}
                rows.append({**dict(zip(COMPARED, place, strict=True)), **needs})
    return pd.DataFrame(rows, columns=DIFFERENCE_COLUMNS)


def labels_needed(cell: Cell, curve: Sequence[Cell]) -> dict[str, float]:
    """Return the labels at which `curve` reaches the cell's mean score: reference_needs, with a 95% interval.

    The curve, in ascending order, is interpolated over the logarithm of its numbers of labels. The interval (_low,
    _high) reaches from where the curve is no longer surely below the cell to where it is surely above, by the intervals
    of their difference (a test, inverted: Fieller 1954, J R Stat Soc B 16:175). Beyond the curve's last point: inf
    (more labels than were tried); below its first: 0 (fewer). NaN where the differences have no interval.
    """
    curve = [point for point in curve if point.labels]
    if not curve:
        return dict.fromkeys(NEEDS, np.nan)
    corners, steps = np.arange(len(curve)), np.linspace(0, len(curve) - 1, (len(curve) - 1) * STEPS + 1)
    shares = np.stack([np.interp(steps, corners, corner) for corner in np.eye(len(curve))], axis=1)  # [steps, n]
    gaps = np.array([_gap(curve, share, cell) for share in shares])  # [steps, 3]
    tried = np.exp(shares @ np.log([point.labels for point in curve]))
    above = np.minimum.accumulate(gaps[::-1, 1])[::-1]
    found = [_crossing(tried, levels, 0) for levels in (gaps[:, 0], gaps[:, 2], above)]
    known = not np.isnan(gaps[:, 0]).any(), *[not np.isnan(gaps).any()] * 2
    return {name: value if is_known else np.nan for name, value, is_known in zip(NEEDS, found, known, strict=True)}


def _gap(curve: Sequence[Cell], shares: np.ndarray, cell: Cell) -> Difference:
    """Return how far a point between two of a curve, a mean with `shares` [n], is above a cell.

    It is computed from the draws that these have, whatever the curve's other points have: at a number of labels that
    was compared, it is the difference that difference_table gives.
    """
    used = np.flatnonzero(shares)
    return in_common(*(curve[int(k)] for k in used), cell).contrast([*shares[used], -1])


def _crossing(labels: np.ndarray, levels: np.ndarray, target: float) -> float:
    """Return where the curve, made to rise by its running maximum, first reaches the target, over log labels.

    Beyond the last level it is inf, below the first one 0.
    """
    falling, fewer = -np.maximum.accumulate(levels)[::-1], np.log(labels)[::-1]  # of equal levels, the first one counts
    return float(np.exp(np.interp(-target, falling, fewer, left=np.inf, right=-np.inf)))


def plateau_table(cells: Sequence[Cell], target: float) -> pd.DataFrame:
    """Fit score(n) = a - b n^-c (arXiv 2510.11553) to each arm's headline curve over its numbers of labels n.

    Returns one row per arm with MIN_POINTS points: arm, a (the plateau), b, c, by how much the fit `misses` a score at
    most, and the labels needed for the score `target`: interpolated between the numbers compared, 0 if the fewest are
    enough, and beyond the most by the fit, up to FARTHEST times these; inf if they are more, or if the fit misses by
    more than MAX_MISS or says fewer. a and needed have 95% percentile intervals (_low, _high) over images, labels and
    pretrainings, NaN for too few of these.
    """
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        curve = [cell for cell in headlines(cells, arm) if cell.labels]
        if len(curve) < MIN_POINTS or not len((draws := in_common(*curve)).scores):
            continue
        labels = draws.labels.astype(float)
        levels = np.concatenate([draws.scores.mean(0)[None], draws.means()])  # [1 + R, n]
        unknown = np.isnan(levels).any(1)
        fits = fit_plateau(labels, levels)  # [1 + R, 3]
        a, b, c = fits[0]
        misses = np.abs(a - b * labels**-c - levels[0]).max()
        beyond = labels_for(target, fits)
        beyond[(beyond <= labels[-1]) | (beyond > FARTHEST * labels[-1]) | (misses > MAX_MISS)] = np.inf
        reached = np.array([_crossing(labels, row, target) for row in levels])
        needed = np.where(np.isinf(reached), beyond, reached)
        fits[unknown], needed[unknown] = np.nan, np.nan
        low, high = (np.quantile(np.c_[fits[1:, 0], needed[1:]], q, axis=0, method="nearest") for q in (0.025, 0.975))
        rows.append((arm, target, a, low[0], high[0], b, c, misses, needed[0], low[1], high[1]))
    names = ["arm", "target", "a", "a_low", "a_high", "b", "c", "misses", "needed", "needed_low", "needed_high"]
    return pd.DataFrame(rows, columns=names)


def report(cells: Sequence[Cell], summary: Mapping[str, Any]) -> tuple[dict[str, pd.DataFrame], str, Figure]:
    """Return the tables curves, differences and plateaus, what they say as text, and a figure.

    summary  of the comparison: metric, chance, part ("val" or "test"), synthetic, target_score
    """
    curves, differences = curve_table(cells), difference_table(cells)
    plateaus = plateau_table(cells, summary["target_score"])
    metric, part = metric_name(summary["metric"]), "the test part" if summary["part"] == "test" else "validation"
    title, named = plots.marked(f"Label efficiency on {part}", summary["synthetic"]), marked_arms(curves)
    fits = plateaus.query("misses <= @MAX_MISS").replace({"arm": named})
    shown = curves.replace({"arm": named})
    images, folds = len(cells[0].images.files), len(cells[0].images.folds)
    drawn_from = f"{title}: {images:,} X-rays, {folds} fold{'s' * (folds != 1)}"
    figure = plots.label_efficiency(shown, fits, metric, drawn_from, summary["chance"])
    lines = ["", f"{title}: {metric}, mean {OVER_DRAWS}", interval_text_table(shown, ["way", "labels"]), ""]
    starts = dict(zip(curves["arm"], curves["starts"], strict=True))
    for row in differences.query("way == @HEADLINE").to_dict("records"):
        gap = interval_text(*(100 * row[key] for key in ("difference", "low", "high")), form="+.1f")
        known = headline_range(curves, row["reference"])
        sentence = savings_sentence(row, named[row["arm"]], named[row["reference"]], *known)
        ways = f"main ways ({row['arm_way']}, {row['reference_way']})"
        if row["arm_way"] == row["reference_way"]:
            ways = f"main way ({row['arm_way']})"
        arms = f"{named[row['arm']]} - {named[row['reference']]}"
        lines.append(f"{row['labels']:,} labels, {arms} by the {ways}: {gap} points. {sentence}")
    for row in plateaus.to_dict("records"):
        needed = labels_text(row, "needed", *headline_range(curves, row["arm"]))
        fit = f"fitted plateau {interval_text(row['a'], row['a_low'], row['a_high'], '.2f')}"
        if row["misses"] > MAX_MISS:
            fit = f"no plateau is fitted, since a power law misses a score by {100 * row['misses']:.1f} points"
        lines.append(f"{named[row['arm']]}: {metric} {row['target']:g} needs {needed}; {fit}.")
    fewest, most = min(curves["draws"]), max(curves["draws"])
    if fewest < most:
        lines.append(f"Means are of {fewest} to {most} draws; a difference is over those that both arms have.")
    drawn = bool(np.isfinite(curves["low"].to_numpy(float)).any())
    lines.append(f"Intervals are for {interval_scope(starts)}." if drawn else "Intervals need more draws or folds.")
    return {"curves": curves, "differences": differences, "plateaus": plateaus}, "\n".join(lines), figure


def marked_arms(curves: pd.DataFrame) -> dict[str, str]:
    """Return how a table or figure names each arm of a curve_table: those that have seen held-out images say so."""
    seen = set(curves.loc[curves["transductive"], "arm"])
    return {arm: plots.marked(arm, False, arm in seen) for arm in curves["arm"]}


def interval_text_table(table: pd.DataFrame, index: str | list[str]) -> str:
    """Return a table as text, one column per arm: `0.712 [0.680, 0.744]` of each row's mean, low and high."""
    cells = table.assign(cell=[interval_text(*row) for row in table[["mean", "low", "high"]].to_numpy()])
    return cells.pivot_table("cell", index, "arm", aggfunc="first", sort=False).to_string(na_rep="")
