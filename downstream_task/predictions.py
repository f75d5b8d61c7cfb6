"""What a classifier said of each X-ray, as a table that runs leave and others read."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset_loader.xrays import XRays
from downstream_task.targets import Targets


def predictions_table(xrays: XRays, targets: Targets, indices: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """file, group, label (one column a finding if there are several), and a probability for each class or finding."""
    table = pd.DataFrame({"file": xrays.columns.paths[indices], "group": xrays.columns.groups[indices]})
    values = targets.values[indices]
    if values.ndim == 1:
        table["label"] = [targets.names[value] for value in values]
    else:
        table[[f"label {name}" for name in targets.names]] = values
    table[[f"p {name}" for name in targets.names]] = probabilities
    return table


def read_predictions(path: Path) -> pd.DataFrame:
    """A predictions table as it was written: a class may be called 0 or NA."""
    text: Any = {"file": str, "group": str, "label": str}
    names = pd.read_csv(path, nrows=0).columns
    blank = {name: [""] for name in names if name.startswith("label ")}
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=blank)


def labels_and_probabilities(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Of a predictions table: classes [M] or findings [M, C], and probabilities [M, C]."""
    columns = [column for column in table if str(column).startswith("p ")]
    names = [str(column)[2:] for column in columns]
    if "label" in table:
        labels = np.array([names.index(label) for label in table["label"]])
    else:
        labels = table[[f"label {name}" for name in names]].to_numpy()
    return labels, table[columns].to_numpy()
