"""The README's pictures, from what `make tour` leaves on synthetic X-rays: smaller, and few colours.

    make tour
    python utils/make_readme_pictures.py

Writes docs/*.png, each under 200 kB. Seconds.
"""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from utils.config import UserError, repo_path
from utils.files import write_atomically
from utils.scripts import run_script

config: dict[str, Any] = {
    "runs": "runs",  # where the tour's runs are
    "output": "docs",
}

PICTURES = {  # figures of the tour, below the runs; the first that exists of a pattern
    "views": "pretrain/phantom_resnet18_32px_short_b64_lr0.0005_lambda0.005_p512_e10_s0/figures/views.png",
    "label_efficiency": "tour/compare/figures/label_efficiency.png",
    "panel": "tour/grad_cam/figures/panel.png",
    "audit": "tour/audit/*/*/*/figures/audit.png",
}
WIDTHS = (1200, 1000, 800, 600)  # pixels: the widest that is small enough is taken
MOST_BYTES = 200_000
COLOURS = 128


def main(config: dict[str, Any]) -> None:
    """Find, shrink, write."""
    for name, pattern in PICTURES.items():
        found = sorted(repo_path(config["runs"]).glob(pattern))
        if not found:
            raise UserError(f"found no {pattern} in {repo_path(config['runs'])}; run `make tour` first.")
        png = small(found[0])
        path = repo_path(config["output"]) / f"{name}.png"
        write_atomically(path, lambda file, png=png: file.write(png))
        print(f"{path}   {len(png) / 1000:.0f} kB")


def small(path: Path) -> bytes:
    """A figure as a PNG of COLOURS colours and at most MOST_BYTES, as wide as that allows."""
    with Image.open(path) as image:
        whole = image.convert("RGB")
    for width in WIDTHS:
        size = (min(width, whole.width), round(whole.height * min(1, width / whole.width)))
        file = io.BytesIO()
        resized = whole.resize(size, Image.Resampling.LANCZOS)
        resized.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(file, "PNG", optimize=True)
        if file.tell() <= MOST_BYTES:
            return file.getvalue()
    raise UserError(
        f"{path} has more than {MOST_BYTES:,} bytes even at {WIDTHS[-1]} pixels; leave something out of it."
    )


if __name__ == "__main__":
    run_script(main, config, __doc__)
