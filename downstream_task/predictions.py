"""Tables of predictions, which everything that is scored is scored from: one row per image, without torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit

from utils.config import UserError
from utils.files import check_files
from utils.metrics import classification_scores, finding_scores


def metric_of(labels: np.ndarray) -> str:
    """Return the name of the score of classes [N], or of findings [N, C]."""
    return "auroc" if labels.ndim > 1 else "balanced_accuracy"


def scores_of(values: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return every score of probabilities [n, C] for classes [n] or findings [n, C]."""
    return (finding_scores if values.ndim > 1 else classification_scores)(values, probabilities)


def logits_of(probabilities: np.ndarray, multilabel: bool) -> np.ndarray:
    """Return logits [n, C] that have these probabilities [n, C] in float64, as far as these distinguish them.

    For classes down to a probability of 1e-307; for findings up to 1 - 1e-16, which is a logit of 36.
    """
    if multilabel:
        return logit(np.clip(probabilities, 2**-53, 1 - 2**-53))
    return np.log(np.clip(probabilities, np.finfo(float).tiny, None))


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a predictions table; a class may be called 0 or NA. Raises UserError if it is missing or damaged."""
    check_files(path.parent, path.name)
    text: Any = {"file": str, "group": str, "label": str}
    try:
        names = pd.read_csv(path, nrows=0).columns
        blank = {name: [""] for name in names if name.startswith("label ")}
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=blank)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({str(error).strip()}); delete it: the same command then says more."
        ) from error


def labels_and_probabilities(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes [M] or findings [M, C] of a predictions table, and its probabilities [M, C]."""
    columns = [column for column in table if str(column).startswith("p ")]
    names = [str(column)[2:] for column in columns]
    if "label" in table:
        labels = np.array([names.index(label) for label in table["label"]])
    else:
        labels = table[[f"label {name}" for name in names]].to_numpy()
    return labels, table[columns].to_numpy()
