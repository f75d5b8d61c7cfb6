"""Finished fine-tuning runs, opened again: their classifiers, and the data that they may be scored on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch

from dataset_loader.columns import UNLABELLED
from dataset_loader.ids import open_ids
from dataset_loader.image_files import image_files
from dataset_loader.listing import details, listing
from dataset_loader.xrays import (
    WITHOUT_LABEL,
    DataConfig,
    SizeOrZero,
    XRays,
    check_there,
    open_xrays,
    read_columns,
    with_room,
)
from downstream_task.classifier import Classifier, load_classifier
from downstream_task.finetuning import FinetuneConfig, input_format
from downstream_task.predictions import (
    FILE,
    logits_of,
    networks_of,
    predicted,
    predictions_of,
    read_predictions,
    run_name,
)
from downstream_task.probes import InputFormat, forward
from downstream_task.targets import Targets, probabilities_of, read_targets
from self_sup_classes.backbones import BackboneName, Channels, weights_file
from self_sup_classes.provenance import check_unseen, provenance_of
from self_sup_classes.weights import read_state_dict
from utils.config import DATASETS_ROOT, UserError, each_once, open_config, part_of, repo_path
from utils.facts import LISTED, changes_since
from utils.files import check_files, content_hash, read_json
from utils.hardware import MachineConfig, placed
from utils.messages import say
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
    def weights(self) -> Path:
        """Return the file of its weights. Raises UserError if they were not kept.

        Runs of earlier versions have those that were best on validation.
        """
        before, now = (self.folder / weights_file(self.config.backbone, kind) for kind in ("best", "final"))
        path = before if before.exists() else now
        if not path.exists() and (self.folder / FILE).exists():
            raise UserError(
                f"{self.folder} kept no weights: a comparison keeps those of draw 0 of its main ways, or all "
                "with --keep-weights."
            )
        check_files(self.folder, path.name)
        return path

    @property
    def data(self) -> dict[str, Any]:
        """Return what it recorded about its data."""
        return (read_json(self.folder / "environment.json") or {}).get("data", {})

    def train_files(self) -> frozenset[str]:
        """Return the files that it could learn from, with links resolved; none if the run holds no names (ids none).

        These are its data's train part and, where labels spread, the images without a label.
        """
        split, root = pd.read_csv(self.folder / "split.csv", dtype=str), Path(self.data.get("data_root", ""))
        parts = ["train"] if self.config.also is None else ["train", UNLABELLED]
        files = split.loc[split["part"].isin(parts), "file"].tolist()
        if self.config.ids == "hashed":
            here = image_files(root)
            files = here[np.isin(open_ids("hashed", root).files(here), files)]
        return frozenset(str((root / file).resolve()) for file in files if self.config.ids != "none")

    def classifier(self, device: torch.device) -> Classifier:
        """Return the network with those weights."""
        config, names = self.config, self.summary["classes"]
        return placed(load_classifier(self.weights, config.backbone, config.in_channels, names), device)

    def temperature(self) -> float:
        """Return the temperature that makes the labels of its validation part likeliest."""
        table = read_predictions(predictions_of(self.folder) or self.folder / FILE)
        val = predicted(table if "part" in table else table.assign(part="val"), "val")
        return fit_temperature(logits_of(val.probabilities, val.multilabel), val.labels)

    def check_unseen(self, xrays: XRays, rows: np.ndarray | None = None) -> str:
        """Return a note on the images of other parts than train, or `rows`, that it has seen: see provenance.py."""
        provenance = provenance_of(read_state_dict(self.weights))
        return check_unseen(provenance, xrays, self.config.allow_seen, str(self.weights), rows)

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
        root = xrays.columns.root
        recorded = self.data.get(LISTED, xrays.listed)  # the first version did not record it
        before = {name: one for name, one in recorded.items() if name != WITHOUT_LABEL}  # images that are not opened
        changes = ", ".join(changes_since(*({"data": {LISTED: listed}} for listed in (before, xrays.listed))))
        if self.summary["split_hash"] != xrays.split_hash:
            raise UserError(
                f"{self.folder} was trained under split {self.summary['split_hash']}, but the images at {root} make "
                f"split {xrays.split_hash} now: {changes or 'files came or went, or these are other data'}. Restore "
                "them, or train again."
            )
        if self.data.get("data_root") != str(root) and self.data.get("pixels", [])[:1] != [xrays.store.pixels]:
            raise UserError(
                f"{self.folder} was trained on the images at {self.data.get('data_root')}; those at {root} have the "
                "same names, but show something else. --data-root must name the same images."
            )
        if changes:
            say(f"warning: since {self.folder} was trained, its data have changed: {changes}")
        if not len(xrays.indices("test")):
            raise UserError(f"there are no test images in {root}: its table names none.")
        findings = self.summary["classes"] if self.summary["multilabel"] else []
        return read_targets(xrays, replace(self.config, findings=findings)), self.check_unseen(xrays)


class OpenedData:
    """The data sets that several finished runs name, each opened, and its tables read, once.

    data_root  where the data of the runs are now; "" is where they were
    """

    def __init__(self, device: torch.device, data_root: str = ""):
        self.device, self.data_root = device, data_root
        self.opened: dict[str, XRays] = {}
        self.listed: dict[str, dict[str, Any]] = {}

    def at(self, finished: Finished) -> FinetuneConfig:
        """Return the config of a run, with the place where its data are now."""
        return replace(finished.config, data_root=self.data_root or finished.config.data_root)

    def of(self, config: DataConfig) -> XRays:
        """Return the data that a config names."""
        if (key := json.dumps(part_of(config, DataConfig))) not in self.opened:
            self.opened[key] = open_xrays(config, self.device)
        return self.opened[key].of_fold(getattr(config, "fold", 0))

    def of_run(self, finished: Finished) -> XRays:
        """Return the data of a run. Raises Gone if they are not there any more."""
        check_there(self.at(finished))
        return self.of(self.at(finished))

    def facts(self, config: DataConfig) -> dict[str, Any]:
        """Return what tables and names say of the data that a config names, with the details that scores are split by.

        Raises Gone if they are not there.
        """
        if (key := json.dumps(part_of(config, DataConfig))) not in self.listed:
            columns = read_columns(config, draw=False).labelled()
            self.listed[key] = {LISTED: {**listing(columns), "details": details(columns)}}
        return self.listed[key]


def find_finished(name: str) -> list[Finished]:
    """Return the finished runs that a name stands for (networks_of), by their first heads.

    Means and tables from elsewhere have no network and are passed over. Raises UserError if nothing else is found.
    """
    heads = [runs[0] for runs in networks_of(name).values()]
    if trained := [folder for folder in heads if (folder / "config.json").exists()]:
        return [open_finished(folder) for folder in trained]
    if pair := (read_json(heads[0] / "summary.json") or {}).get("mean_of"):
        both = " ".join(f"runs/{run_name(heads[0].parent / trial)}" for trial in pair)
        raise UserError(
            f"{heads[0]} is the mean of two runs and has no weights; name these instead, {both}, of a comparison with "
            "--keep-weights."
        )
    raise UserError(f"{heads[0]} holds predictions alone; name a fine-tuning run, which has weights.")


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


@dataclass(frozen=True)
class Predictor:
    """A classifier and how X-rays are shown to it.

    stored       pixels per side to which X-rays are decoded
    seen         how the network then sees them
    weights      their file
    origin       facts that identify it: the hash of its weights, and whether it was trained on synthetic X-rays
    learnt_from  the resolved files that it could learn from, as far as they are known
    data_root    the folder of the data that it was trained on, in which the key of ids is
    note         whose scores belong to it, where they are not its own
    finished     its run; None for weights from elsewhere
    """

    network: Classifier
    classes: list[str]
    multilabel: bool
    stored: int
    seen: InputFormat
    temperature: float
    name: str
    weights: Path
    origin: dict[str, Any]
    learnt_from: frozenset[str] = frozenset()
    data_root: Path = DATASETS_ROOT
    note: str = ""
    finished: Finished | None = None

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return next(self.network.parameters()).device

    def probabilities(self, squares: np.ndarray) -> np.ndarray:
        """Return [n, C] for decoded X-rays uint8 [n, 1, S, S]."""
        pixels = torch.from_numpy(squares).to(self.device)
        logits = forward(self.network, pixels, self.seen)
        return probabilities_of(logits.double() / self.temperature, self.multilabel).numpy()


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(MachineConfig):
    """What a file of weights from elsewhere does not say of itself; a run of this repo does.

    classes     its outputs, in their order
    multilabel  whether they are findings
    img_res     pixels per side at which it was trained
    """

    backbone: BackboneName
    in_channels: Channels
    classes: Annotated[list[str], each_once]
    multilabel: bool
    img_res: SizeOrZero


def open_predictors(names: Sequence[str], config: NetworkConfig, device: torch.device) -> dict[str, Predictor]:
    """Return classifiers by a short name: finished runs, and weights from elsewhere, which the config describes.

    Raises UserError if one is missing, or is described wrongly.
    """
    files = {name: path for name in names if (path := repo_path(name)).is_file()}
    of_no_run = {name: path for name, path in files.items() if not (path.parent / "summary.json").exists()}
    elsewhere = files if config.classes else of_no_run
    runs = [name for name in names if name not in elsewhere]
    if absent := [name for name in runs if "*" not in name and not repo_path(name).exists()]:
        raise UserError(f"there is no {repo_path(absent[0])}; name a fine-tuning run or a file of weights.")
    if runs and (config.classes or config.img_res):
        raise UserError(f"{runs[0]} is a run, which knows its classes and size; leave out --classes and --img-res.")
    found = open_checkpoints(runs) if runs or not elsewhere else {}
    opened = {short: predictor_of(finished, device) for short, finished in found.items()}
    for path in elsewhere.values():
        short = path.stem if path.stem not in opened else f"{path.parent.name}_{path.stem}"
        opened[short] = _from_elsewhere(path, config, device)
    if len(opened) < len(names):
        raise UserError("checkpoints names a state_dict twice; name each once.")
    return opened


def predictor_of(finished: Finished, device: torch.device) -> Predictor:
    """Return a finished run's classifier, with the temperature that fits its validation part."""
    trained, summary = finished.config, finished.summary
    return Predictor(
        network=finished.classifier(device),
        classes=summary["classes"],
        multilabel=summary["multilabel"],
        stored=trained.stored_size,
        seen=input_format(trained, device),
        temperature=finished.temperature(),
        name=finished.name,
        weights=finished.weights,
        origin={"weights": content_hash(finished.weights), "synthetic": summary["synthetic"]},
        learnt_from=finished.train_files(),
        data_root=Path(finished.data.get("data_root", "")),
        note=summary["note"] if "comparison" in summary else "",
        finished=finished,
    )


def _from_elsewhere(path: Path, config: NetworkConfig, device: torch.device) -> Predictor:
    if len(config.classes) < 1 + (not config.multilabel) or config.img_res < 1:
        raise UserError(
            f"{path.name} does not say what its outputs are or how large images were; give --classes, in the order of "
            "its outputs, and --img-res, the pixels per side at which it was trained."
        )
    network = load_classifier(path, config.backbone, config.in_channels, config.classes)
    return Predictor(
        network=placed(network, device),
        classes=config.classes,
        multilabel=config.multilabel,
        stored=with_room(config.img_res),
        seen=InputFormat(config.img_res, config.in_channels),
        temperature=1.0,
        name=path.stem,
        weights=path,
        origin={"weights": content_hash(path), "synthetic": False},
    )
