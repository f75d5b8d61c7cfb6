"""Figures: legible, with units, in Okabe and Ito's colour-blind-safe palette."""

import gc
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import auc, roc_curve

from utils.files import write_bytes
from utils.metrics import calibration_error
from utils.wording import HEADLINE, way_name

DIMENSIONS_SHOWN = 64  # more are too fine for a picture: the diagonal vanishes
BINS = 10  # of stated probabilities, in a reliability diagram
MIN_IN_BIN = 5  # X-rays, for a bin to be drawn
BLUE, ORANGE, GREEN, PINK, BLACK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000"
COLOURS = (BLACK, ORANGE, BLUE, GREEN, PINK, "#D55E00", "#56B4E9")


def marked(title: str, synthetic: bool, transductive: bool = False) -> str:
    """The title with what its numbers must not be read without."""
    marks = [mark for mark, holds in {"synthetic": synthetic, "transductive": transductive}.items() if holds]
    return f"{title} ({', '.join(marks)})" if marks else title


def write_figure(path: Path, figure: Figure) -> bytes:
    """Write a PNG atomically; return its content."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
    write_bytes(path, picture.getvalue())
    gc.collect()  # figures before this one: circles of references, of which Python lets dozens pile up
    return picture.getvalue()


def styled(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Each name with the colour and the marker that stand for it in a figure."""
    return zip(names, itertools.cycle(COLOURS), itertools.cycle("osD^v"), strict=False)


def plain_log_labels(ax: Axes) -> None:
    """Where a logarithmic y axis spans less than a decade: 300, 400 instead of powers of ten."""
    low, high = ax.get_ylim()
    if high < 10 * low:
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")


def image_grid(columns: Mapping[str, np.ndarray], title: str) -> Figure:
    """X-rays in a grid: a titled column for each entry, an image a row; values [n, H, W] in 0..1."""
    names, n = list(columns), len(next(iter(columns.values())))
    figure = Figure(figsize=(1.9 * len(names), 1.9 * n + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(n, len(names), squeeze=False)
    for (row, column), ax in np.ndenumerate(axes):
        ax.imshow(columns[names[column]][row], cmap="gray", vmin=0, vmax=1)
        ax.set_axis_off()
        if row == 0:
            ax.set_title(names[column], fontsize=9)
    return figure


def correlation_matrix(c: np.ndarray, title: str) -> Figure:
    """The cross-correlation matrix [D, D] of two views, its first DIMENSIONS_SHOWN; the goal is the identity."""
    figure = Figure(figsize=(5.8, 4.8), layout="constrained")
    ax = figure.subplots()
    shown = c[:DIMENSIONS_SHOWN, :DIMENSIONS_SHOWN]
    picture = ax.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.set(
        xlabel=f"dimension of view 2 (first {len(shown)} of {len(c)})",
        ylabel=f"dimension of view 1 (first {len(shown)} of {len(c)})",
    )
    figure.colorbar(picture, label="correlation over the batch")
    return figure


def training_curves(
    rows: Sequence[Mapping[str, float]], title: str, levels: Mapping[str, float], metric: str
) -> Figure:
    """Loss, ranks and probes over the epochs of metrics.csv.

    levels  what random embeddings give for a tag, and "chance" for the probes: dashed lines
    metric  the probes' score, in words
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    loss, rank, score = figure.subplots(1, 3)
    _lines(loss, rows, {"train/loss": "loss", "train/on_diagonal": "on-diagonal"}, levels)
    loss.set_yscale("log")
    plain_log_labels(loss)
    _finish(loss, "Loss", "mean over the epoch (log scale)")
    _lines(rank, rows, {"health/rank": "embeddings", "health/feature_rank": "features"}, levels)
    _finish(rank, "Effective rank", "RankMe (dimensions)")
    _lines(score, rows, {"probe/linear": "linear probe", "probe/knn": "kNN probe"}, levels)
    score.axhline(levels["chance"], color=BLACK, linestyle=":", linewidth=1, label="chance")
    _finish(score, "Probes on validation (epoch 0: before training)", metric)
    return figure


def label_efficiency(curves: pd.DataFrame, plateaus: pd.DataFrame, metric: str, title: str, chance: float) -> Figure:
    """Score over labels: a panel for the main ways and, if there are several ways, one for each.

    curves    columns arm, way, labels, headline, mean, low, high
    plateaus  columns arm, a, b, c: fits a - b n^-c to the main ways, drawn dashed beyond their points
    """
    ways, arms = list(dict.fromkeys(curves["way"])), list(dict.fromkeys(curves["arm"]))
    panels: dict[str, Any] = {HEADLINE if len(ways) > 1 else ways[0]: curves[curves["headline"]]}
    panels |= {way: curves[curves["way"] == way] for way in ways}
    figure = Figure(figsize=(4.6 * len(panels) + 0.6, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (way, of_way) in zip(axes, panels.items(), strict=True):
        arms_over_labels(ax, of_way, arms, chance)
        ax.set_title(way_name(way), fontsize=10)
    most, colours = max(curves["labels"]), {arm: colour for arm, colour, _ in styled(arms)}
    for row in plateaus.to_dict("records"):
        n = np.geomspace(most, 10 * most, 100)
        label = f"{row['arm']}, power law"
        axes[0].plot(n, row["a"] - row["b"] * n ** -row["c"], color=colours[row["arm"]], linestyle="--", label=label)
    axes[0].set_ylabel(f"{metric}, mean{' and 95% interval' * bool(curves['low'].notna().any())}")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    return figure


def arms_over_labels(
    ax: Axes, curves: Any, arms: Sequence[str], chance: float, markers: Mapping[str, str] | None = None
) -> None:
    """Draw each arm's scores over labels (log scale): points with intervals, side by side, and a line through them.

    curves   columns arm, way, labels, mean, low, high
    arms     all that have a colour, also those without a row
    markers  of each way; by default each arm has its own
    """
    for place, (arm, colour, own) in enumerate(styled(arms)):
        rows = curves[curves["arm"] == arm].sort_values("labels")
        if not len(rows):
            continue
        x = rows["labels"] * 1.025 ** (place - (len(arms) - 1) / 2)
        reach = reach_of(rows, "mean")
        marker = "" if markers else own
        ax.errorbar(
            x, rows["mean"], reach, color=colour, marker=marker, markersize=5, linewidth=1, capsize=2, label=arm
        )
        for way, of_way in (markers or {}).items():
            ax.plot(x[rows["way"] == way], rows["mean"][rows["way"] == way], of_way, color=colour)
    ticks = sorted(set(curves["labels"]))
    ax.axhline(chance, color=BLACK, linestyle=":", linewidth=1, label="chance")
    ax.set_xscale("symlog" if 0 in ticks else "log")  # a network as it is has learnt from none
    ax.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=8, rotation=45)
    ax.minorticks_off()
    ax.set(xlabel="labelled training images (log scale)")
    ax.grid(alpha=0.3)


def reach_of(rows: pd.DataFrame, value: str) -> np.ndarray:
    """Return how far intervals reach below and above a column's values, [2, n] for errorbar; 0 where there is none."""
    return np.nan_to_num([rows[value] - rows["low"], rows["high"] - rows[value]])


def convergence(curves: Mapping[str, Mapping[str, Sequence[pd.DataFrame]]], metric: str, title: str) -> Figure:
    """Validation over the steps of fine-tunings, one panel per number of labels.

    curves  {number of labels: {arm: one table per draw}}, with the columns step and score; thin lines, and their median
    """
    figure = Figure(figsize=(3.4 * len(curves) + 0.6, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    arms = list(dict.fromkeys(arm for by_arm in curves.values() for arm in by_arm))
    colours = {arm: colour for arm, colour, _ in styled(arms)}
    for ax, (labels, by_arm) in zip(axes, curves.items(), strict=True):
        for arm, tables in by_arm.items():
            for table in tables:
                ax.plot(table["step"], table["score"], color=colours[arm], alpha=0.4, linewidth=0.7)
            # a run that has stopped keeps its last score
            together = pd.concat([table.set_index("step")["score"] for table in tables], axis=1).sort_index().ffill()
            ax.plot(together.index, together.median(axis=1), color=colours[arm], linewidth=2, label=arm)
        ax.set(xlabel="optimiser steps")
        ax.set_title(f"{labels} labels", fontsize=10)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(f"{metric} on validation")
    lines = {line.get_label(): line for ax in axes for line in ax.get_legend_handles_labels()[0]}
    figure.legend([lines[arm] for arm in colours], list(colours), fontsize=8, loc="outside lower center", ncols=4)
    return figure


def frozen_parts(table: pd.DataFrame, metric: str, title: str) -> Figure:
    """Draw the score by what is trained, one marker per arm; table has the columns arm, trainable, mean, low, high."""
    parts, arms = list(dict.fromkeys(table["trainable"])), list(dict.fromkeys(table["arm"]))
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    ax = figure.subplots()
    for n, (arm, colour, marker) in enumerate(styled(arms)):
        rows = table[table["arm"] == arm].set_index("trainable").loc[parts]
        x = np.arange(len(parts)) + 0.12 * (n - (len(arms) - 1) / 2)
        reach = reach_of(rows, "mean")
        ax.errorbar(x, rows["mean"], reach, color=colour, marker=marker, capsize=3, linestyle="none", label=arm)
    ax.set_xticks(range(len(parts)), parts)
    ax.set(xlabel="trained layers (all others frozen)", ylabel=f"{metric}, mean and 95% interval", title=title)
    ax.grid(alpha=0.3, axis="y")
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


def confusion_matrices(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Counts [C, C] (row: label, column: prediction) and the same as shares of the row."""
    figure = Figure(figsize=(5.4 + 1.1 * len(names), 2.4 + 0.6 * len(names)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    for ax, values, form, what in zip(
        figure.subplots(1, 2), (counts, shares), ("{:,.0f}", "{:.2f}"), ("images", "share of each label"), strict=True
    ):
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = form.format(value) if counts[row].any() else ""
            ax.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set(xlabel="predicted", ylabel="label")
        ax.set_title(what, fontsize=10)
    return figure


def roc_curves(heads: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str], title: str) -> Figure:
    """Draw a ROC curve per class or finding, the mean of some heads', each truth [m, C] (1, 0, NaN) and scores [m, C].

    It is the mean sensitivity at each specificity (vertical averaging, Fawcett 2006, Pattern Recognit Lett 27:861), so
    the area under it is the heads' mean AUROC.
    """
    false = np.linspace(0, 1, 1001)
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for c, (name, colour, _) in enumerate(styled(names)):
        known = [(truth[~np.isnan(truth[:, c]), c], scores[~np.isnan(truth[:, c]), c]) for truth, scores in heads]
        curves = [roc_curve(*pair)[:2] for pair in known if len(np.unique(pair[0])) == 2]
        if curves:
            mean = np.mean([np.interp(false, *curve) for curve in curves], axis=0)
            area = np.mean([auc(*curve) for curve in curves])
            ax.plot([0, *false], [0, *mean], color=colour, label=f"{name}, AUROC {area:.2f}")
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8, loc="lower right")
    return figure


def reliability(labels: np.ndarray, probabilities: Mapping[str, np.ndarray], title: str) -> Figure:
    """How often the likeliest class is right, over its probability; of findings, how often they are present.

    One line for each of two entries of `probabilities`, [M, C], the first with rings, so that both are seen where they
    are equal. A marker's area is the share of X-rays in its bin; bins of fewer than MIN_IN_BIN are left out.
    """
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    looks = ((ORANGE, "none", 3), (BLUE, BLUE, 2))  # line, face, order
    for (name, p), (colour, face, order) in zip(probabilities.items(), looks, strict=True):
        known = ~np.isnan(labels)
        stated, right = (p.max(1), p.argmax(1) == labels) if labels.ndim == 1 else (p[known], labels[known])
        bin_of = np.minimum((stated * BINS).astype(int), BINS - 1)
        count = np.bincount(bin_of, minlength=BINS)
        shown = count >= MIN_IN_BIN
        mean, share = (np.bincount(bin_of, a, BINS)[shown] / count[shown] for a in (stated, right))
        ece = calibration_error(labels, p)
        ax.plot(mean, share, color=colour, linewidth=1, zorder=order, label=f"{name}, ECE {ece:.3f}")
        area = 400 * count[shown] / count.sum() + 12
        ax.scatter(mean, share, area, facecolors=face, edgecolors=colour, linewidths=1.5, zorder=order)
    unit = "share that is right" if labels.ndim == 1 else "share that is present"
    ax.set(
        xlabel=f"stated probability (area of a dot: share of X-rays; bins of {MIN_IN_BIN} or more)",
        ylabel=unit,
        aspect="equal",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    ax.set_title(title, fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def beside_pictures(rows: Sequence[np.ndarray], title: str) -> tuple[Figure, Axes]:
    """An empty plot, and beside it a line of pictures [k, H, W] in 0..1 for each of `rows`."""
    n, k = len(rows), len(rows[0])
    height = n + 1.7
    figure = Figure(figsize=(6.4 + k, height))
    figure.suptitle(title, fontsize=11, y=1 - 0.1 / height, va="top")
    grid = figure.add_gridspec(
        n, k + 1, width_ratios=[3.6] + [1] * k, wspace=0.07, hspace=0.07,
        left=0.26, right=0.99, bottom=1 / height, top=1 - 0.7 / height,
    )  # fmt: skip
    for row, column in np.ndindex(n, k):
        ax = figure.add_subplot(grid[row, column + 1])
        ax.imshow(rows[row][column], cmap="gray", vmin=0, vmax=1)
        ax.set_axis_off()
    return figure, figure.add_subplot(grid[:, 0])


def _lines(
    ax: Axes, rows: Sequence[Mapping[str, float]], names: Mapping[str, str], levels: Mapping[str, float]
) -> None:
    for (tag, name), colour, marker in zip(names.items(), (BLUE, ORANGE), "os", strict=True):
        points = [(row["epoch"], row[tag]) for row in rows if tag in row]
        if points:
            ax.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3, label=name)
        if tag in levels:
            ax.axhline(levels[tag], color=colour, linestyle="--", linewidth=1, label=f"{name}, random embeddings")


def _finish(ax: Axes, title: str, unit: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="epoch", ylabel=unit)
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
