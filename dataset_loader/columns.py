"""Plain columns about N X-rays, which every data set is read into before any pixel is opened."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Columns:
    """N X-rays, in the alphabetical order of their paths.

    root         folder that the paths are relative to
    paths        [N] image files, relative POSIX paths
    labels       [N] int64 class indices, or [N, C] float32 findings (1 positive, 0 negative,
                 -1 uncertain, NaN blank)
    label_names  the C classes or findings
    groups       [N] str; images of one group (a patient) are always in the same part of a split
    masks        [N] lung masks, relative POSIX paths, or None
    details      N rows of whatever else the source knows (sex, age, view, ...)
    """

    root: Path
    paths: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]
    groups: np.ndarray
    masks: np.ndarray
    details: pd.DataFrame

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: np.ndarray) -> "Columns":
        """Return the same columns for some of the images."""
        return replace(
            self,
            paths=self.paths[indices],
            labels=self.labels[indices],
            groups=self.groups[indices],
            masks=self.masks[indices],
            details=self.details.iloc[indices].reset_index(drop=True),
        )
