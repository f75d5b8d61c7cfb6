"""Which augmentations make the best views? One extra each on top of the base recipe, then combinations.

    python selfsup_task/scan_best_transformations.py
    python selfsup_task/scan_best_transformations.py --dataset covid --img-res 64 --store-res 72 --num-epochs 20 \\
        --projector-dims 512 1024 1024 --batch-size 128 --run-name scans/covid_transformations
    python selfsup_task/scan_best_transformations.py --only base+vflip base+equalize

Each recipe of augmentations/recipes.py that is named below gets a pretraining; a linear probe and a full fine-tuning on
validation judge it. runs/<run_name>/ holds summary.csv, a figure (both scores as bars, beside what
each recipe does to one X-ray) and a folder a trial. As it stands, minutes on two cores on synthetic X-rays, too short
to choose by. The same command again goes on where it stopped, and several may work on one scan at once.
"""

from typing import Any

from selfsup_task import scan_base
from selfsup_task.scan_base import SCAN_BASE, without
from utils.scripts import flags, run_script

config: dict[str, Any] = {
    **without(SCAN_BASE, "recipe"),  # selfsup_task/scan_base.py: the pretraining and fine-tuning that are the same
    "run_name": "scans/{dataset}_transformations",  # runs/<run_name>/; {dataset} is the name of the data set
    "recipes": [  # names in augmentations/recipes.py
        # one extra each
        "base",
        "base+blur+noise",
        "base+equalize",
        "base+rotation",
        "base+brightness+contrast",
        "base+perspective",
        "base+vflip",
        # combinations
        "base+vflip+equalize",
        "base+vflip+equalize+perspective",
        "base+vflip+equalize+perspective+blur+noise",
        "base+vflip+equalize+perspective+blur+noise+rotation",
    ],
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__, scan_base.__file__)  # before the slow imports

import pandas as pd
from matplotlib.figure import Figure

from dataset_loader.xrays import open_xrays
from selfsup_task.hyper_utils import contact_sheet, open_scan, run_scan
from utils import plots, scan_plots
from utils.hardware import choose_device


def main(config: ScanConfig) -> None:
    """Scan the recipes, draw the table, name the winner."""
    trials = {recipe: {"recipe": recipe} for recipe in config.recipes}
    scan = open_scan(config, trials, varied=["recipes"])

    def draw(finished: pd.DataFrame, random: float) -> Figure:
        xrays = open_xrays(config, choose_device("cpu"))
        sheet = contact_sheet(xrays, list(finished["trial"]), config.img_res)
        title = plots.marked("What each recipe's views look like, and what they are worth", xrays.synthetic)
        return scan_plots.scores_beside_pictures(finished, random, sheet, title)

    run_scan(scan, draw)


if __name__ == "__main__":
    run_script(main, ScanConfig, config)
