"""The README's pictures, made small: figures of `make tour` on synthetic X-rays, and one of docs/results/.

    make tour
    python docs/make_pictures.py

Writes docs/*.png, each under 200 kB, in seconds.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "runs": "runs",  # the folder with the runs of the tour
    "output": "docs",  # where the pictures are written
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from utils import plots
from utils.config import REPO_ROOT, Config, UserError, repo_path
from utils.files import write_atomically
from utils.wording import metric_name

PICTURES = {  # name: pattern of the figure below the runs; of several, the first is taken
    "views": "pretrain/phantom*/figures/views.png",
    "audit": "tour/audit/*/*/*/figures/audit.png",
}
RESULTS = REPO_ROOT / "docs" / "results"  # with curves.csv of test parts; docs/RESULTS.md says how they were made
REAL = {  # of the panels of real_label_efficiency: title, metric, chance
    "covid_test_curves.csv": ("Four classes, COVID layout", "balanced_accuracy", 0.25),
    "nih_test_curves.csv": ("Eleven findings, NIH ChestX-ray14", "auroc", 0.5),
}
ARMS = {  # of these tables
    "random": "random weights",
    "bt-random": "Barlow Twins from random",
    "imagenet": "ImageNet",
    "bt-imagenet": "Barlow Twins from ImageNet",
    "bt-nih": "Barlow Twins from ImageNet, on NIH",
    "shared": "shared encoder (Barlow Twins on NIH)",
}
MARKERS = {"spread": ("o", "label spreading"), "zeros": ("s", "fine-tuned"), "linear": ("^", "linear head")}  # ways
WIDTHS = (1200, 1000, 800, 600)  # pixels; the widest that gives a small enough file is taken
MAX_BYTES = 200_000
COLOURS = 128


@dataclass(frozen=True, kw_only=True)
class PicturesConfig(Config):
    """The config above."""

    runs: str
    output: str


def main(config: PicturesConfig) -> None:
    """Find the figures, shrink them, write them."""
    for name, pattern in PICTURES.items():
        found = sorted(repo_path(config.runs).glob(pattern))
        if not found:
            raise UserError(f"found no {pattern} in {repo_path(config.runs)}; run `make tour` first.")
        write(found[0], repo_path(config.output) / f"{name}.png")
    write(real_label_efficiency(), repo_path(config.output) / "real_label_efficiency.png")


def real_label_efficiency() -> io.BytesIO:
    """Return the README's figure of real X-rays: a panel for each table, a line for each arm's main ways."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    lines: dict[str, Any] = {}
    markers = {way: marker for way, (marker, _) in MARKERS.items()}
    for ax, (name, (title, metric, chance)) in zip(figure.subplots(1, len(REAL)), REAL.items(), strict=True):
        curves: Any = pd.read_csv(RESULTS / name).query("headline").replace({"arm": ARMS})
        plots.arms_over_labels(ax, curves, [*ARMS.values()], chance, markers)
        ax.set_ylabel(f"{metric_name(metric)}, mean and 95% interval")
        ax.set_title(title, fontsize=10)
        lines |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    lines |= {words: Line2D([], [], color="gray", marker=marker, linestyle="") for marker, words in MARKERS.values()}
    figure.legend(list(lines.values()), list(lines), fontsize=8, loc="outside lower center", ncols=3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file


def write(source: Path | io.BytesIO, path: Path) -> None:
    """Write a figure, made small, and say so."""
    png = small(source, path.name)
    write_atomically(path, lambda file: file.write(png))
    print(f"{path}   {len(png) / 1000:.0f} kB")


def small(source: Path | io.BytesIO, name: str) -> bytes:
    """Return a figure as a PNG of COLOURS colours and at most MAX_BYTES, as wide as that allows."""
    with Image.open(source) as image:
        whole = image.convert("RGB")
    for width in WIDTHS:
        size = (min(width, whole.width), round(whole.height * min(1, width / whole.width)))
        file = io.BytesIO()
        resized = whole.resize(size, Image.Resampling.LANCZOS)
        resized.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(file, "PNG", optimize=True)
        if file.tell() <= MAX_BYTES:
            return file.getvalue()
    raise UserError(f"{name} has over {MAX_BYTES:,} bytes even at {WIDTHS[-1]} pixels; leave something out of it.")


if __name__ == "__main__":
    run_script(main, PicturesConfig, config)
