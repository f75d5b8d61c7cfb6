"""Finished fine-tuning runs, opened again: their classifiers and the data that they may be scored on."""

import fnmatch
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dataset_loader.ids import open_ids
from dataset_loader.image_files import image_files
from dataset_loader.listing import details, listing
from dataset_loader.readers.tables import class_key
from dataset_loader.xrays import DataConfig, FoldConfig, XRays, check_there, open_xrays, read_present
from downstream_task.classifier import Classifier, load_classifier
from downstream_task.finetune_config import FinetuneConfig
from downstream_task.predictions import labels_and_probabilities, logits_of, read_predictions
from downstream_task.probes import forward_all
from downstream_task.targets import Targets, probabilities_of, read_targets
from self_sup_classes.provenance import Provenance, check_unseen, provenance_of
from self_sup_classes.weights import read_state_dict
from utils.config import RUNS_ROOT, UserError, nearest, open_config, part_of, repo_path
from utils.facts import LISTED, changes_since
from utils.files import check_files, content_hash, read_json
from utils.hardware import choose_precision, placed
from utils.metrics import fit_temperature


@dataclass(frozen=True)
class Scored:
    """What a network says about some X-rays.

    rows         [n] where they are in `xrays`
    logits       float64 [n, C]
    temperature  of the network, fitted on its validation part
    validation   labels [K] and probabilities [K, C] at that temperature of its validation part
    note         on images that it has seen, "" if none
    """

    xrays: XRays
    targets: Targets
    rows: np.ndarray
    logits: Tensor
    temperature: float
    validation: tuple[np.ndarray, np.ndarray]
    note: str

    @property
    def labels(self) -> np.ndarray:
        """Return the classes [n] or findings [n, C]."""
        return self.targets.values[self.rows]

    @property
    def groups(self) -> np.ndarray:
        """Return the patients or duplicate groups [n]."""
        return self.xrays.columns.groups[self.rows]

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """Return probabilities [n, C] as the network gives them."""
        return self.targets.probabilities(self.logits)

    @functools.cached_property
    def scaled(self) -> np.ndarray:
        """Return probabilities [n, C] at the temperature."""
        return self.targets.probabilities(self.logits / self.temperature)


@dataclass(frozen=True)
class Finished:
    """A finished fine-tuning run.

    folder   its absolute path
    config   its config.json
    summary  its summary.json
    """

    folder: Path
    config: FinetuneConfig
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """Return its folder below runs/, or the last part of a folder elsewhere."""
        return run_name(self.folder)

    @property
    def path(self) -> str:
        """Return how a config names its folder."""
        return f"runs/{self.name}" if self.folder.is_relative_to(RUNS_ROOT) else str(self.folder)

    @property
    def weights(self) -> Path:
        """Return the file of its weights. Raises UserError if they were not kept.

        Runs of earlier versions have those that were best on validation.
        """
        before = self.folder / f"{self.config.backbone}_best_state_dict.pt"
        name = before.name if before.exists() else f"{self.config.backbone}_final_state_dict.pt"
        if not (self.folder / name).exists() and (self.folder / "predictions.csv").exists():
            raise UserError(
                f"{self.folder} kept no weights: a comparison keeps those of draw 0 of what headlines, and all with "
                "--keep-weights."
            )
        check_files(self.folder, name)
        return self.folder / name

    @property
    def data_root(self) -> Path:
        """Return the folder of its data, as it was."""
        return Path((read_json(self.folder / "environment.json") or {}).get("data", {}).get("data_root", ""))

    def train_files(self) -> frozenset[str]:
        """Return the files of its data's train part, with links resolved; none if the run holds no names (ids none)."""
        split = pd.read_csv(self.folder / "split.csv", dtype=str)
        root = self.data_root
        files = split.loc[split["part"] == "train", "file"].tolist()
        if self.config.ids == "hashed":
            here = image_files(root)
            files = here[np.isin(open_ids("hashed", root).files(here), files)]
        return frozenset(str((root / file).resolve()) for file in files if self.config.ids != "none")

    def weights_hash(self) -> str:
        """Return 16 hex digits that name those weights."""
        return content_hash(self.weights)

    def classifier(self, device: torch.device) -> Classifier:
        """Return the network with those weights."""
        config, names = self.config, self.summary["classes"]
        return placed(load_classifier(self.weights, config.backbone, config.in_channels, names), device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return [N, C] of its logits [N, C]."""
        return probabilities_of(logits, self.summary["multilabel"])

    def validation(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return labels [K] and logits [K, C] of its validation part, and the temperature that makes them likeliest."""
        before = self.folder / "predictions_val.csv"  # of earlier versions
        table = read_predictions(before if before.exists() else self.folder / "predictions.csv")
        labels, p = labels_and_probabilities(table.loc[table["part"] == "val"] if "part" in table else table)
        logits = logits_of(p, self.summary["multilabel"])
        return labels, logits, fit_temperature(logits, labels)

    def held_out(self, xrays: XRays) -> tuple[Targets, str]:
        """Return its targets in `xrays`, and a note if it has seen some that are held out ("" if not).

        Raises UserError if they are split in another way than for its training, or if it has seen held-out images and
        its config does not allow that.
        """
        if "comparison" in self.summary:
            raise UserError(
                f"{self.folder} was trained on all labelled films, so that none is left to test it on; its scores are "
                f"those of {self.summary['comparison']}. It serves predict.py, and grad_cam.py with --images."
            )
        recorded, now = (read_json(self.folder / "environment.json") or {}).get("data", {}), xrays.facts()
        changes = ", ".join(changes_since({"data": recorded}, {"data": now}))
        if self.summary["split_hash"] != xrays.split_hash:
            raise UserError(
                f"{self.folder} was trained under split {self.summary['split_hash']}, but the images at "
                f"{xrays.columns.root} make split {xrays.split_hash} now: "
                f"{changes or 'files came or went, or these are other data'}. Restore them, or train again."
            )
        if recorded.get("pixels", [])[:1] != now["pixels"] and recorded.get("data_root") != now["data_root"]:
            raise UserError(
                f"the images at {xrays.columns.root} have the names of those that {self.folder} was trained on, at "
                f"{recorded.get('data_root')}, but show something else; --data-root must name the same images."
            )
        if changes:
            print(f"warning: since {self.folder} was trained, its data have changed: {changes}", file=sys.stderr)
        if not len(xrays.indices("test")):
            raise UserError(
                f"there are no test images in {xrays.columns.root}: test_share is 0, or the table names none."
            )
        note = check_unseen(self.provenance(), xrays, self.config.allow_seen, str(self.weights))
        findings = self.summary["classes"] if self.summary["multilabel"] else []
        return read_targets(xrays, replace(self.config, findings=findings)), note

    def look(self, xrays: XRays, targets: Targets, rows: np.ndarray, note: str) -> Scored:
        """Return what its network says about the X-rays at `rows` [n]."""
        config, device = self.config, xrays.store.device
        classifier, dtype = self.classifier(device), choose_precision(config.precision, device)
        logits = forward_all(classifier, xrays, rows, config.img_res, config.in_channels, dtype).double()
        labels, val_logits, temperature = self.validation()
        validation = labels, self.probabilities(torch.from_numpy(val_logits / temperature)).numpy()
        return Scored(xrays, targets, rows, logits, temperature, validation, note)

    def provenance(self) -> Provenance | None:
        """Return what its weights were trained on, or None if that is not known."""
        return provenance_of(read_state_dict(self.weights))

    def shared_targets(self, xrays: XRays) -> tuple[Targets, np.ndarray, list[str]]:
        """Return targets of another collection by the network's own classes or findings, for an external test.

        Also the rows [n] that can be scored (X-rays of a class that the network knows; for findings, all), and the
        names that both have: classes with X-rays, findings of which X-rays are positive and others negative. All other
        findings are NaN.
        Raises UserError if there are fewer than two shared classes, or no shared finding.
        """
        names, columns, multilabel = self.summary["classes"], xrays.columns, self.summary["multilabel"]
        found = {class_key(name): name for name in columns.label_names}
        theirs = {name: found[class_key(name)] for name in names if class_key(name) in found}
        values, shared = self._values(xrays, theirs) if multilabel == (columns.labels.ndim > 1) else (None, [])
        if values is None or len(shared) < 2 - multilabel:
            raise UserError(
                f"{columns.root} has {', '.join(columns.label_names)}, and {self.folder} predicts {', '.join(names)}; "
                "an external test needs images of two classes, or positive and negative ones of a finding, of the same "
                "name."
            )
        rows = np.arange(len(xrays)) if multilabel else np.flatnonzero(values >= 0)
        return Targets(values, tuple(names)), rows, shared

    def _values(self, xrays: XRays, theirs: dict[str, str]) -> tuple[np.ndarray, list[str]]:
        """Return classes [N] (-1: another) or findings [N, C] of a collection, and which of the names occur there.

        `theirs` is what the collection calls each name that both have.
        """
        names, columns = self.summary["classes"], xrays.columns
        if columns.labels.ndim == 1:
            place = {there: names.index(name) for name, there in theirs.items()}
            values = np.array([place.get(name, -1) for name in columns.label_names])[columns.labels]
            return values, [name for name in theirs if names.index(name) in values]
        values = np.full((len(xrays), len(names)), np.nan, dtype=np.float32)
        for name, there in theirs.items():
            known = read_targets(xrays, replace(self.config, findings=[there])).values[:, 0]
            if {0, 1} <= set(known):
                values[:, names.index(name)] = known
        return values, [name for name in theirs if not np.isnan(values[:, names.index(name)]).all()]


class OpenedData:
    """The data sets that several finished runs name, each opened, and its tables read, once.

    data_root  where the data of the runs are now; "" is where they were
    """

    def __init__(self, device: torch.device, data_root: str = ""):
        self.device, self.data_root = device, data_root
        self.opened: dict[str, XRays] = {}
        self.listed: dict[str, dict[str, Any]] = {}

    def at(self, finished: Finished) -> DataConfig:
        """Return the data of a run, where they are now."""
        return replace(finished.config, data_root=self.data_root or finished.config.data_root)

    def of(self, config: DataConfig) -> XRays:
        """Return the data that a config names."""
        if (key := json.dumps(part_of(config, DataConfig))) not in self.opened:
            self.opened[key] = open_xrays(config, self.device)
        return self.opened[key].of_fold(config.fold if isinstance(config, FoldConfig) else 0)

    def of_run(self, finished: Finished) -> XRays:
        """Return the data of a run. Raises Gone if they are not there any more."""
        check_there(self.at(finished))
        return self.of(self.at(finished))

    def facts(self, config: DataConfig) -> dict[str, Any]:
        """Return what tables and names say of the data that a config names, with the details that scores are split by.

        Raises Gone if they are not there.
        """
        if (key := json.dumps(part_of(config, DataConfig))) not in self.listed:
            columns = read_present(config).labelled()
            self.listed[key] = {LISTED: {**listing(columns), "details": details(columns)}}
        return self.listed[key]


def find_finished(name: str) -> list[Finished]:
    """Return the finished fine-tuning runs that a name stands for: a run, or the chosen runs of a finished comparison.

    A run's *_best_state_dict.pt stands for the run. A * in the last part of a name chooses among the runs of a
    comparison. Raises UserError if nothing is found.
    """
    folder, pattern = repo_path(name), "*"
    if "*" in folder.name:
        folder, pattern = folder.parent, folder.name
    elif folder.name.endswith("_best_state_dict.pt") and folder.is_file():
        folder = folder.parent
    listed = [folder]
    if (folder / "summary.csv").exists():
        table = pd.read_csv(folder / "summary.csv")
        names = [str(name) for name in (table.query("chosen") if "chosen" in table else table)["trial"]]
        listed = [folder / name for name in fnmatch.filter(names, pattern)]
    found = [path for path in listed if (path / "predictions_val.csv").exists() and (path / "summary.json").exists()]
    if not found or not (folder / "summary.json").exists():
        if not folder.exists():
            beside = [path.name for path in folder.parent.glob("*/")]
            raise UserError(f"there is no run {folder}; {nearest(folder.name, beside)}")
        raise UserError(
            f"{repo_path(name)} is not a finished fine-tuning run or comparison; run "
            "downstream_task/trained_vs_no_trained_compare.py first, or name one of the folders that it writes."
        )
    for path in listed:
        check_files(path, "predictions_val.csv", "summary.json")
    read = [(path, read_json(path / "config.json") or {}, read_json(path / "summary.json") or {}) for path in found]
    return [Finished(path, open_config(FinetuneConfig, config), summary) for path, config, summary in read]


def open_checkpoints(names: Sequence[str]) -> dict[str, Finished]:
    """Return finished runs by a short name. Raises UserError for none, a comparison's folder, or a run named twice."""
    runs: dict[str, Finished] = {}
    chosen: list[Finished] = []
    for name in names:
        found = find_finished(name)
        if len(found) > 1 and "*" not in name:
            examples = ", ".join(f"{name}/{run.folder.name}" for run in found[:2])
            raise UserError(f"{name} holds {len(found)} runs; name those to look at, such as {examples}.")
        chosen += found
    for finished in chosen:
        short = finished.folder.name
        runs[finished.name if short in runs else short] = finished
    if len(runs) < max(1, len(chosen)):
        raise UserError("checkpoints is empty or names a run twice; name each fine-tuning run under runs/ once.")
    return runs


def run_name(folder: Path) -> str:
    """Return a folder's name below runs/, or the last part of a folder elsewhere."""
    root = RUNS_ROOT.resolve()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name
