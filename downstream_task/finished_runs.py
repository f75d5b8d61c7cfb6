"""Finished fine-tuning runs, opened again: their classifiers and the data that they may be scored on."""

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
from dataset_loader.xrays import DataConfig, FoldConfig, XRays, check_there, open_xrays, read_present
from downstream_task.classifier import Classifier, load_classifier
from downstream_task.finetune_config import FinetuneConfig
from downstream_task.predictions import (
    FILE,
    find_runs,
    labels_and_probabilities,
    logits_of,
    predictions_of,
    read_predictions,
    run_name,
)
from downstream_task.targets import Targets, probabilities_of, read_targets
from self_sup_classes.backbones import weights_file
from self_sup_classes.provenance import Provenance, check_unseen, provenance_of
from self_sup_classes.weights import read_state_dict
from utils.config import RUNS_ROOT, UserError, open_config, part_of
from utils.facts import LISTED, changes_since
from utils.files import check_files, content_hash, read_json
from utils.hardware import placed
from utils.metrics import fit_temperature


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
        before = self.folder / weights_file(self.config.backbone, "best")
        name = before.name if before.exists() else weights_file(self.config.backbone)
        if not (self.folder / name).exists() and (self.folder / FILE).exists():
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
        table = read_predictions(predictions_of(self.folder) or self.folder / FILE)
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
            raise UserError(f"there are no test images in {xrays.columns.root}: its table names none.")
        note = check_unseen(self.provenance(), xrays, self.config.allow_seen, str(self.weights))
        findings = self.summary["classes"] if self.summary["multilabel"] else []
        return read_targets(xrays, replace(self.config, findings=findings)), note

    def provenance(self) -> Provenance | None:
        """Return what its weights were trained on, or None if that is not known."""
        return provenance_of(read_state_dict(self.weights))


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
    """Return the finished fine-tuning runs that a name stands for, without tables from elsewhere; see find_runs."""
    return [open_finished(folder) for folder in find_runs(name) if (folder / "config.json").exists()]


def open_finished(folder: Path) -> Finished:
    """Return the finished fine-tuning run in a folder."""
    config, summary = (read_json(folder / f"{name}.json") or {} for name in ("config", "summary"))
    return Finished(folder, open_config(FinetuneConfig, config), summary)


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
