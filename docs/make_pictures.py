"""The README's pictures, made small: figures of `make tour` on synthetic X-rays, and one of docs/results/.

    make tour
    python docs/make_pictures.py

Writes docs/*.png, each under 200 kB, in seconds. That of tests/benchmarks/bench_time_to_quality.py, an hour and a half
of two cores, is made again where its run is there, and that of real X-rays where its table is; otherwise they are kept.
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
from PIL import Image

from utils import plots
from utils.config import REPO_ROOT, Config, UserError, repo_path
from utils.files import write_atomically
from utils.wording import metric_name

PICTURES = {  # name: pattern of the figure below the runs; of several, the first is taken
    "views": "pretrain/phantom*/figures/views.png",
    "label_efficiency": "tour/compare/figures/label_efficiency.png",
    "panel": "tour/grad_cam/figures/panel.png",
    "audit": "tour/audit/*/*/*/figures/audit.png",
}
BENCHMARK = "bench_time_to_quality/scores.png"
REAL = REPO_ROOT / "docs" / "results" / "real_folds_test_curves.csv"  # curves.csv of the test part; docs/RESULTS.md
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
    if (benchmark := repo_path(config.runs) / BENCHMARK).exists():
        write(benchmark, repo_path(config.output) / "time_to_quality.png")
    if REAL.exists():
        write(real_label_efficiency(), repo_path(config.output) / "real_label_efficiency.png")


def real_label_efficiency() -> io.BytesIO:
    """Return the figure of label efficiency on real X-rays, from scores alone, no pixels."""
    curves = pd.read_csv(REAL)
    title = (
        "COVID-19 Radiography layout, test images of five folds (ResNet-18 at 64 px; ImageNet: Lite0, frozen, 224 px)"
    )
    no_fits = pd.DataFrame(columns=["arm", "a", "b", "c"])
    figure = plots.label_efficiency(curves, no_fits, metric_name("balanced_accuracy"), title, chance=0.25)
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
