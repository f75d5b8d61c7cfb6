"""What a classifier is taught: classes, or findings under a policy for uncertain and blank labels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_loader.splits import strata_of
from dataset_loader.xrays import XRays
from utils.config import Config, UserError, check_choice
from utils.metrics import classification_scores, finding_scores

UNCERTAIN = ["ignore", "zeros", "ones"]
BLANK = ["zero", "ignore"]


@dataclass(frozen=True, kw_only=True)
class TargetConfig(Config):
    """What a classifier is taught: findings (CheXpert alone), and policies for uncertain and blank labels."""

    findings: list[str]
    uncertain: str
    blank: str
    class_weights: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("uncertain", self.uncertain, UNCERTAIN)
        check_choice("blank", self.blank, BLANK)


def metric_of(labels: np.ndarray) -> str:
    """The score of classes [N], or of findings [N, C]."""
    return "auroc" if labels.ndim > 1 else "balanced_accuracy"


@dataclass(frozen=True)
class Targets:
    """Targets of N X-rays: classes [N] int64, or findings [N, C] float32: 1, 0, or NaN where not to be counted."""

    values: np.ndarray
    names: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The score on validation that choices are made by."""
        return metric_of(self.values)

    def strata(self) -> np.ndarray:
        """[N] int64: what label subsets are stratified by."""
        return strata_of(self.values)

    def probabilities(self, logits: Tensor) -> np.ndarray:
        """[n, C] float64 of logits [n, C]."""
        logits = logits.double()
        return (torch.sigmoid(logits) if self.values.ndim > 1 else torch.softmax(logits, 1)).numpy()

    def scores(self, indices: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
        """Every score of the probabilities [n, C] of the X-rays at `indices`."""
        score = finding_scores if self.values.ndim > 1 else classification_scores
        return score(self.values[indices], probabilities)


def read_targets(xrays: XRays, config: TargetConfig) -> Targets:
    """The targets of a data set; UserError for findings that it does not have or a policy that does not exist.

    CheXpert's findings: 1 is positive, 0 negative, -1 uncertain, blank not mentioned, which its authors count as
    negative (Irvin et al. 2019, sections 2 and 3, where "ignore", "zeros" and "ones" are the U-policies).
    """
    labels, names = xrays.columns.labels, xrays.columns.label_names
    if labels.ndim == 1:
        return Targets(labels, names)
    for finding in config.findings:
        check_choice("findings", finding, list(names))
    if not config.findings:
        raise UserError(f"findings is empty; name at least one of {', '.join(names)}.")
    chosen = labels[:, [names.index(finding) for finding in config.findings]]
    return Targets(apply_policy(chosen, config.uncertain, config.blank), tuple(config.findings))


def apply_policy(labels: np.ndarray, uncertain: str, blank: str) -> np.ndarray:
    """Findings 1, 0, -1 or NaN (blank) -> float32 1, 0 or NaN (not counted)."""
    uncertain_as = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}[uncertain]
    blank_as = {"zero": 0.0, "ignore": np.nan}[blank]
    return np.where(labels == -1, uncertain_as, np.where(np.isnan(labels), blank_as, labels)).astype(np.float32)


def check_learnable(targets: Targets, parts: dict[str, np.ndarray]) -> None:
    """Raise UserError if a class, or a finding's positives or negatives, are missing from a part {name: indices}."""
    for part, indices in parts.items():
        values = targets.values[indices]
        for c, name in enumerate(targets.names):
            if values.ndim == 1 and not (values == c).any():
                raise UserError(f"no image of class {name!r} among the {len(indices)} of {part}; use more images.")
            if values.ndim > 1 and not ((values[:, c] == 1).any() and (values[:, c] == 0).any()):
                positive, negative = int((values[:, c] == 1).sum()), int((values[:, c] == 0).sum())
                raise UserError(
                    f"{name!r} has {positive} positive and {negative} negative labels among the {len(indices)} of "
                    f"{part}; both are needed: choose other --findings, another policy for blank or uncertain labels, "
                    "or more images."
                )


def loss_function(targets: Targets, train: np.ndarray, class_weights: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits [B, C], indices [B]) -> mean loss: cross-entropy, or binary cross-entropy over the known findings.

    With class weights, a class (or a finding's positives) weighs by the inverse of its share of the images `train`.
    """
    values = torch.from_numpy(targets.values)
    if targets.values.ndim == 1:
        counts = np.bincount(targets.values[train], minlength=len(targets.names))
        weight = torch.tensor(len(train) / (len(counts) * counts), dtype=torch.float32) if class_weights else None

        def cross_entropy(logits: Tensor, indices: Tensor) -> Tensor:
            on_device = None if weight is None else weight.to(logits.device)
            return F.cross_entropy(logits.float(), values[indices].to(logits.device), on_device)

        return cross_entropy
    positive = np.nansum(targets.values[train] == 1, axis=0)
    negative = np.nansum(targets.values[train] == 0, axis=0)
    positive_weight = torch.tensor(negative / positive, dtype=torch.float32) if class_weights else None

    def binary_cross_entropy(logits: Tensor, indices: Tensor) -> Tensor:
        target = values[indices].to(logits.device)  # [B, C]
        known = target.isfinite()
        weight = None if positive_weight is None else positive_weight.to(logits.device)
        losses = F.binary_cross_entropy_with_logits(
            logits.float(), target.nan_to_num(), pos_weight=weight, reduction="none"
        )
        return (losses * known).sum() / known.sum().clamp(min=1)

    return binary_cross_entropy
