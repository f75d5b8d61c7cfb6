"""The test part, read once: predictions of finished classifiers on it, scored with intervals."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dataset_loader.xrays import XRays
from downstream_task.comparison_report import report
from downstream_task.finished_runs import Finished, OpenedData, find_finished, run_name
from downstream_task.label_efficiency import analyse
from downstream_task.predictions import predictions_table
from downstream_task.probes import forward_all
from downstream_task.targets import Targets
from utils import plots
from utils.config import RUNS_ROOT, Config, UserError, as_dict, repo_path
from utils.hardware import choose_precision, describe_device, prepare
from utils.intervals import bootstrap_intervals, fewest_groups
from utils.logging_utils import Run
from utils.metrics import CLASS_SCORES, calibration_error, confusion_counts, fit_temperature, per_class_scores
from utils.progress import tracked

REPEATS = 300  # resamples behind an interval
SCORE_COLUMNS = ["score", "value", "low", "high"]


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(Config):
    """Every key of downstream_task/confusion_matrix.py."""

    runs: list[str]
    device: str
    threads: int


def score_on_test(config: HeldOutConfig) -> list[Run]:
    """Test every run that `runs` names; those tested before are looked up.

    Raises UserError, before any testing, for a folder that holds no finished fine-tuning.
    """
    device = prepare(config.device, config.threads)
    runs = [finished for name in config.runs for finished in find_finished(name)]
    if not runs:
        raise UserError("runs is empty; name at least one folder under runs/.")
    data = OpenedData(device)  # a comparison's runs share theirs
    tested = [_test_run(finished, data) for finished in tracked(runs, "testing", "run")]
    for name in config.runs:
        folder = repo_path(name)
        if (folder / "differences.csv").exists():
            _analyse_comparison(folder)
    return tested


def _test_run(finished: Finished, data: OpenedData) -> Run:
    facts = {"tested": finished.name, "weights": finished.weights_hash(), "trained": as_dict(finished.config)}
    run = Run(f"test/{finished.name}", facts, "test")
    if run.summary is not None:
        return run
    trained, device, xrays = finished.config, data.device, data.of(finished)
    targets, note = finished.held_out(xrays)
    classifier, dtype = finished.classifier(device), choose_precision(trained.precision, device)
    val, test = (
        forward_all(classifier, xrays, xrays.indices(part), trained.img_res, trained.in_channels, dtype)
        .double()
        .numpy()
        for part in ("val", "test")
    )
    run.start(device=describe_device(device), data=xrays.facts())
    _score(run, xrays, targets, val, test, note)
    return run


def _score(run: Run, xrays: XRays, targets: Targets, val: np.ndarray, test: np.ndarray, note: str) -> None:
    """Write everything about logits [M, C] of the test part, given those of the validation part."""
    rows = xrays.indices("test")
    labels, groups = targets.values[rows], xrays.columns.groups[rows]
    temperature = fit_temperature(val, targets.values[xrays.indices("val")])
    probabilities, scaled = (targets.probabilities(torch.from_numpy(logits)) for logits in (test, test / temperature))
    run.save_table("predictions", predictions_table(xrays, targets, rows, probabilities))

    def scores(chosen: np.ndarray) -> dict[str, float]:
        after = calibration_error(labels[chosen], scaled[chosen])
        return {**targets.scores(rows[chosen], probabilities[chosen]), "ece_after_temperature_scaling": after}

    fewest = fewest_groups(labels, groups)
    table = bootstrap_intervals(scores, groups, REPEATS, fewest=fewest)
    run.save_table("scores", pd.DataFrame([(name, *values) for name, values in table.items()], columns=SCORE_COLUMNS))
    if labels.ndim == 1:
        run.save_table("classes", _class_table(labels, probabilities, groups, targets.names, fewest))
        counts = confusion_counts(labels, probabilities)
        title = plots.marked(f"{len(rows):,} X-rays of the test part", xrays.synthetic, bool(note))
        run.save_figure("confusion_matrix", plots.confusion_matrices(counts, targets.names, title), step=0)
    run.finish(
        {
            "synthetic": xrays.synthetic,
            "note": note,
            "images": len(rows),
            "groups": len(np.unique(groups)),
            "temperature": temperature,
            "split_hash": xrays.facts()["split_hash"],
            **{name: list(values) for name, values in table.items()},
        }
    )


def _class_table(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, names: tuple[str, ...], fewest: int
) -> pd.DataFrame:
    """class, score, value, low, high: sensitivity, specificity, AUROC and AUPRC of each class against the rest."""

    keys = [f"{name}\t{score}" for name in names for score in CLASS_SCORES]

    def scores(chosen: np.ndarray) -> dict[str, float]:
        values = per_class_scores(labels[chosen], probabilities[chosen]).ravel()
        return dict(zip(keys, values.tolist(), strict=True))

    table = bootstrap_intervals(scores, groups, REPEATS, fewest=fewest)
    return pd.DataFrame(
        [(*name.split("\t"), *values) for name, values in table.items()], columns=["class", *SCORE_COLUMNS]
    )


def _analyse_comparison(folder: Path) -> None:
    """What trained_vs_no_trained_compare.py says of a comparison on validation, on its runs' test predictions."""
    compared: Any = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    name = run_name(folder)
    run = Run(f"test/{name}/all", {"tested": name, "compared": compared}, "test comparison")
    if run.summary is None:
        table = pd.read_csv(folder / "summary.csv")
        run.start()
        curves, differences = analyse(table, RUNS_ROOT / "test" / name, "predictions.csv")
        run.save_table("curves", curves)
        run.save_table("differences", differences)
        run.finish({**compared, "part": "test"})
    print(report(run))
