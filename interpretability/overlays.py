"""Figures: heat maps over X-rays in the X-ray's own geometry, the panel of maps, figures of audits and boxes."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.ndimage import binary_erosion

from dataset_loader.decoding import central_square
from interpretability.boxes import CHANCE, MEAN_BOX, POINTING, RATIO
from interpretability.faithfulness import enlarged
from utils.plots import BLACK, BLUE, ORANGE, beside_pictures, reach_of, styled
from utils.wording import metric_name

COLOURS = "inferno"
OPACITY = 0.65  # of the strongest evidence; without evidence the X-ray shows
OUTLINE = np.array([86, 180, 233], dtype=np.uint8)  # light blue


def heat_on(heat: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Place a map [h, w] of the square that the network saw on the X-ray: [H, W], largest 1, 0 beside the square."""
    top, left, side = central_square(*shape)
    large = enlarged(torch.from_numpy(heat.astype(np.float32))[None], side)[0].numpy()
    whole = np.zeros(shape, np.float32)
    whole[top : top + side, left : left + side] = large / max(float(large.max()), 1e-30)
    return whole


def overlay(gray: np.ndarray, heat: np.ndarray | None, mask: np.ndarray | None) -> np.ndarray:
    """Return uint8 [H, W, 3]: the X-ray, gray [H, W], under a heat map [h, w] if given, lungs [H, W] outlined."""
    picture = np.repeat(gray[..., None], 3, axis=2).astype(np.float32)
    if heat is not None:
        strength = heat_on(heat, (gray.shape[0], gray.shape[1]))
        colour = colormaps[COLOURS](strength)[..., :3] * 255
        opacity = OPACITY * strength[..., None]
        picture = (1 - opacity) * picture + opacity * colour
    picture = picture.round().astype(np.uint8)
    if mask is not None:
        picture[outline(mask)] = OUTLINE
    return picture


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the inner border, bool [H, W], of a mask [H, W]: about a 150th of the picture wide."""
    return mask & ~binary_erosion(mask, iterations=max(1, round(min(mask.shape) / 150)))


def panel(rows: Mapping[str, Sequence[np.ndarray]], captions: Mapping[str, Sequence[str]], title: str) -> Figure:
    """Return X-rays side by side, a row for the X-rays and one for each network's overlays.

    rows      by the text beside the row: pictures, uint8 [H, W, 3]
    captions  by the same: the text above each picture
    """
    down, across = len(rows), len(next(iter(rows.values())))
    figure = Figure(figsize=(1.75 * across + 1.6, 2.05 * down + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(down, across, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, picture, text in zip(line, pictures, captions[name], strict=True):
            ax.imshow(picture)
            ax.set_title("\n".join(map(_wrapped, text.splitlines())), fontsize=8)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(_wrapped(name), fontsize=8)
    scale = ScalarMappable(Normalize(0, 1), COLOURS)
    figure.colorbar(scale, ax=axes, label="evidence for the class, share of the map's largest", shrink=0.7, aspect=40)
    return figure


def audit_figure(
    scores: pd.DataFrame, pictures: Mapping[str, np.ndarray], metric: str, chance: float, title: str
) -> Figure:
    """Return the scores by what is left of the X-rays, and beside them what that looks like.

    scores    columns images, head (one of two), score, value, low, high
    pictures  by `images`: [k, H, W] in 0..1
    """
    n = len(pictures)
    figure, ax = beside_pictures([*pictures.values()], title)
    for shift, head, colour, marker in zip((-0.1, 0.1), scores["head"].unique(), (BLUE, ORANGE), "os", strict=True):
        rows = scores[(scores["score"] == metric) & (scores["head"] == head)].set_index("images").loc[list(pictures)]
        _dots(ax, rows, np.arange(n) + shift, color=colour, marker=marker, capsize=4, label=f"head {head}")
    ax.axvline(chance, color=BLACK, linestyle=":", linewidth=1, label=f"chance, {chance:.2f}")
    ax.set_yticks(range(n), list(pictures), fontsize=9)
    ax.set(ylim=(n - 0.5, -0.5), xlim=(0, 1.02))
    ax.set_xlabel(f"{metric_name(metric)} and 95% interval", fontsize=9)
    ax.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="lower center", ncols=3)
    return figure


def box_figure(scores: pd.DataFrame, title: str) -> Figure:
    """Return a dot plot of by_finding's table: each quantity's panel has a row per finding, a dot per network."""
    values: Any = scores[scores["minus"] == ""]
    rows = values.drop_duplicates("finding").reset_index(drop=True)
    networks = [*dict.fromkeys(values["network"])]
    looks = {name: {"color": colour, "marker": marker} for name, colour, marker in styled(networks)}
    looks |= {CHANCE: {"color": "0.6", "marker": "|"}, MEAN_BOX: {"color": "0.6", "marker": "P"}}
    figure = Figure(figsize=(9.4, 0.17 * (len(networks) + 1) * len(rows) + 1.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, quantity in zip(axes, (POINTING, RATIO), strict=True):
        for n, name in enumerate(networks):
            of_network = values[(values["network"] == name) & (values["quantity"] == quantity)]
            shift = 0.8 * ((n + 0.5) / len(networks) - 0.5)
            _dots(ax, of_network, np.arange(len(rows)) + shift, capsize=2, label=name, **looks[name])
        for edge in np.arange(len(rows) - 1) + 0.5:
            ax.axhline(edge, color="0.9", linewidth=0.8)
        ax.grid(alpha=0.3, axis="x")
    names = [_wrapped(str(name)) for name in rows["finding"]]
    of_boxes = zip(names, rows["boxes"], rows["patients"], strict=True)
    axes[0].set_yticks(
        range(len(rows)), [f"{name}\n{n:,} boxes, {k:,} patients" for name, n, k in of_boxes], fontsize=8
    )
    axes[0].set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.02, 1.02))
    axes[0].set_xlabel("pointing game: share of boxes that hold\nthe map's maximum, 95% interval", fontsize=9)
    axes[1].axvline(1, color=BLACK, linestyle=":", linewidth=1)
    axes[1].set_xscale("log")
    axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].xaxis.set_minor_formatter(NullFormatter())
    axes[1].set_xlabel(
        "share of the evidence in the box over the box's\nshare of the area (log scale), 95% interval", fontsize=9
    )
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    return figure


def _dots(ax: Axes, rows: pd.DataFrame, y: np.ndarray, **look: Any) -> None:
    """Draw each row's value with its interval, if it has one, at a height y."""
    ax.errorbar(rows["value"], y, xerr=reach_of(rows, "value"), linestyle="none", **look)


def _wrapped(name: str) -> str:
    """Return a name in lines, broken at blanks and after underscores, slashes and hyphens alone."""
    lines = textwrap.fill(re.sub(r"([_/])", r"\1 ", name), 22, break_long_words=False)
    return re.sub(r"([_/]) ", r"\1", lines)
