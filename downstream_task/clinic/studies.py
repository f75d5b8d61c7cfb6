"""Scores of findings by study: a network's mean probability over the X-rays of one patient and study."""

import numpy as np
import pandas as pd

from downstream_task.finished_runs import Scored
from utils.intervals import bootstrap_intervals, fewest_groups


def study_scores(scored: Scored, repeats: int) -> dict[str, tuple[float, float, float]]:
    """Return auroc_by_study: value, low, high over patients; nothing for classes, or if no study has two X-rays.

    A finding of a study is positive if it is in one of its X-rays, and negative if it is in those that are labelled.
    """
    details = scored.xrays.columns.details.iloc[scored.rows]
    if not scored.targets.multilabel or not {"patient", "study"} <= set(details):
        return {}
    keys = (details["patient"].astype(str) + "\t" + details["study"].astype(str)).to_numpy(dtype=str)
    _, first, study = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(keys):
        return {}
    labels = np.asarray(pd.DataFrame(scored.labels).groupby(study).max())  # NaN where no X-ray is labelled
    probabilities = np.asarray(pd.DataFrame(scored.probabilities).groupby(study).mean())
    groups = scored.groups[first]

    def scores(chosen: np.ndarray) -> dict[str, float]:
        return {"auroc_by_study": scored.targets.score(labels[chosen], probabilities[chosen])}

    return bootstrap_intervals(scores, groups, repeats, fewest=fewest_groups(labels, groups))
