"""How good are finished classifiers on the test part? The one script that reads it; run it when the choices are made.

    python downstream_task/confusion_matrix.py
    python downstream_task/confusion_matrix.py --runs runs/compare/covid
    python downstream_task/confusion_matrix.py --runs runs/compare/covid/random_linear_f0.05_d0 --threads 1
    python downstream_task/confusion_matrix.py --runs runs/compare/covid --external covid:/data/another_hospital

`runs` names fine-tuning runs, or comparisons: of these, what validation chose is tested. Prints one row per run.
runs/test/<run>/ holds predictions.csv, scores.csv (with 95% intervals over patients or duplicate groups), classes.csv,
summary.json and figures/confusion_matrix.png. A comparison also gets curves.csv and differences.csv, as on validation.
`external` tests on all images of other collections too, which the networks must not have seen, and gives the drop from
the test part over the classes that both have; runs/external/<collection>/<run>/ holds the same files.
Findings whose data set knows studies (CheXpert) are also scored by study: the mean over its frontal views.
The calibration error (ECE) is given before and after temperature scaling; the temperature is fitted on validation.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "runs": ["runs/compare/phantom"],  # fine-tuning runs or comparisons: folders under runs/
    "data_root": "",  # where the runs' data are now, if they were moved since the training
    "external": [],  # other collections: DATASET or DATASET:FOLDER, such as covid:/data/another_hospital
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.xrays import DATASETS
from downstream_task import label_efficiency
from downstream_task.clinic.external import collection_name, compared_with_test, external_data, external_table
from downstream_task.clinic.studies import study_scores
from downstream_task.clinic.tables import save_clinic_tables
from downstream_task.finished_runs import Finished, OpenedData, Scored, find_finished, run_name
from downstream_task.targets import predictions_table
from self_sup_classes.provenance import check_unseen
from utils import plots
from utils.config import RUNS_ROOT, UserError, check_choice, part_of, repo_path
from utils.facts import fact
from utils.files import check_files, content_hash, read_json
from utils.hardware import MachineConfig, describe_device, prepare
from utils.intervals import bootstrap_intervals, fewest_groups, interval_text, metric_name
from utils.logging_utils import Run
from utils.metrics import CLASS_SCORES, calibration_error, confusion_counts, per_class_scores
from utils.scripts import command, tracked

REPEATS = 300  # resamples behind an interval
SCORE_COLUMNS = ["score", "value", "low", "high"]
PRINTED = ("accuracy", "balanced_accuracy", "auroc", "auroc_by_study", "ece", "ece_after_temperature_scaling")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(MachineConfig):
    """The config above, checked."""

    runs: list[str]
    data_root: str
    external: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise UserError("runs is empty; name at least one folder under runs/.")
        for entry in self.external:
            if ":" not in entry and repo_path(entry).is_dir():
                raise UserError(f"external holds {entry!r}; write its layout before it, such as folder:{entry}.")
            check_choice("external", entry.partition(":")[0], DATASETS)


def main(config: ScoreConfig) -> None:
    """Score every run on the test part, then every comparison; print one row per run, and what comparisons say."""
    data = OpenedData(prepare(config.device, config.threads), config.data_root)
    runs = [finished for name in config.runs for finished in find_finished(name)]
    tested = [score_run(finished, data) for finished in tracked(runs, "testing", "run")]
    print(score_table(tested))
    for folder in map(repo_path, config.runs):
        if (folder / "differences.csv").exists():
            print("\n".join(score_comparison(folder)))
    for entry in config.external:
        print(external_table([score_external(finished, entry, data) for finished in tracked(runs, entry, "run")]))
    print(f"\ntables and figures   {RUNS_ROOT / 'test'}/")
    audited = {"checkpoints": [runs[-1].path], **part_of(config, MachineConfig), "data_root": config.data_root}
    print(f"next   {command('interpretability/shortcut_audit.py', audited)}")


def score_run(finished: Finished, data: OpenedData) -> Run:
    """Score a run on the test part; return the stored result if that was done before."""
    facts = {"tested": finished.name, "weights": finished.weights_hash(), "trained": finished.config}
    where = data.at(finished)
    run = Run(f"test/{finished.name}", facts, "test", look=lambda: {"data": data.facts(where)})
    if run.summary is None:
        xrays = data.of_run(finished)
        targets, note = finished.held_out(xrays)
        scored = finished.look(xrays, targets, xrays.indices("test"), note)
        run.start(device=describe_device(data.device), data=xrays.facts() | data.facts(where))
        save_scores(run, scored, "of the test part", {})
    check_files(run.folder, "predictions.csv", "scores.csv")
    return run


def score_external(finished: Finished, entry: str, data: OpenedData) -> Run:
    """Score a tested run on all images of another collection; return the stored result if that was done before.

    The score and its drop from the test part are over the classes or findings that both collections have.
    Raises UserError if these are too few, or if the network has seen one of the images.
    """
    config = external_data(entry, finished.config)
    name = collection_name(config)
    facts = {"tested": finished.name, "weights": finished.weights_hash(), "external": config}
    internal = content_hash(RUNS_ROOT / "test" / finished.name / "predictions.csv")
    run = Run(
        f"external/{name}/{finished.name}",
        facts,
        "external test",
        look=lambda: {"data": data.facts(config), "test_predictions": internal},
    )
    if run.summary is None:
        xrays = data.of(config)
        targets, rows, shared = finished.shared_targets(xrays)
        note = check_unseen(finished.provenance(), xrays, finished.config.allow_seen, str(finished.weights), rows)
        scored = finished.look(xrays, targets, rows, note)
        run.start(
            device=describe_device(data.device), data=xrays.facts() | data.facts(config), test_predictions=internal
        )
        missing = [name for name in targets.names if name not in shared]
        found = {"tested": finished.name, "collection": name, "of_other_classes": len(xrays) - len(rows)}
        compared = compared_with_test(finished, scored, shared, REPEATS)
        save_scores(run, scored, f"of {name}", {**found, "missing": missing, **compared})
    return run


def save_scores(run: Run, scored: Scored, where: str, facts: Mapping[str, Any]) -> None:
    """Write predictions, scores, figure and summary, with the caller's `facts`, of X-rays `where` they are from."""
    xrays, targets, rows = scored.xrays, scored.targets, scored.rows
    labels, groups, probabilities = scored.labels, scored.groups, scored.probabilities
    run.save_table("predictions", predictions_table(xrays, targets, rows, probabilities))

    def scores(chosen: np.ndarray) -> dict[str, float]:
        after = calibration_error(labels[chosen], scored.scaled[chosen])
        return {**targets.scores(rows[chosen], probabilities[chosen]), "ece_after_temperature_scaling": after}

    title = plots.marked(f"{len(rows):,} X-rays {where}", xrays.synthetic, bool(scored.note))
    save_clinic_tables(run, scored, title, REPEATS)
    fewest = fewest_groups(labels, groups)
    found = bootstrap_intervals(scores, groups, REPEATS, fewest=fewest) | study_scores(scored, REPEATS)
    run.save_table("scores", pd.DataFrame([(name, *values) for name, values in found.items()], columns=SCORE_COLUMNS))
    run.save_table("classes", class_table(labels, probabilities, groups, targets.names, fewest))
    if not targets.multilabel:
        counts = confusion_counts(labels, probabilities)
        run.save_figure("confusion_matrix", plots.confusion_matrices(counts, targets.names, title), step=0)
    run.finish(
        {
            "synthetic": xrays.synthetic,
            "transductive": bool(scored.note),
            "multilabel": targets.multilabel,
            "metric": targets.metric,
            "note": scored.note,
            "images": len(rows),
            "groups": len(np.unique(groups)),
            "temperature": scored.temperature,
            "split_hash": xrays.split_hash,
            **{name: list(values) for name, values in found.items()},
            **facts,
        }
    )


def class_table(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, names: tuple[str, ...], fewest: int
) -> pd.DataFrame:
    """Return class, score, value, low, high: CLASS_SCORES of each class against the rest, or of each finding."""
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
    table = pd.read_csv(folder / "summary.csv").query("chosen")
    tested = [RUNS_ROOT / "test" / name / trial / "predictions.csv" for trial in table["trial"]]
    predictions = fact(len(tested), map(content_hash, tested))["hash"]
    look = {"test_predictions": predictions}
    run = Run(f"test/{name}/all", {"tested": name, "compared": compared}, "test comparison", look=lambda: look)
    if run.summary is None:
        run.start(test_predictions=predictions)
        cells = label_efficiency.read_cells(table, RUNS_ROOT / "test" / name, "predictions.csv")
        summary = {**compared, "part": "test"}
        text = label_efficiency.report(run, summary, label_efficiency.with_best(cells, table))
        run.finish({**summary, "report": [text, *summary["notes"], f"\ntables and figure   {run}/"]})
    assert run.summary is not None
    return run.summary["report"]


if __name__ == "__main__":
    run_script(main, ScoreConfig, config)
