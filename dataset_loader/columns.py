"""Plain columns about N X-rays, which every data set is read into before any pixel is opened."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

UNLABELLED = "unlabelled"  # the part of images that only pretraining may use


@dataclass(frozen=True)
class Columns:
    """N X-rays, in the alphabetical order of their paths.

    root         folder that the paths are relative to
    paths        [N] image files, relative POSIX paths
    labels       [N] int64 class indices, or [N, C] float32 findings (1 positive, 0 negative,
                 -1 uncertain, NaN blank); [N, 0] if nothing is labelled
    label_names  the C classes or findings
    groups       [N] str; images of one group (a patient) are always in the same part of a split
    masks        [N] lung masks, relative POSIX paths, or None
    named_parts  [N] the part that the data set or its table names: "train", "val", "test", UNLABELLED, or "" for none
    details      N rows of whatever else the source knows (sex, age, view, ...); of opened data also patient, the group
                 before near-duplicates were joined
    left_out     file and reason of further X-rays, which are not taken
    default_findings  those to learn where nobody names any, of which what cannot be learnt is left out; () for all
    """

    root: Path
    paths: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]
    groups: np.ndarray
    masks: np.ndarray
    named_parts: np.ndarray
    details: pd.DataFrame
    left_out: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"file": [], "reason": []}, dtype=object))
    default_findings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def studies(self) -> list[str]:
        """The study of each X-ray, "" where it is not known."""
        if "study" not in self.details:
            return [""] * len(self)
        return self.details["study"].astype("string").fillna("").tolist()

    def labelled(self, wanted: bool = True) -> "Columns":
        """Return the columns of the labelled images, or of the others; without any label, all count as labelled."""
        has_label = (self.named_parts != UNLABELLED) | (not self.label_names)
        return self.take(np.flatnonzero(has_label == wanted))

    def with_left_out(self, files: np.ndarray | list[str], reason: str) -> "Columns":
        """Return the same columns, which say of more files why they are not taken."""
        more = pd.DataFrame({"file": files, "reason": reason})
        return replace(self, left_out=pd.concat([self.left_out, more], ignore_index=True))

    def take(self, indices: np.ndarray) -> "Columns":
        """Return the same columns for some of the images."""
        return replace(
            self,
            paths=self.paths[indices],
            labels=self.labels[indices],
            groups=self.groups[indices],
            masks=self.masks[indices],
            named_parts=self.named_parts[indices],
            details=self.details.iloc[indices].reset_index(drop=True),
        )
