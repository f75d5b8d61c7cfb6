"""Figures of the scans: heat maps, range tests, schedules, scores beside pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.plots import BLACK, BLUE, GREEN, ORANGE, beside_pictures, plain_log_labels, styled
from utils.wording import metric_name

# columns of a scan's table
SCAN_SCORES = {"linear": "linear probe", "full": "fine-tuning from it"}


def heat_maps(grids: Mapping[str, pd.DataFrame], title: str, unit: str, form: str = "{:.3f}") -> Figure:
    """A titled heat map for each grid, named by its index and columns.

    NaN is not run, infinite is out of memory, minus infinite failed.
    """
    rows, columns = next(iter(grids.values())).shape
    across = min(3, len(grids))
    down = -(-len(grids) // across)
    size = (across * max(3.6, 1.6 + 0.75 * columns) + 1, down * max(2.6, 1.5 + 0.42 * rows) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    values = np.stack([grid.to_numpy(float) for grid in grids.values()])
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (0, 1)
    axes = figure.subplots(down, across, squeeze=False)
    for ax, (name, grid), numbers in zip(axes.ravel(), grids.items(), values, strict=False):
        ax.imshow(np.where(np.isfinite(numbers), numbers, np.nan), cmap="cividis", vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(numbers):
            text, colour = form.format(value), "black" if value > (low + high) / 2 else "white"
            if not np.isfinite(value):
                text, colour = {np.inf: "out of\nmemory", -np.inf: "failed"}.get(float(value), "not run"), "gray"
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        ax.set_xticks(range(columns), map(str, grid.columns), rotation=30, ha="right", fontsize=8)
        ax.set_yticks(range(rows), map(str, grid.index), fontsize=8)
        ax.set(xlabel=grid.columns.name, ylabel=grid.index.name)
        ax.set_title(name, fontsize=10)
    for ax in axes.ravel()[len(grids) :]:
        ax.remove()
    figure.colorbar(axes[0, 0].images[0], ax=axes, label=unit)
    return figure


def lr_range(table: pd.DataFrame, found: Mapping[str, float | None], title: str) -> Figure:
    """A range test (columns lr, loss, smoothed) with the learning rates that were found in it marked."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    ax = figure.subplots()
    ax.plot(table["lr"], table["loss"], color=BLUE, alpha=0.3, linewidth=1, label="loss of each step")
    ax.plot(table["lr"], table["smoothed"], color=BLUE, label="smoothed")
    for key, colour, style in (("steepest", GREEN, "--"), ("lowest", BLACK, ":"), ("diverged", ORANGE, "-.")):
        lr = found[key]
        if lr is not None:
            ax.axvline(lr, color=colour, linestyle=style, label=f"{key}, {lr:.2g}")
    ax.set(xscale="log", yscale="log", xlabel="learning rate (log scale)", ylabel="training loss (log scale)")
    plain_log_labels(ax)
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def schedules(ranking: pd.DataFrame, start: Sequence[float], losses: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """The loss over steps of each setting (columns step, train/loss), and the scan's two scores of each.

    start  the linear probe's scores of the weights that the trials start from, a line
    """
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    curves, bars = figure.subplots(1, 2)
    for name, colour, marker in styled(losses):
        steps, loss = losses[name]["step"], losses[name]["train/loss"]
        curves.plot(steps, loss, color=colour, marker=marker, markersize=4, label=_spaced(name))
    curves.set(xlabel="optimiser steps", ylabel="Barlow Twins loss, mean of an epoch")
    curves.grid(alpha=0.3)
    curves.legend(fontsize=8)
    _scores(bars, ranking, start)
    return figure


def _spaced(setting: str) -> str:
    """A setting's name as words between which a line may break."""
    return setting.replace("+", " + ")


def _scores(ax: Axes, ranking: pd.DataFrame, start: Sequence[float]) -> None:
    """The two scores of a scan's settings, a setting a row from the top: means, and lines as long as the spread.

    A dashed line is the mean score of the start. A cross is a setting that was dropped, at its score then.
    """
    n = len(ranking)
    for shift, (column, name), colour, marker in zip(
        (-0.16, 0.16), SCAN_SCORES.items(), (BLUE, ORANGE), "os", strict=True
    ):
        half = ranking[f"{column}_spread"] / 2
        ax.errorbar(
            ranking[column], np.arange(n) + shift, xerr=half, fmt=marker, color=colour, markersize=5, label=name
        )
    if "early" in ranking:
        dropped = ranking["seeds"] == 0
        ax.plot(ranking["early"][dropped], np.flatnonzero(dropped), "x", color=BLACK, label="when it was dropped")
    ax.axvline(float(np.mean(start)), color=BLACK, linestyle="--", linewidth=1)
    ax.set(ylim=(n - 0.5, -0.5))
    ax.set_yticks(range(n), [_spaced(name) for name in ranking["setting"]], fontsize=8, wrap=True)
    metric, seeds = metric_name(ranking["metric"].iloc[0]), max(ranking["seeds"])
    each = "one run each" if seeds == 1 else f"mean and spread of {seeds} seeds"
    ax.set_xlabel(f"{metric} on validation ({each})\ndashed: the start, linear probe {np.mean(start):.3f}", fontsize=9)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)


def scores_beside_pictures(
    ranking: pd.DataFrame, start: Sequence[float], pictures: Mapping[str, np.ndarray], title: str
) -> Figure:
    """A scan's two scores, a setting a row, and beside them the setting's pictures [k, H, W] in 0..1.

    start  the linear probe's scores of the weights that the trials start from, a line
    """
    figure, ax = beside_pictures([pictures[name] for name in ranking["setting"]], title)
    _scores(ax, ranking, start)
    return figure
