"""How numbers are put in words: one way, on the terminal, in figures and in the report."""

import re
from collections.abc import Mapping

import numpy as np

ABBREVIATIONS = {word.lower(): word for word in ("AUROC", "AUPRC", "ECE", "F1")}

METHOD_NAMES = {"linear": "linear probe", "finetune": "fine-tuning"}

SALIENCY_NAMES = {
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
}


def metric_name(metric: str) -> str:
    """A metric as a reader knows it: `balanced accuracy`, `AUROC`, `macro F1`."""
    return " ".join(ABBREVIATIONS.get(word, word) for word in re.split("[_ ]", metric))


def interval_text(value: float, low: float | None, high: float | None, form: str = ".3f") -> str:
    """`0.712 [0.680, 0.744]`; without the brackets, but saying so, where no interval is known."""
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return f"{value:{form}} (too few for an interval)"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def about_minutes(seconds: float) -> str:
    """`about 4 min`; never less than 1."""
    return f"about {max(1, round(seconds / 60))} min"


def savings_sentence(row: Mapping[str, float], arm: str, reference: str, fewest: int, most: int) -> str:
    """With 94 labels ARM reaches what REFERENCE needs 310 for (95% of resamples 180 to more than 1,869)."""

    def text(labels: float) -> str:
        if labels == 0:
            return f"fewer than {fewest:,}"
        return f"more than {most:,}" if np.isinf(labels) else f"{labels:,.0f}"

    interval = ""
    if not np.isnan(row["reference_needs_low"]):
        bounds = [text(row[f"reference_needs_{side}"]) for side in ("low", "high")]
        interval = f" (95% of resamples {bounds[0]} to {bounds[1]})"
    return (
        f"With {row['labels']:,.0f} labels {arm} reaches what {reference} needs {text(row['reference_needs'])} "
        f"for{interval}."
    )
