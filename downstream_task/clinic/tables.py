"""All that is said of one network on the test part: its scores, and what a clinic asks for, from its predictions."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from downstream_task.clinic.conformal import coverage, least_probability
from downstream_task.clinic.operating_points import operating_points
from downstream_task.clinic.subgroups import subgroup_table
from downstream_task.predictions import Predicted, logits_of, metric_of
from utils import plots
from utils.intervals import bootstrap_intervals, fewest_groups
from utils.metrics import CLASS_SCORES, calibration_error, confusion_counts, fit_temperature, per_class_scores

REPEATS = 300  # resamples behind an interval
SCORE_COLUMNS = ["score", "value", "low", "high"]

Interval = tuple[float, float, float]
Page = tuple[dict[str, pd.DataFrame], dict[str, Figure], dict[str, Any]]


def page(tested: Predicted, validation: Predicted, title: str) -> Page:
    """Return the tables of a network, its figures and the facts of its summary.

    Tables are scores, classes, operating_points, conformal (of classes) and subgroups (where details are known). The
    temperature, the thresholds and the least probability of a class in a set are chosen on the validation part, and the
    tables say on how many of its labels. Thresholds are of probabilities at the temperature that predict.py uses.
    """
    labels, names, groups = tested.labels, tested.names, tested.groups
    temperature = fit_temperature(logits_of(validation.probabilities, tested.multilabel), validation.labels)
    scaled, val = tested.at(temperature), validation.at(temperature)
    of_val, of_test = ((side.truth, side.probabilities) for side in (val, scaled))
    points = operating_points(of_val, of_test, groups, names, REPEATS)
    found = all_scores(tested, scaled)
    tables = {
        "scores": pd.DataFrame([(name, *values) for name, values in found.items()], columns=SCORE_COLUMNS),
        "classes": class_table(tested),
        "operating_points": points.assign(temperature=temperature),
    }
    calibrated = {"raw": tested.probabilities, "after temperature scaling": scaled.probabilities}
    figures = {
        "roc": plots.roc_curves(tested.truth, tested.probabilities, names, title),
        "reliability": plots.reliability(labels, calibrated, title),
    }
    chosen = {"temperature": temperature, "validation_labels": len(val.labels)}
    if not tested.multilabel:
        least = least_probability(val.probabilities, val.labels)
        sets = coverage((labels, scaled.probabilities), groups, names, least, REPEATS)
        tables["conformal"] = sets.assign(least=least, **chosen)
        counts = confusion_counts(labels, tested.probabilities)
        figures["confusion_matrix"] = plots.confusion_matrices(counts, names, title)
    if len(of_subgroups := subgroup_table(tested.details, tested.score, labels, groups, REPEATS)):
        tables["subgroups"] = of_subgroups
    facts = {"metric": metric_of(labels), "multilabel": tested.multilabel, **chosen}
    facts |= {"images": len(labels), "groups": len(np.unique(groups))}
    return tables, figures, {**facts, **{name: list(values) for name, values in found.items()}}


def all_scores(tested: Predicted, scaled: Predicted) -> dict[str, Interval]:
    """Return each score with its interval, also the calibration error at the temperature and the score by study."""

    def scores(rows: np.ndarray) -> dict[str, float]:
        after = calibration_error(tested.labels[rows], scaled.probabilities[rows])
        return {**tested.scores(rows), "ece_after_temperature_scaling": after}

    studies = by_study(tested)
    found = {} if studies is None else {"auroc_by_study": score_of(studies)}
    return intervals(tested, scores) | found


def score_of(tested: Predicted, seed: int = 0) -> Interval:
    """Return the score that networks are compared by, with its interval."""
    return intervals(tested, lambda rows: {"score": tested.score(rows)}, seed)["score"]


def intervals(
    tested: Predicted, scores: Callable[[np.ndarray], Mapping[str, float]], seed: int = 0
) -> dict[str, Interval]:
    """Return value, low and high of each of scores(rows), over new patients or duplicate groups."""
    fewest = fewest_groups(tested.labels, tested.groups)
    return bootstrap_intervals(scores, tested.groups, REPEATS, seed=seed, fewest=fewest)


def class_table(tested: Predicted) -> pd.DataFrame:
    """Return class, score, value, low, high: CLASS_SCORES of each class against the rest, or of each finding."""
    keys = [f"{name}\t{score}" for name in tested.names for score in CLASS_SCORES]

    def scores(rows: np.ndarray) -> dict[str, float]:
        values = per_class_scores(tested.labels[rows], tested.probabilities[rows]).ravel()
        return dict(zip(keys, values.tolist(), strict=True))

    rows = [(*name.split("\t"), *values) for name, values in intervals(tested, scores).items()]
    return pd.DataFrame(rows, columns=["class", *SCORE_COLUMNS])


def by_study(tested: Predicted) -> Predicted | None:
    """Return findings by study, whose probability is the mean over the images of one patient and study.

    A finding of a study is positive if it is in one of its images, and negative if it is in those that are labelled.
    None for classes, and if no study has two images.
    """
    if not tested.multilabel or "study" not in tested.details:
        return None
    keys = [f"{group}\t{study}" for group, study in zip(tested.groups, tested.details["study"], strict=True)]
    _, first, study = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(keys):
        return None
    labels = np.asarray(pd.DataFrame(tested.labels).groupby(study).max())  # NaN where no image is labelled
    probabilities = np.asarray(pd.DataFrame(tested.probabilities).groupby(study).mean())
    return Predicted(tested.names, labels, probabilities, tested.groups[first], tested.details.iloc[first])
