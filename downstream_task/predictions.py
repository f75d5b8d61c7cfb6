"""Tables of predictions, which everything that is scored is scored from: one row per image, without torch."""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit, softmax

from utils.config import RUNS_ROOT, UserError, nearest, repo_path
from utils.files import check_files
from utils.metrics import balanced_accuracy, one_against_rest, prediction_scores

FILE, FILE_BEFORE = "predictions.csv", "predictions_val.csv"  # before: of the earlier protocol, validation alone
CELL = ["fold", "draw", "arm", "way", "labels", "start"]  # columns that are the same in all rows of a table
DETAILS = ["study", "sex", "age", "view", "source"]  # columns of those data sets that know them
TEXT: Any = dict.fromkeys(["file", "part", "arm", "way", "group", "label", *DETAILS], str)  # even if it holds 0 or NA


@dataclass(frozen=True)
class Predicted:
    """What a network says about N images, or several heads, each of which has its own images.

    names          of the C classes or findings
    labels         classes [N], or findings [N, C]: 1, 0, NaN where unknown
    probabilities  [N, C]
    groups         patients or duplicate groups [N]
    details        N rows of the DETAILS that are known
    heads          which head says it [N]; validation images are those of each head
    """

    names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray
    details: pd.DataFrame
    heads: np.ndarray

    @property
    def multilabel(self) -> bool:
        """Whether these are findings, of which an image may have several, instead of classes."""
        return self.labels.ndim > 1

    @property
    def truth(self) -> np.ndarray:
        """Return [N, C] of 1, 0 and NaN: of classes each against the others, or the findings."""
        return one_against_rest(self.labels, len(self.names))

    def at(self, temperature: float) -> "Predicted":
        """Return the same with probabilities at a temperature."""
        logits = logits_of(self.probabilities, self.multilabel) / temperature
        return replace(self, probabilities=expit(logits) if self.multilabel else softmax(logits, axis=1))

    def take(self, rows: np.ndarray) -> "Predicted":
        """Return what is said of the images at some rows [n]."""
        kept = {name: getattr(self, name)[rows] for name in ("labels", "probabilities", "groups", "heads")}
        return replace(self, **kept, details=self.details.iloc[rows])

    def by_head(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return those of the rows [n] that are of each head."""
        return [rows[self.heads[rows] == head] for head in np.unique(self.heads[rows])]

    def scores(self, rows: np.ndarray) -> dict[str, float]:
        """Return every score of some of the images: within those of a head, then averaged where it is known."""
        of_heads = [prediction_scores(self.labels[own], self.probabilities[own]) for own in self.by_head(rows)]
        return pd.DataFrame(of_heads).mean().to_dict()

    def score(self, rows: np.ndarray) -> float:
        """Return the one that networks are compared by."""
        of_heads = [main_score(self.labels[own], self.probabilities[own]) for own in self.by_head(rows)]
        return float(pd.Series(of_heads).mean())


def metric_of(labels: np.ndarray) -> str:
    """Return the name of the score of classes [N], or of findings [N, C]."""
    return "auroc" if labels.ndim > 1 else "balanced_accuracy"


def main_score(values: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the score that metric_of names, of probabilities [n, C] for classes [n] or findings [n, C]."""
    if values.ndim > 1:
        return prediction_scores(values, probabilities)["auroc"]
    return balanced_accuracy(values, probabilities)


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
    try:
        names = pd.read_csv(path, nrows=0).columns
        blank = {name: [""] for name in names if name.startswith(("label ", "p "))}
        dtype = {**TEXT, **dict.fromkeys(blank, float)}
        return pd.read_csv(path, dtype=dtype, keep_default_na=False, na_values=blank)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({str(error).strip()}); delete it: the same command then says more."
        ) from error


def reader(folder: Path) -> Callable[[str], pd.DataFrame]:
    """Return a function that reads the predictions of a trial in a comparison's folder."""
    return lambda trial: read_predictions(folder / trial / FILE)


def labels_and_probabilities(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes [M] or findings [M, C] of a predictions table, and its probabilities [M, C]."""
    names = _names(table)
    if "label" in table:
        labels = np.array([names.index(label) for label in table["label"]], dtype=int)
    else:
        labels = table[[f"label {name}" for name in names]].to_numpy(float)
    return labels, table[[f"p {name}" for name in names]].to_numpy()


def predicted(table: pd.DataFrame, part: str) -> Predicted:
    """Return what a table says about the images of a part, "val" or "test"; of several heads, that of each."""
    rows: Any = table[table["part"] == part].reset_index(drop=True)
    details = rows[[name for name in DETAILS if name in rows]]
    heads = np.zeros(len(rows))  # of one, as in tables of before folds
    if "fold" in rows:
        heads = rows.groupby(["fold", "draw"]).ngroup().to_numpy()
    said = labels_and_probabilities(rows)
    return Predicted(tuple(_names(table)), *said, rows["group"].to_numpy(str), details, heads)


def _names(table: pd.DataFrame) -> list[str]:
    return [column[2:] for column in map(str, table) if column.startswith("p ")]


def networks_of(name: str) -> dict[str, list[Path]]:
    """Return the networks that a name stands for, each with the folders of its heads.

    A run, or a file of weights in it, stands for itself; a finished comparison for its main ways, each with the
    head of the first draw of each fold. A * in the last part of a name chooses among all runs of the first draw.
    Raises UserError if none is found.
    """
    folder, pattern = repo_path(name), ""
    if "*" in folder.name:
        folder, pattern = folder.parent, folder.name
    elif folder.name.endswith("_state_dict.pt") and folder.is_file():
        folder = folder.parent
    if not folder.exists():
        beside = [path.name for path in folder.parent.glob("*/")]
        raise UserError(f"there is no run {folder}; {nearest(folder.name, beside)}")
    networks = {run_name(folder): [folder]}
    if (folder / "summary.csv").exists():
        networks = _networks_in(folder, pattern)
    listed = [run for runs in networks.values() for run in runs]
    joined = not (folder / "config.json").exists() and (folder.parent / "summary.json").exists()  # a comparison's table
    done = joined or (folder / "summary.json").exists()
    if not done or not any(map(predictions_of, listed)):
        raise UserError(
            f"{repo_path(name)} is not a finished fine-tuning run or comparison; run "
            "downstream_task/trained_vs_no_trained_compare.py first, or name one of the folders that it writes."
        )
    for path in listed:
        check_files(path, FILE_BEFORE if (path / FILE_BEFORE).exists() else FILE)
    return networks


def _networks_in(folder: Path, pattern: str) -> dict[str, list[Path]]:
    """Return the networks of a comparison's headline ways or, by a pattern, of all ways; see networks_of."""
    table: Any = pd.read_csv(folder / "summary.csv", dtype={"trial": str})
    compared = "headline" in table  # not in a sweep, or under the earlier protocol
    if compared and not pattern:
        first = table[table["headline"]].drop_duplicates(["arm", "way", "labels", "fold"])
        return {
            f"{run_name(folder)}/{arm}_{way}_n{labels}": [folder / trial for trial in rows["trial"]]
            for (arm, way, labels), rows in first.groupby(["arm", "way", "labels"], sort=False)
        }
    first = table[table["draw"] == table["draw"].min()] if compared else table
    runs = [folder / trial for trial in fnmatch.filter(first["trial"], pattern or "*")]
    return {run_name(run): [run] for run in runs}


def predictions_of(folder: Path) -> Path | None:
    """Return the table of predictions in a run's folder, also of the earlier protocol; None if there is none."""
    if (folder / FILE).exists() and "part" in pd.read_csv(folder / FILE, nrows=0):
        return folder / FILE
    return folder / FILE_BEFORE if (folder / FILE_BEFORE).exists() else None


def run_name(folder: Path) -> str:
    """Return a folder's name below runs/, or the last part of a folder elsewhere."""
    root = RUNS_ROOT.resolve()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name
