"""A classifier, with all that is needed to show it an X-ray and to read its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset_loader.xrays import MIN_RES, with_room
from downstream_task.classifier import Classifier, load_classifier
from downstream_task.finished_runs import Finished, open_checkpoints
from downstream_task.probes import forward
from downstream_task.targets import probabilities_of
from self_sup_classes.backbones import check_backbone
from utils.config import DATASETS_ROOT, UserError, check_between, check_list, repo_path
from utils.files import content_hash
from utils.hardware import MachineConfig, choose_precision, placed

MAX_RES = 4096  # pixels per side: more than any X-ray has


@dataclass(frozen=True)
class Predictor:
    """A classifier and how X-rays are shown to it.

    sizes   pixels per side: decoded, and seen by the network
    origin  facts that identify it: the hash of its weights, and whether it was trained on synthetic X-rays
    learnt_from  the resolved files that it was trained on, as far as they are known
    data_root    the folder of the data that it was trained on, in which the key of ids is
    note         whose scores belong to it, where they are not its own
    """

    network: Classifier
    classes: list[str]
    multilabel: bool
    sizes: tuple[int, int]
    in_channels: int
    dtype: torch.dtype
    temperature: float
    name: str
    origin: dict[str, Any]
    learnt_from: frozenset[str] = frozenset()
    data_root: Path = DATASETS_ROOT
    note: str = ""

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return next(self.network.parameters()).device

    def probabilities(self, squares: np.ndarray) -> np.ndarray:
        """Return [n, C] for decoded X-rays uint8 [n, 1, S, S]."""
        pixels = torch.from_numpy(squares).to(self.device)
        logits = forward(self.network, pixels, self.sizes[1], self.in_channels, self.dtype)
        return probabilities_of(logits.double() / self.temperature, self.multilabel).numpy()


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(MachineConfig):
    """What a file of weights from elsewhere does not say of itself; a run of this repo does.

    classes     its outputs, in their order
    multilabel  whether they are findings
    img_res     pixels per side at which it was trained
    """

    backbone: str
    in_channels: int
    classes: list[str]
    multilabel: bool
    img_res: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_backbone(self.backbone, self.in_channels)
        if self.classes:
            check_list("classes", self.classes)
        if self.img_res:
            check_between("img_res", self.img_res, MIN_RES, MAX_RES)


def open_predictors(names: Sequence[str], config: NetworkConfig, device: torch.device) -> dict[str, Predictor]:
    """Return classifiers by a short name: finished runs, and weights from elsewhere, which the config describes.

    Raises UserError if one is missing, or is described wrongly.
    """
    elsewhere = {name: repo_path(name) for name in names if is_elsewhere(name, config)}
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


def is_elsewhere(name: str, config: NetworkConfig) -> bool:
    """Return whether a checkpoint is a file of weights that no finished run beside it describes."""
    path = repo_path(name)
    return path.is_file() and bool(config.classes or not (path.parent / "summary.json").exists())


def predictor_of(finished: Finished, device: torch.device) -> Predictor:
    """Return a finished run's classifier, with the temperature that fits its validation part."""
    trained, summary = finished.config, finished.summary
    return Predictor(
        finished.classifier(device),
        summary["classes"],
        summary["multilabel"],
        (trained.stored_size, trained.img_res),
        trained.in_channels,
        choose_precision(trained.precision, device),
        finished.validation()[2],
        finished.name,
        {"weights": finished.weights_hash(), "synthetic": summary["synthetic"]},
        finished.train_files(),
        finished.data_root,
        summary["note"] if "comparison" in summary else "",
    )


def _from_elsewhere(path: Path, config: NetworkConfig, device: torch.device) -> Predictor:
    if len(config.classes) < 1 + (not config.multilabel) or config.img_res < 1:
        raise UserError(
            f"{path.name} does not say what its outputs are or how large images were; give --classes, in the order of "
            "its outputs, and --img-res, the pixels per side at which it was trained."
        )
    network = load_classifier(path, config.backbone, config.in_channels, config.classes)
    return Predictor(
        placed(network, device),
        config.classes,
        config.multilabel,
        (with_room(config.img_res), config.img_res),
        config.in_channels,
        torch.float32,
        1.0,
        path.stem,
        {"weights": content_hash(path), "synthetic": False},
    )
