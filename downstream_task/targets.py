"""Targets: the classes or findings that a classifier learns, their loss and scores, and tables of predictions."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_loader.readers.folder_dataset import offer_of_folders
from dataset_loader.splits import FOLD_NAMES, strata_of
from dataset_loader.xrays import XRays
from downstream_task.predictions import DETAILS, metric_of
from utils.config import Config, UserError, nearest, one_of
from utils.distributed import note_once

LossFunction = Callable[[Tensor, Tensor], Tensor]  # (logits [B, C], indices [B]) -> mean loss
ALL = "all"  # in place of the names of findings
# the default for every data set, until each had its own
DEFAULT_BEFORE = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]


@dataclass(frozen=True, kw_only=True)
class TargetConfig(Config):
    """What a classifier learns: findings (not classes), policies for uncertain and blank labels, weights."""

    findings: list[str]
    uncertain: Annotated[str, one_of(["ignore", "zeros", "ones"])]
    blank: Annotated[str, one_of(["zero", "ignore"])]
    class_weights: bool

    later: ClassVar = {"findings": lambda old: _findings_before(old.get("findings", []))}


def _findings_before(stored: list[str]) -> list[str]:
    """Return what `findings` of version 1 is now; an empty list meant all."""
    return [] if stored == DEFAULT_BEFORE else stored or [ALL]


@dataclass(frozen=True)
class Targets:
    """Targets of N X-rays: classes [N] int64, or findings [N, C] float32: 1, 0, or NaN (not counted)."""

    values: np.ndarray
    names: tuple[str, ...]

    @property
    def multilabel(self) -> bool:
        """Whether these are findings, of which an X-ray may have several, instead of classes."""
        return self.values.ndim > 1

    @property
    def metric(self) -> str:
        """Return the score that networks are compared by."""
        return metric_of(self.values)

    @property
    def chance(self) -> float:
        """Return that score of a guess."""
        return 0.5 if self.multilabel else 1 / len(self.names)

    def strata(self) -> np.ndarray:
        """Return [N] int64: what label subsets are stratified by."""
        return strata_of(self.values)

    def probabilities(self, logits: Tensor) -> np.ndarray:
        """Return [n, C] float64 of logits [n, C]."""
        return probabilities_of(logits.double(), self.multilabel).numpy()


def probabilities_of(logits: Tensor, multilabel: bool) -> Tensor:
    """Return [n, C] of logits [n, C]: of findings, each on its own, or of classes, which exclude each other."""
    return torch.sigmoid(logits) if multilabel else torch.softmax(logits, 1)


def read_targets(xrays: XRays, config: TargetConfig) -> Targets:
    """Return the targets of a data set: its classes, or the findings that the config names.

    None named, [], means the data set's own: those that its reader gives (Columns.default_findings) or all, without
    those of which some part has no positive or no negative label; they are counted on stderr. ["all"] means all.
    Raises UserError for findings that it does not have, without any label, and if none of its own can be learnt.

    CheXpert's findings: 1 is positive, 0 negative, -1 uncertain, blank not mentioned, which its authors count as
    negative (Irvin et al. 2019, sections 2 and 3, where "ignore", "zeros" and "ones" are the U-policies).
    """
    labels, names, root = xrays.columns.labels, xrays.columns.label_names, xrays.columns.root
    if labels.ndim == 1:
        return Targets(labels, names)
    if not names:
        offer = offer_of_folders(root, xrays.columns.paths)
        raise UserError(
            f"nothing is labelled in {root}, so it can only be used for pretraining; give labels in labels.csv, as "
            f"datasets/README.md shows. {offer and offer + '.'}".rstrip()
        )
    values = apply_policy(labels, config.uncertain, config.blank)
    chosen = names if config.findings == [ALL] else tuple(config.findings) or _learnable(xrays, values)
    absent = [finding for finding in chosen if finding not in names]
    if absent:
        raise UserError(
            f"findings holds {absent[0]!r}, which is not labelled in {root}; {nearest(absent[0], list(names))} "
            f"--findings {ALL} takes all of them."
        )
    return Targets(values[:, [names.index(finding) for finding in chosen]], chosen)


def _learnable(xrays: XRays, values: np.ndarray) -> tuple[str, ...]:
    """Return the data set's own findings that every part, and every fold, has labels of both kinds of."""
    names, root = xrays.columns.label_names, xrays.columns.root
    places = {place: xrays.places == place for place in np.unique(xrays.places)}
    places = {f"fold {place}" if place in FOLD_NAMES else place: rows for place, rows in places.items()}
    lacking: dict[str, str] = {}
    for name, column in zip(names, values.T, strict=True):
        counts = {place: _counts(column[rows]) for place, rows in places.items()}
        if any(0 in pair for pair in counts.values()):
            listed = ", ".join(f"{place} {positive}/{negative}" for place, (positive, negative) in counts.items())
            lacking[name] = f"{name} ({listed})"
    own = xrays.columns.default_findings or names
    if chosen := tuple(name for name in own if name not in lacking):
        if left_out := [lacking[name] for name in own if name in lacking]:
            note_once(f"findings without positive or negative labels in a part, left out: {'; '.join(left_out)}")
        return chosen
    others = " ".join(shlex.quote(name) for name in names if name not in lacking)
    raise UserError(
        f"every default finding of {root} lacks positive or negative labels in some part: "
        f"{'; '.join(lacking[name] for name in own)}; {f'try --findings {others}' if others else 'label more films'}."
    )


def _counts(labels: np.ndarray) -> tuple[int, int]:
    """Return how many labels [n] of a finding are positive, and how many negative."""
    return int((labels == 1).sum()), int((labels == 0).sum())


def apply_policy(labels: np.ndarray, uncertain: str, blank: str) -> np.ndarray:
    """Return findings 1, 0, -1 or NaN (blank) as float32 1, 0 or NaN (not counted)."""
    uncertain_as = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}[uncertain]
    blank_as = {"zero": 0.0, "ignore": np.nan}[blank]
    return np.where(labels == -1, uncertain_as, np.where(np.isnan(labels), blank_as, labels)).astype(np.float32)


def check_learnable(targets: Targets, parts: dict[str, np.ndarray]) -> None:
    """Raise UserError if a class, or a finding's positives or negatives, are missing from a part {name: indices}."""
    for part, indices in parts.items():
        if not len(indices):
            raise UserError(f"{part} has no images; give it some, as --val-share 0.1 does.")
        values = targets.values[indices]
        if not targets.multilabel:
            _check_classes(targets, part, values)
            continue
        for c, name in enumerate(targets.names):
            positive, negative = _counts(values[:, c])
            if not positive or not negative:
                raise UserError(
                    f"{name!r} has {positive} positive and {negative} negative labels among the {len(indices)} of "
                    f"{part}; both are needed: choose other --findings, another policy for blank or uncertain labels, "
                    "or more images."
                )


def _check_classes(targets: Targets, part: str, labels: np.ndarray) -> None:
    """Raise UserError, naming all, if there are classes without a label among those [n] of a part."""
    absent = [c for c in range(len(targets.names)) if c not in labels]
    if absent:
        listed = ", ".join(f"{targets.names[c]!r} ({(targets.values == c).sum():,} in all)" for c in absent)
        raise UserError(
            f"no image of class {listed} among the {len(labels)} of {part}. Every part and fold needs one, of other "
            "patients than the rest: add films, leave the labels of these classes blank, merge each with another "
            "class, or name parts in the table."
        )


def loss_function(targets: Targets, train: np.ndarray, class_weights: bool) -> LossFunction:
    """Return the loss: cross-entropy of classes, or binary cross-entropy of the known findings.

    With class weights, a class (or a finding's positives) weighs the inverse of its share of the images `train`.
    """
    values, of_train = torch.from_numpy(targets.values), targets.values[train]
    if targets.multilabel:
        shares = np.sum(of_train == 0, axis=0) / np.sum(of_train == 1, axis=0)
    else:
        counts = np.bincount(of_train, minlength=len(targets.names))
        shares = len(train) / (len(counts) * counts)
    weight = torch.tensor(shares, dtype=torch.float32) if class_weights else None

    def loss(logits: Tensor, indices: Tensor) -> Tensor:
        target, logits = values[indices].to(logits.device), logits.float()
        on_device = None if weight is None else weight.to(logits.device)
        if not targets.multilabel:
            return F.cross_entropy(logits, target, on_device)
        known = target.isfinite()  # [B, C]
        losses = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(), pos_weight=on_device, reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1)

    return loss


def predictions_table(
    xrays: XRays, targets: Targets, indices: np.ndarray, probabilities: np.ndarray, known: Mapping[str, Any]
) -> pd.DataFrame:
    """Return a table of predictions, one row per X-ray at `indices` [n].

    Columns: file, part, what is `known` of the head (fold, draw, arm, way, labels, start), group, those of DETAILS that
    the data set knows, label (for findings one column each), and a probability [n, C] for each class or finding.
    """
    written, details = xrays.written.iloc[indices], xrays.columns.details.iloc[indices]
    table = pd.DataFrame({"file": written["file"].to_numpy(), "part": xrays.parts[indices], **known})
    table["group"] = written["group"].to_numpy()
    for name in DETAILS:
        if name in details and details[name].notna().any():
            table[name] = details[name].to_numpy()
    if "study" in table:
        studies = np.array(xrays.columns.take(indices).studies, dtype=object)
        table["study"] = np.where(studies == "", "", xrays.ids.names(studies))
    values = targets.values[indices]
    if not targets.multilabel:
        table["label"] = [targets.names[value] for value in values]
    else:
        table[[f"label {name}" for name in targets.names]] = values
    table[[f"p {name}" for name in targets.names]] = probabilities
    return table
