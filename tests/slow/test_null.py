"""The null experiment: two arms of equal origin through the pipeline; their intervals exclude 0 in about one of 20."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import binom

from dataset_loader.phantoms.dataset import COVID_ROOT
from downstream_task.confusion_matrix import score_comparison
from downstream_task.trained_vs_no_trained_compare import CompareConfig, compare
from downstream_task.trained_vs_no_trained_compare import config as COMPARISON
from self_sup_classes.backbones import save_backbone
from self_sup_classes.initialisation import random_backbone
from self_sup_classes.provenance import NOTHING_SEEN
from utils.config import RUNS_ROOT, make_config
from utils.logging_utils import Run

pytestmark = pytest.mark.usefixtures("narrow")
REPEATS = 40


def test_intervals_of_equal_arms_exclude_zero_in_one_of_twenty(phantoms: Path, tmp_path: Path) -> None:
    """Random weights of ten seeds each: one arm draws its own, files of the other take turns over five folds."""
    shared: dict[str, Any] = {"dataset": "covid", "data_root": str(phantoms / COVID_ROOT), "img_res": 32, "threads": 1}
    shared |= {"num_labels": [60], "draws": 10, "folds": [0, 1, 2, 3, 4], "ways": ["linear"], "jobs": 1}
    excluded = 0
    for repeat in range(REPEATS):
        folder = tmp_path / f"r{repeat}"
        for k in range(10):
            (folder / f"s{k}").mkdir(parents=True)
            backbone = random_backbone("resnet18", 1, 10_000 + 10 * repeat + k)
            save_backbone(folder / f"s{k}" / "resnet18_final_state_dict.pt", backbone, NOTHING_SEEN)
        own = {"encoders": ["random", str(folder / "s*" / "resnet18_final_state_dict.pt")]}
        own |= {"run_name": f"{tmp_path.name}/r{repeat}", "random_seed": 10 * repeat, "split_seed": repeat}
        config = make_config(CompareConfig, {**COMPARISON, **shared, **own})
        run = Run(config.run_name, config, "comparison")
        compare(config, run)
        run.unlock()
        score_comparison(run.folder)
        gap = (
            pd.read_csv(RUNS_ROOT / "test" / config.run_name / "all" / "differences.csv")
            .query("way == 'linear'")
            .iloc[0]
        )
        excluded += not gap["low"] <= 0 <= gap["high"]
    fewest, most = binom.interval(0.95, REPEATS, 0.05)
    assert fewest <= excluded <= most, f"{excluded} of {REPEATS} intervals exclude 0"
