"""The README's pictures: figures of `make tour` on synthetic X-rays, made small.

    make tour
    python docs/make_pictures.py

Writes docs/*.png, each under 200 kB. Takes seconds.
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

from PIL import Image

from utils.config import Config, UserError, repo_path
from utils.files import write_atomically

PICTURES = {  # name: pattern of the figure below the runs; of several, the first is taken
    "views": "pretrain/phantom*/figures/views.png",
    "label_efficiency": "tour/compare/figures/label_efficiency.png",
    "panel": "tour/grad_cam/figures/panel.png",
    "audit": "tour/audit/*/*/*/figures/audit.png",
}
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
        png, path = small(found[0]), repo_path(config.output) / f"{name}.png"
        write_atomically(path, lambda file, png=png: file.write(png))
        print(f"{path}   {len(png) / 1000:.0f} kB")


def small(path: Path) -> bytes:
    """Return a figure as a PNG of COLOURS colours and at most MAX_BYTES, as wide as that allows."""
    with Image.open(path) as image:
        whole = image.convert("RGB")
    for width in WIDTHS:
        size = (min(width, whole.width), round(whole.height * min(1, width / whole.width)))
        file = io.BytesIO()
        resized = whole.resize(size, Image.Resampling.LANCZOS)
        resized.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(file, "PNG", optimize=True)
        if file.tell() <= MAX_BYTES:
            return file.getvalue()
    raise UserError(f"{path} has over {MAX_BYTES:,} bytes even at {WIDTHS[-1]} pixels; leave something out of it.")


if __name__ == "__main__":
    run_script(main, PicturesConfig, config)
