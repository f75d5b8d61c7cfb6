"""Which augmentations make the best views? One extra each on top of the base recipe, then combinations.

    python selfsup_task/scan_best_transformations.py
    python selfsup_task/scan_best_transformations.py --dataset covid --num-epochs 20 --projector-dims 512 1024 1024
    python selfsup_task/scan_best_transformations.py --only base+vflip base+equalize

Each recipe of augmentations/recipes.py that is named below gets a pretraining for each seed; a linear probe and a full
fine-tuning on validation judge it. runs/<run_name>/ holds summary.csv (a row per trial), ranking.csv (a row per
recipe), best.json for `train_barlow_twins.py --from`, a figure (both scores beside what each recipe does to one X-ray)
and one folder per trial. By default it takes a quarter of an hour on two cores on synthetic X-rays, too short to choose
by. The same command again resumes the scan, and several may work on one scan at once.
"""

from typing import Any

from selfsup_task.scan_base import FILES, REAL_XRAYS, SCAN_BASE, without
from utils.scripts import flags, run_script

config: dict[str, Any] = {
    **without(SCAN_BASE, "recipe"),  # selfsup_task/scan_base.py: the pretraining and fine-tuning that are the same
    "run_name": "scans/{dataset}_transformations",  # runs/<run_name>/; {dataset} is the name of the data set
    "recipes": [  # names in augmentations/recipes.py
        "short",  # the default of train_barlow_twins.py
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
real_xrays = {
    **without(REAL_XRAYS, "recipe"),
    "recipes": [REAL_XRAYS["recipe"], "original", "exposure", *config["recipes"][1:]],  # the first is the default
}

if __name__ == "__main__":  # before the slow imports
    config = flags(config, __doc__, __file__, *FILES, real_xrays=real_xrays, best="pretraining")

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from augmentations.transform_utils import RecipeName, Views, denormalise, step_generator
from dataset_loader.xrays import XRays
from selfsup_task import scan_plots
from selfsup_task.hyper_utils import Scan, ScanConfig
from utils import plots
from utils.jobs import with_jobs

VIEWS_SHOWN = 4  # of each recipe


@dataclass(frozen=True, kw_only=True)
class RecipesConfig(ScanConfig):
    recipes: list[RecipeName]


def main(config: RecipesConfig) -> None:
    """Pretrain with each recipe, judge each encoder, show scores and views side by side."""
    settings = {recipe: {"recipe": recipe} for recipe in config.recipes}
    scan = Scan(config, settings, lists=["recipes"])
    ranking = scan.run_trials()  # each a pretraining, a linear probe and a fine-tuning
    sheet = contact_sheet(scan.xrays, ranking["setting"].tolist(), config.img_res)
    title = plots.marked("What each recipe's views look like, and what they are worth", scan.xrays.synthetic)
    scan.run.save_figure("transformations", scan_plots.scores_beside_pictures(ranking, scan.start, sheet, title))
    scan.print_results(ranking)


def contact_sheet(xrays: XRays, recipes: Sequence[str], size: int) -> dict[str, np.ndarray]:
    """Return what each recipe makes of one training X-ray: [VIEWS_SHOWN, size, size] in 0..1 by recipe."""
    image = xrays.batch(torch.from_numpy(xrays.indices("train")[:1]).expand(VIEWS_SHOWN))
    views = {
        recipe: Views(recipe, size).single(image, step_generator("pictures of recipes", 0, 0, 0)) for recipe in recipes
    }
    return {recipe: denormalise(view)[:, 0].cpu().numpy() for recipe, view in views.items()}


if __name__ == "__main__":
    run_script(with_jobs(main), RecipesConfig, {"recipe": "none", "random_seed": 0, **config})  # each trial has its own
