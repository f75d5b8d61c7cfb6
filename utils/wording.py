"""How metrics, ways of training and scores with their intervals are called for a reader."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

ABBREVIATIONS = {word.lower(): word for word in ("AUROC", "AUPRC", "ECE", "F1")}

HEADLINE = "headline"  # in place of a way of training: of each arm its main way, which was fixed beforehand
OVER_PATIENTS = "[95% interval over patients]"  # or duplicate groups; networks are as they are
OVER_DRAWS = "[95% interval over patients, labels and pretrainings]"
WAY_NAMES = {
    HEADLINE: "main way",
    "linear": "linear probe",
    "spread": "linear probe and label spreading",
    "probe": "fine-tuning from the probe",
    "zeros": "fine-tuning from zeros",
    "mean": "mean of label spreading and fine-tuning from zeros",
    "as_is": "as it is",
}


def way_name(way: str) -> str:
    """Return the name of a way of training for a reader."""
    return WAY_NAMES.get(way, way)


def network_name(cell: Mapping[str, Any]) -> str:
    """Return the name of a head, or of those of all folds, for a reader: `shared, linear probe, 109 labels`."""
    return f"{cell['arm']}, {way_name(cell['way'])}, {cell['labels']:,} labels"


def map_name(method: str) -> str:
    """Return the name of a method of saliency maps for a reader: `Grad-CAM`, `Integrated gradients`."""
    return "Grad-CAM" if method == "grad_cam" else method.replace("_", " ").capitalize()


def metric_name(metric: str) -> str:
    """Return a metric's name for a reader: `balanced accuracy`, `AUROC`, `macro F1`."""
    return " ".join(ABBREVIATIONS.get(word, word) for word in re.split("[_ ]", metric))


def interval_text(
    value: float, low: float | None, high: float | None, form: str = ".3f", unknown: str = " (too few for an interval)"
) -> str:
    """Return `0.712 [0.680, 0.744]`, or `unknown` in place of the brackets if the interval is not known."""
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return f"{value:{form}}{unknown}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def interval_scope(starts: Mapping[str, int]) -> str:
    """Return what the intervals of a comparison are for, whose arms start from so many pretrainings each."""
    single = ", ".join(arm for arm, count in starts.items() if count == 1)
    given = f", except for {single}, of which there is only one file" if single else ""
    return f"new patients, new draws of labels and new pretrainings{given}"


def labels_text(row: Mapping[str, float], name: str, fewest: int, most: int) -> str:
    """Return: 310 labels (95% interval 180 to more than 1,869), from the row's `name`, `name`_low and `name`_high.

    0 is fewer than the `fewest` labels that were tried, inf more than the `most`, and than what a fit extrapolates. An
    interval that lies beyond them too is not named.
    """
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if row[name] in (0, np.inf) and (np.isnan(low) or low == high):
        end = (f"fewer than {fewest:,}", "fewest") if row[name] == 0 else (f"more than {most:,}", "most")
        return "{} labels, the {} that were tried".format(*end)
    most = max(most, *(round(bound) for bound in (low, row[name]) if np.isfinite(bound)), 0)

    def text(labels: float) -> str:
        if labels == 0:
            return f"fewer than {fewest:,}"
        return f"more than {most:,}" if np.isinf(labels) else f"{labels:,.0f}"

    interval = "" if np.isnan(low) else f" (95% interval {text(low)} to {text(high)})"
    return f"{text(row[name])} labels{interval}"


def headline_range(curves: pd.DataFrame, arm: str) -> tuple[int, int]:
    """Return the fewest and the most labels of an arm's headline curve, from a comparison's curves.csv."""
    labels = curves.loc[(curves["arm"] == arm) & curves["headline"], "labels"]
    return int(labels.min()), int(labels.max())


def savings_sentence(row: Mapping[str, float], arm: str, reference: str, fewest: int, most: int) -> str:
    """Return: With 94 labels ARM scores as REFERENCE does with 310 labels (95% interval 180 to more than 1,869)."""
    needed = labels_text(row, "reference_needs", fewest, most)
    return f"With {row['labels']:,.0f} labels {arm} scores as {reference} does with {needed}."
