"""Finished networks on the X-rays of another hospital, beside their scores on the test part."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset_loader.readers.folder_dataset import TABLE
from dataset_loader.readers.tables import class_key
from dataset_loader.xrays import DATASETS, DataConfig, XRays
from downstream_task.clinic.tables import page, score_of
from downstream_task.finetuning import FinetuneConfig, input_format
from downstream_task.finished_runs import Finished, OpenedData, open_finished
from downstream_task.predictions import CELL, FILE, Predicted, predicted, read_predictions
from downstream_task.probes import forward_all
from downstream_task.targets import Targets, predictions_table, read_targets
from utils import plots
from utils.config import MachineConfig, UserError, check_choice, make_config, part_of, repo_path
from utils.files import check_files, content_hash
from utils.hardware import describe_device, prepare
from utils.intervals import independent_difference
from utils.logging_utils import Run
from utils.metrics import one_against_rest
from utils.scripts import tracked
from utils.wording import OVER_PATIENTS, interval_text, metric_name, network_name


def check_external(entries: Sequence[str]) -> None:
    """Raise UserError for an entry of `external` that does not start with a layout."""
    for entry in entries:
        if ":" not in entry and repo_path(entry).is_dir():
            raise UserError(f"external holds {entry!r}; write its layout before it, such as folder:{entry}.")
        check_choice("external", entry.partition(":")[0], DATASETS)


def external_tests(folders: Sequence[Path], entries: Sequence[str], machine: MachineConfig) -> Iterator[str]:
    """Test the runs in `folders` on each collection that `entries` name; yield a table of each as text.

    Raises UserError if they have too few classes in common, or if a network has seen one of the images.
    """
    data = OpenedData(prepare(machine.device, machine.threads))
    kept = [folder for folder in folders if any(folder.glob("*_final_state_dict.pt"))]
    if not kept:
        raise UserError(
            "no run that is named has kept its weights, which predict the other images; name one of draw 0, or compare "
            "with --keep-weights."
        )
    for entry in entries:
        runs = map(open_finished, tracked(kept, entry, "run"))
        yield external_table([external_test(run, external_data(entry, run.config), data) for run in runs])
        if len(kept) < len(folders):
            yield f"left out: {len(folders) - len(kept):,} runs without weights"


def external_data(entry: str, trained: FinetuneConfig) -> DataConfig:
    """Return the data that an entry of `external` names, at the sizes of a run's own data."""
    dataset, _, root = entry.partition(":")
    labels = "table" if dataset != "folder" or (repo_path(root) / TABLE).is_file() else "folders"
    there = {"dataset": dataset, "data_root": root, "labels": labels, "keep_split": ""}
    return make_config(DataConfig, {**part_of(trained, DataConfig), **there})


def external_test(finished: Finished, config: DataConfig, data: OpenedData) -> dict[str, Any]:
    """Predict all images of a collection and score them from that table; return the stored summary if that was done.

    The score and its drop from the test part are over the classes or findings that both have.
    """
    root, internal = Path(config.data_root), content_hash(finished.folder / FILE)
    # many folders have a data set's own name, so the one around it is part of the name
    name = "-".join([config.dataset, *root.relative_to(root.anchor).parts[-2:]])
    identity = {"tested": finished.name, "weights": content_hash(finished.weights), "external": config}
    where = f"external/{name}/{finished.name}"
    run = Run(where, identity, "external test", look=lambda: {"data": data.facts(config), "predictions": internal})
    if run.summary is not None:
        check_files(run.folder, FILE, "scores.csv")
        return run.summary
    xrays = data.of(config)
    targets, rows = shared_targets(finished, xrays)
    note = finished.check_unseen(xrays, rows)
    logits = forward_all(finished.classifier(data.device), xrays, rows, input_format(finished.config, data.device))
    run.start(device=describe_device(data.device), data=xrays.facts() | data.facts(config), predictions=internal)
    here = read_predictions(finished.folder / FILE)
    cell = here.iloc[0][CELL].to_dict()
    table = predictions_table(xrays, targets, rows, targets.probabilities(logits), cell)
    run.save_table("predictions", table.assign(part="test"))
    marks = {"synthetic": xrays.synthetic, "transductive": bool(note)}
    scored = save_page(run, here, plots.marked(f"{network_name(cell)}\n{len(rows):,} X-rays of {name}", **marks))
    stated = {**marks, "note": note, "tested": finished.name, "collection": name, "predictions": internal}
    run.finish({**stated, "of_other_classes": len(xrays) - len(rows), **scored})
    return run.summary or {}


def save_page(run: Run, here: pd.DataFrame, title: str) -> dict[str, Any]:
    """Score a run's predictions as those of the test part are, beside the network's own, `here`; return the facts."""
    there = predicted(read_predictions(run.folder / FILE), "test")
    tables, figures, scored = page(there, predicted(here, "val"), title)
    for name, table in tables.items():
        run.save_table(name, table)
    for name, figure in figures.items():
        run.save_figure(name, figure)
    return {**scored, **compared_with_test(predicted(here, "test"), there)}


def compared_with_test(here: Predicted, there: Predicted) -> dict[str, Any]:
    """Return the `internal` score, on the test part, the `outside` one and the `drop`, each with low and high.

    All over the classes or findings that occur in both. `missing` are those that do not occur there.
    """
    known = occurring(here.truth, here.multilabel) & occurring(there.truth, there.multilabel)
    found = []
    for seed, side in enumerate((here, there)):
        if side.multilabel:
            kept = replace(side, labels=np.where(known, side.labels, np.nan))
        else:
            kept = side.take(np.flatnonzero(known[side.labels]))
        found.append(score_of(kept, seed))
    missing = np.array(there.names)[~occurring(there.truth, there.multilabel)].tolist()
    named = {"internal": found[0], "outside": found[1], "drop": independent_difference(*found)}
    return {"missing": missing, **{name: list(values) for name, values in named.items()}}


def occurring(truth: np.ndarray, multilabel: bool) -> np.ndarray:
    """Return which classes have images, or which findings have positive and negative ones, bool [C] of truth [N, C]."""
    return (truth == 1).any(0) & ((truth == 0).any(0) | (not multilabel))


def external_table(tested: Sequence[Mapping[str, Any]]) -> str:
    """Return internal score, external score and drop as text, one row per run, and what the collection lacks."""
    first, rows = tested[0], {}
    for summary in tested:
        values = {"test part": summary["internal"], "external": summary["outside"], "drop": summary["drop"]}
        rows[summary["tested"]] = {name: interval_text(*value, form=".2f") for name, value in values.items()}
    title = plots.marked(f"{first['images']:,} X-rays of {first['collection']}, external test", first["synthetic"])
    lacks = [f"it has no images of: {', '.join(first['missing'])}; left out of both scores"] if first["missing"] else []
    if first["of_other_classes"]:
        lacks.append(f"left out: {first['of_other_classes']:,} images of classes that the network does not know")
    name = metric_name(first["metric"])
    return "\n".join(["", f"{title}: {name} {OVER_PATIENTS}", pd.DataFrame(rows).T.to_string(), *lacks])


def shared_targets(finished: Finished, xrays: XRays) -> tuple[Targets, np.ndarray]:
    """Return targets of another collection by the network's own classes or findings, and the rows [n] to be scored.

    These are the X-rays of a class that the network knows; for findings, all. Findings that only one of them has are
    NaN. Raises UserError if fewer than two classes, or no finding, occur there.
    """
    names, columns, multilabel = finished.summary["classes"], xrays.columns, finished.summary["multilabel"]
    theirs = {class_key(name): name for name in columns.label_names}
    both = {names.index(name): theirs[class_key(name)] for name in names if class_key(name) in theirs}
    values = np.full((len(xrays), len(names)) if multilabel else len(xrays), np.nan if multilabel else -1)
    if both and multilabel == (columns.labels.ndim > 1):
        if multilabel:
            values[:, list(both)] = read_targets(xrays, replace(finished.config, findings=[*both.values()])).values
        else:
            place = {there: here for here, there in both.items()}
            values = np.array([place.get(name, -1) for name in columns.label_names])[columns.labels]
    if occurring(one_against_rest(values, len(names)), multilabel).sum() < 2 - multilabel:
        raise UserError(
            f"{columns.root} has {', '.join(columns.label_names)}, and {finished.folder} predicts {', '.join(names)}; "
            "an external test needs images of two classes, or positive and negative ones of a finding, of the same "
            "name."
        )
    return Targets(values, tuple(names)), np.arange(len(xrays)) if multilabel else np.flatnonzero(values >= 0)
