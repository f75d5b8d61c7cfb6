"""How good are finished classifiers on the test part? The one script that reads it; run it when the choices are made.

    python downstream_task/confusion_matrix.py
    python downstream_task/confusion_matrix.py --runs runs/compare/covid
    python downstream_task/confusion_matrix.py --runs runs/compare/covid/random_linear_f0.05_d0 --threads 1

`runs` names fine-tuning runs, or comparisons: of these, what validation chose is tested. Prints one row per run.
runs/test/<run>/ holds predictions.csv, scores.csv (with 95% intervals over patients or duplicate groups), classes.csv,
summary.json and figures/confusion_matrix.png. A comparison also gets curves.csv and differences.csv, as on validation.
The calibration error (ECE) is given before and after temperature scaling; the temperature is fitted on validation.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "runs": ["runs/compare/phantom"],  # fine-tuning runs or comparisons: folders under runs/
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from dataset_loader.xrays import XRays
from downstream_task import label_efficiency
from downstream_task.finished_runs import Finished, OpenedData, find_finished, run_name
from downstream_task.probes import forward_all
from downstream_task.targets import Targets, predictions_table
from utils import plots
from utils.config import RUNS_ROOT, Config, UserError, as_dict, repo_path
from utils.files import read_json
from utils.hardware import choose_precision, describe_device, prepare
from utils.intervals import bootstrap_intervals, fewest_groups, interval_text, metric_name
from utils.logging_utils import Run
from utils.metrics import CLASS_SCORES, calibration_error, confusion_counts, per_class_scores
from utils.scripts import tracked

REPEATS = 300  # resamples behind an interval
SCORE_COLUMNS = ["score", "value", "low", "high"]
PRINTED = ("accuracy", "balanced_accuracy", "auroc", "ece", "ece_after_temperature_scaling")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """The config above, checked."""

    runs: list[str]
    device: str
    threads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise UserError("runs is empty; name at least one folder under runs/.")


def main(config: ScoreConfig) -> None:
    """Score every run on the test part, then every comparison; print one row per run, and what comparisons say."""
    data = OpenedData(prepare(config.device, config.threads))
    runs = [finished for name in config.runs for finished in find_finished(name)]
    tested = [score_run(finished, data) for finished in tracked(runs, "testing", "run")]
    print(score_table(tested))
    for folder in map(repo_path, config.runs):
        if (folder / "differences.csv").exists():
            print("\n".join(score_comparison(folder)))
    print("\ntables and figures   runs/test/")
    print(f"next   python interpretability/shortcut_audit.py --checkpoints runs/{runs[-1].name}")


def score_run(finished: Finished, data: OpenedData) -> Run:
    """Score a run on the test part; return the stored result if that was done before."""
    facts = {"tested": finished.name, "weights": finished.weights_hash(), "trained": as_dict(finished.config)}
    run = Run(f"test/{finished.name}", facts, "test")
    if run.summary is not None:
        return run
    trained, device, xrays = finished.config, data.device, data.of(finished)
    targets, note = finished.held_out(xrays)
    classifier, dtype = finished.classifier(device), choose_precision(trained.precision, device)
    rows = xrays.indices("test")
    logits = forward_all(classifier, xrays, rows, trained.img_res, trained.in_channels, dtype).double()
    run.start(device=describe_device(device), data=xrays.facts())
    save_scores(run, xrays, targets, logits, finished.temperature(), note)
    return run


def save_scores(run: Run, xrays: XRays, targets: Targets, logits: Tensor, temperature: float, note: str) -> None:
    """Write predictions, scores and figure of the test part, given its logits [M, C] and a temperature for them."""
    rows = xrays.indices("test")
    labels, groups = targets.values[rows], xrays.columns.groups[rows]
    probabilities, scaled = (targets.probabilities(z) for z in (logits, logits / temperature))
    run.save_table("predictions", predictions_table(xrays, targets, rows, probabilities))

    def scores(chosen: np.ndarray) -> dict[str, float]:
        after = calibration_error(labels[chosen], scaled[chosen])
        return {**targets.scores(rows[chosen], probabilities[chosen]), "ece_after_temperature_scaling": after}

    fewest = fewest_groups(labels, groups)
    found = bootstrap_intervals(scores, groups, REPEATS, fewest=fewest)
    run.save_table("scores", pd.DataFrame([(name, *values) for name, values in found.items()], columns=SCORE_COLUMNS))
    if not targets.multilabel:
        run.save_table("classes", class_table(labels, probabilities, groups, targets.names, fewest))
        title = plots.marked(f"{len(rows):,} X-rays of the test part", xrays.synthetic, bool(note))
        counts = confusion_counts(labels, probabilities)
        run.save_figure("confusion_matrix", plots.confusion_matrices(counts, targets.names, title), step=0)
    run.finish(
        {
            "synthetic": xrays.synthetic,
            "transductive": bool(note),
            "multilabel": targets.multilabel,
            "metric": targets.metric,
            "note": note,
            "images": len(rows),
            "groups": len(np.unique(groups)),
            "temperature": temperature,
            "split_hash": xrays.split_hash,
            **{name: list(values) for name, values in found.items()},
        }
    )


def class_table(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, names: tuple[str, ...], fewest: int
) -> pd.DataFrame:
    """Return class, score, value, low, high: CLASS_SCORES of each class against the rest."""
    keys = [f"{name}\t{score}" for name in names for score in CLASS_SCORES]

    def scores(chosen: np.ndarray) -> dict[str, float]:
        values = per_class_scores(labels[chosen], probabilities[chosen]).ravel()
        return dict(zip(keys, values.tolist(), strict=True))

    found = bootstrap_intervals(scores, groups, REPEATS, fewest=fewest)
    rows = [(*name.split("\t"), *values) for name, values in found.items()]
    return pd.DataFrame(rows, columns=["class", *SCORE_COLUMNS])


def score_table(tested: list[Run]) -> str:
    """Return the scores as text: one row per run, one column per score."""
    summaries = {one.name.removeprefix("test/"): one.summary or {} for one in tested}
    first = next(iter(summaries.values()))
    rows = {
        name: {metric_name(score): interval_text(*summary[score], form=".2f") for score in PRINTED if score in summary}
        for name, summary in summaries.items()
    }
    title = plots.marked(
        f"{first['images']:,} X-rays of {first['groups']:,} groups, test part",
        first["synthetic"],
        any(summary["transductive"] for summary in summaries.values()),
    )
    notes = sorted({summary["note"] for summary in summaries.values()} - {""})
    return "\n".join(["", f"{title}: value [95% interval]", pd.DataFrame(rows).T.to_string(), *notes])


def score_comparison(folder: Path) -> list[str]:
    """Compare the arms of a comparison on the test predictions of its runs; return lines to print."""
    name, compared = run_name(folder), read_json(folder / "summary.json") or {}
    run = Run(f"test/{name}/all", {"tested": name, "compared": compared}, "test comparison")
    if run.summary is None:
        table = pd.read_csv(folder / "summary.csv").query("chosen")
        run.start()
        cells = label_efficiency.read_cells(table, RUNS_ROOT / "test" / name, "predictions.csv")
        summary = {**compared, "part": "test"}
        text = label_efficiency.report(run, summary, label_efficiency.with_best(cells, table))
        run.finish({**summary, "report": [text, *summary["notes"], f"\ntables and figure   {run}/"]})
    assert run.summary is not None
    return run.summary["report"]


if __name__ == "__main__":
    run_script(main, ScoreConfig, config)
