"""Figures: legible, with units, in Okabe and Ito's colour-blind-safe palette."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

DIMENSIONS_SHOWN = 64  # more are too fine for a picture: the diagonal vanishes
BLUE, ORANGE, GREEN, PINK, BLACK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000"


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


def training_curves(rows: Sequence[Mapping[str, float]], title: str, levels: Mapping[str, float]) -> Figure:
    """Loss, ranks and probes over the epochs of metrics.csv.

    levels  what random embeddings give for a tag, and "chance" for the probes: dashed lines
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    loss, rank, score = figure.subplots(1, 3)
    _lines(loss, rows, {"train/loss": "loss", "train/on_diagonal": "on-diagonal"}, levels)
    loss.set_yscale("log")
    _finish(loss, "Barlow Twins loss", "mean over the epoch (log scale)")
    _lines(rank, rows, {"health/rank": "embeddings", "health/feature_rank": "features"}, levels)
    _finish(rank, "Effective rank", "RankMe (dimensions)")
    _lines(score, rows, {"probe/linear": "linear probe", "probe/knn": "kNN probe"}, levels)
    score.axhline(levels["chance"], color=BLACK, linestyle=":", linewidth=1, label="chance")
    _finish(score, "Probes on validation (epoch 0: random network)", "balanced accuracy or AUROC")
    return figure


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
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
