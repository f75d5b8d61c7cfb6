"""How good are finished classifiers on the test part? The one script that scores it; run it when the choices are made.

    python downstream_task/confusion_matrix.py
    python downstream_task/confusion_matrix.py --runs runs/compare/covid
    python downstream_task/confusion_matrix.py --runs runs/compare/covid/random_linear_n93_d0
    python downstream_task/confusion_matrix.py --runs runs/compare/covid --external covid:/data/another_hospital

It reads the predictions.csv of each training: no images, no network, seconds per run. A comparison gets curves.csv,
differences.csv and plateaus.csv of all its runs in runs/test/<comparison>/all/. Each run that you name gets a page in
runs/test/<run>/, and so does each main way of a comparison; that page joins the first draw of every fold, and so
covers all test images. A page is scores.csv, classes.csv, operating_points.csv, conformal.csv, subgroups.csv and
figures/, with 95% intervals over patients or duplicate groups. Scores are computed within folds, then averaged; ECE,
operating points, conformal sets and the confusion matrix join the images of all folds. Temperature and thresholds are
chosen on the validation rows; the tables say on how many labels. If a data set knows studies (CheXpert), its findings
are also scored by study, on the mean over the frontal views.
With `external`, the networks predict all images of other collections, which they must not have seen. The drop is the
difference to the test part, over the classes that both have. runs/external/<collection>/<run>/ holds predictions.csv
and a page. This needs weights, which a comparison keeps of its first draw.
"""

from typing import Annotated, Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "runs": ["runs/compare/phantom"],  # fine-tuning runs or comparisons: folders under runs/
    "external": [],  # other collections: DATASET or DATASET:FOLDER, such as covid:/data/another_hospital
    "device": "auto",  # of the networks on these: "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads of the networks; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from downstream_task import label_efficiency
from downstream_task.clinic.tables import Page, page
from downstream_task.predictions import FILE, networks_of, predicted, predictions_of, read_predictions, run_name
from utils import plots
from utils.config import RUNS_ROOT, VERSION, MachineConfig, UserError, bound, differences, part_of, repo_path
from utils.files import check_files, content_hash, read_json, write_json, write_table
from utils.scripts import command, tracked
from utils.software import software
from utils.wording import OVER_PATIENTS, interval_text, metric_name, network_name

PRINTED = ("accuracy", "balanced_accuracy", "auroc", "auroc_by_study", "ece", "ece_after_temperature_scaling")
NAMED = 3  # changed tables that a message names


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(MachineConfig):
    """The config above, checked."""

    runs: Annotated[list[str], bound(bool, "name at least one folder under runs/")]
    external: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.external:
            from downstream_task.clinic.external import check_external  # it imports torch

            check_external(self.external)


def main(config: ScoreConfig) -> None:
    """Score every run on the test part, then every comparison; print one row per run, and what comparisons say."""
    networks = {name: heads for each in config.runs for name, heads in networks_of(each).items()}
    runs = [heads[0] for heads in networks.values()]  # of the first draw, whose weights are kept
    compared = [folder for folder in map(repo_path, config.runs) if (folder / "summary.csv").exists()]
    if compared:
        print("\nOf a comparison, each number of labels has the network of its main way, which is fixed beforehand.")
        print("The second table and all/curves.csv have all ways.")
    print(score_table({name: score_network(name, networks[name]) for name in tracked(networks, "scoring", "network")}))
    for folder in compared:
        print("\n".join(score_comparison(folder)))
    if config.external:
        from downstream_task.clinic.external import external_tests

        for text in external_tests(runs, config.external, config):
            print(text)
    print(f"\ntables and figures   {RUNS_ROOT / 'test'}/")
    print(f"next   {next_command(runs, config)}")


def next_command(runs: Sequence[Path], config: ScoreConfig) -> str:
    """Return the audit of the last run that kept its weights; tables from elsewhere have none."""
    kept = [folder for folder in runs if any(folder.glob("*_state_dict.pt"))]
    if not kept:
        return command("utils/make_report.py", {})
    last = f"runs/{run_name(kept[-1])}" if kept[-1].is_relative_to(RUNS_ROOT) else str(kept[-1])
    return command("interpretability/shortcut_audit.py", {"checkpoints": [last], **part_of(config, MachineConfig)})


def results(name: str, kind: str, made_from: Mapping[str, Any], compute: Callable[[Path], Page]) -> dict[str, Any]:
    """Return the summary in a folder under runs/; if it is not finished, compute tables, figures and summary first.

    made_from  what is scored: its name, and the hash of its table, or of each table by name

    Raises UserError if the folder holds finished results of other tables.
    """
    folder = RUNS_ROOT / name
    if summary := read_json(folder / "summary.json"):
        stored = {key: summary[key] for key in made_from if key in summary}
        if changed := differences(stored, made_from):
            more = f" and {len(changed) - NAMED} more" * (len(changed) > NAMED)
            raise UserError(
                f"{folder} holds results of other predictions: {', '.join(changed[:NAMED])}{more}. Nothing was "
                "changed; delete that folder."
            )
        check_files(folder, *({"test": ["scores.csv", "classes.csv"]}.get(kind, ["curves.csv", "differences.csv"])))
        return summary
    tables, figures, found = compute(folder)
    write_json(folder / "config.json", {"version": VERSION, **made_from})
    write_json(folder / "environment.json", {**software(), "kind": kind})
    for table, values in tables.items():
        write_table(folder / f"{table}.csv", values)
    for figure, drawn in figures.items():
        plots.write_figure(folder / "figures" / f"{figure}.png", drawn)
    write_json(folder / "summary.json", {**found, **made_from})  # last: it is done
    return {**found, **made_from}


def score_network(name: str, heads: Sequence[Path]) -> dict[str, Any]:
    """Score a network, whose heads are of several folds perhaps, on the test part; return its summary."""
    paths = {folder: current(folder) for folder in heads}

    def compute(_: Path) -> Page:
        # a table from elsewhere has no summary of its own, and a mean's says little
        of_head = [[read_json(at / "summary.json") or {} for at in (head.parent, head)] for head in heads]
        stated = [{**around, **own} for around, own in of_head]
        tables = pd.concat([read_predictions(path) for path in paths.values()], ignore_index=True)
        # a test part that the source names is the same in all folds
        test = tables.loc[tables["part"] == "test"].drop_duplicates("file")
        if not len(test):
            raise UserError(f"{heads[0]} has no test rows, as after training on all films; there is nothing to score.")
        used = tables.merge(test[["fold", "draw"]].drop_duplicates())
        tested, validation = predicted(test, "test"), predicted(used, "val")
        marks = {"synthetic": stated[0]["synthetic"], "transductive": any(one.get("transductive") for one in stated)}
        cell = test[["arm", "way", "labels"]].to_dict("records")[0]
        title = plots.marked(f"{network_name(cell)}\n{len(test):,} X-rays of the test part", **marks)
        page_tables, figures, found = page(tested, validation, title)
        notes = "; ".join(sorted({one.get("note", "") for one in stated} - {""}))
        folds = sorted(set(test["fold"].tolist()))
        return page_tables, figures, {**cell, "folds": folds, **marks, "note": notes, **found}

    hashes = {folder.name: content_hash(path) for folder, path in paths.items()}
    [first, *others] = hashes.values()
    return results(f"test/{name}", "test", {"tested": name, "predictions": hashes if others else first}, compute)


def current(folder: Path) -> Path:
    """Return the table of predictions of a run. Raises UserError if it is of the earlier protocol."""
    path = predictions_of(folder)
    if path is None or path.name != FILE:
        raise UserError(
            f"{folder} was trained under the earlier protocol, without {FILE}; train it again under another name, or "
            "score it with the version that made it."
        )
    return path


def score_table(pages: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores as text: one row per run, one column per score."""
    first = next(iter(pages.values()))
    rows = {
        name: {metric_name(score): interval_text(*summary[score], form=".2f") for score in PRINTED if score in summary}
        for name, summary in pages.items()
    }
    title = plots.marked(
        f"{first['images']:,} X-rays of {first['groups']:,} groups, test part",
        first["synthetic"],
        any(summary["transductive"] for summary in pages.values()),
    )
    chosen = sorted({f"{summary['validation_labels']:,}" for summary in pages.values()})
    notes = [f"Temperatures, thresholds and sets are chosen on {' or '.join(chosen)} labelled validation images."]
    notes += sorted({summary["note"] for summary in pages.values()} - {""})
    return "\n".join(["", f"{title}: value {OVER_PATIENTS}", pd.DataFrame(rows).T.to_string(), *notes])


def score_comparison(folder: Path) -> list[str]:
    """Compare the arms of a comparison on the test rows of all its runs; return lines to print."""
    runs = pd.read_csv(folder / "summary.csv", dtype=dict.fromkeys(["trial", "arm", "way", "encoder"], str))
    paths, name = {trial: current(folder / trial) for trial in runs["trial"]}, run_name(folder)

    def compute(_: Path) -> Page:
        compared = {**(read_json(folder / "summary.json") or {}), "part": "test"}
        cells = label_efficiency.read_cells(runs, lambda trial: read_predictions(paths[trial]), "test")
        tables, text, figure = label_efficiency.report(cells, compared)
        lines = [text, *compared["notes"]]
        return tables, {"label_efficiency": figure}, {**compared, "report": lines}

    made_from = {"tested": name, "predictions": {trial: content_hash(path) for trial, path in paths.items()}}
    return results(f"test/{name}/all", "test comparison", made_from, compute)["report"]


if __name__ == "__main__":
    run_script(main, ScoreConfig, config)
