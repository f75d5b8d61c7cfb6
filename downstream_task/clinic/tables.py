"""All that is said of one network on the test part: its scores, and what a clinic asks for, from its predictions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from downstream_task.predictions import Predicted, logits_of, metric_of
from utils import plots
from utils.intervals import bootstrap_intervals, fewest_groups, means
from utils.metrics import CLASS_SCORES, calibration_error, confusion_counts, fit_temperature, per_class_scores

REPEATS = 300  # resamples behind an interval
SCORE_COLUMNS = ["score", "value", "low", "high"]
POINT_COLUMNS = ["class", "rule", "threshold", "rate", "value", "low", "high", "images", "validation_labels"]
# What a threshold is chosen for: at least this much on validation, and as much of the other as that allows; or the
# largest sensitivity + specificity (Youden 1950).
RULES: dict[str, tuple[str, float]] = {
    "specificity 0.90": ("specificity", 0.90),
    "specificity 0.95": ("specificity", 0.95),
    "sensitivity 0.90": ("sensitivity", 0.90),
    "sensitivity 0.95": ("sensitivity", 0.95),
    "Youden": ("both", 0.0),
}
MISS = 0.1  # share of the X-rays whose conformal set may lack the right class
MIN_IMAGES = 30  # with fewer, a subgroup's score says little, and the table says so
MAX_GROUPS = 12  # of one detail; of more, as when each file has its own source, the smallest make one group
DETAILS = ("sex", "view", "source")  # that are groups as they are
AGES = {"0 to 17": 0, "18 to 39": 18, "40 to 59": 40, "60 to 79": 60, "80 or more": 80}  # years, from so many on

Interval = tuple[float, float, float]
Page = tuple[dict[str, pd.DataFrame], dict[str, Figure], dict[str, Any]]


def page(tested: Predicted, validation: Predicted, title: str) -> Page:
    """Return the tables of a network, its figures and the facts of its summary.

    Tables are scores, classes, operating_points, conformal (of classes) and subgroups (where details are known). The
    temperature, the thresholds and the least probability of a class in a set are chosen on the validation part, the
    same for all heads, and the tables say on how many of its labels. Thresholds are of probabilities at the temperature
    that predict.py uses.

    Scores of several heads are computed within each head's images and averaged, also those of classes and subgroups.
    What needs many images, or shares a threshold, joins the images of all heads: calibration errors, reliability,
    operating points, conformal sets and the confusion matrix.
    """
    labels, names = tested.labels, tested.names
    temperature = fit_temperature(logits_of(validation.probabilities, tested.multilabel), validation.labels)
    scaled, val = tested.at(temperature), validation.at(temperature)
    found = all_scores(tested, scaled)
    tables = {
        "scores": pd.DataFrame([(name, *values) for name, values in found.items()], columns=SCORE_COLUMNS),
        "classes": class_table(tested),
        "operating_points": operating_points(val, scaled).assign(temperature=temperature),
    }
    heads = tested.by_head(np.arange(len(labels)))
    calibrated = {"raw": tested.probabilities, "after temperature scaling": scaled.probabilities}
    figures = {
        "roc": plots.roc_curves([(tested.truth[own], tested.probabilities[own]) for own in heads], names, title),
        "reliability": plots.reliability(labels, calibrated, title),
    }
    chosen = {"temperature": temperature, "validation_labels": len(val.labels) // len(np.unique(val.heads))}
    if not tested.multilabel:
        least = least_probability(val)
        tables["conformal"] = coverage(scaled, least).assign(least=least, **chosen)
        counts = confusion_counts(labels, tested.probabilities)
        figures["confusion_matrix"] = plots.confusion_matrices(counts, names, title)
    if len(of_subgroups := subgroup_table(tested)):
        tables["subgroups"] = of_subgroups
    facts = {"metric": metric_of(labels), "multilabel": tested.multilabel, **chosen}
    facts |= {"images": len(labels), "groups": len(np.unique(tested.groups))}
    return tables, figures, {**facts, **{name: list(values) for name, values in found.items()}}


def all_scores(tested: Predicted, scaled: Predicted) -> dict[str, Interval]:
    """Return each score with its interval, and calibration errors before and after scaling; also the score by study.

    Calibration errors are of all heads' images together: of the few images of one head they would be overestimated.
    """
    before_and_after = {"ece": tested, "ece_after_temperature_scaling": scaled}

    def scores(rows: np.ndarray) -> dict[str, float]:
        errors = {
            name: calibration_error(one.labels[rows], one.probabilities[rows]) for name, one in before_and_after.items()
        }
        return {**tested.scores(rows), **errors}

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
        own = tested.by_head(rows)
        found = [per_class_scores(tested.labels[some], tested.probabilities[some]).ravel() for some in own]
        return pd.DataFrame(found, columns=keys).mean().to_dict()

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
    return replace(tested.take(first), labels=labels, probabilities=probabilities)


def choose_threshold(truth: np.ndarray, score: np.ndarray, rule: str) -> float:
    """Return the threshold of a rule for truth [M] (1, 0, NaN) and score [M]; an image is called at or above it.

    It is one of the scores, or infinity where only calling nothing satisfies the rule. NaN unless there are both kinds.
    """
    positive, negative = np.sort(score[truth == 1]), np.sort(score[truth == 0])
    if not len(positive) or not len(negative):
        return float("nan")
    candidates = np.append(np.unique(np.concatenate([positive, negative])), np.inf)  # [K], increasing
    sensitivity = 1 - np.searchsorted(positive, candidates) / len(positive)
    specificity = np.searchsorted(negative, candidates) / len(negative)
    wanted, least = RULES[rule]
    if wanted == "specificity":
        return float(candidates[np.argmax(specificity >= least)])  # the lowest that is specific enough
    if wanted == "sensitivity":
        return float(candidates[np.flatnonzero(sensitivity >= least)[-1]])  # the highest that is sensitive enough
    return float(candidates[np.argmax(sensitivity + specificity)])


def operating_points(val: Predicted, tested: Predicted) -> pd.DataFrame:
    """Return one row of the POINT_COLUMNS per class or finding, rule and rate: sensitivity and specificity.

    `images` are those that the rate is measured on, the interval is over their groups, and `validation_labels`, of
    `val`, chose the threshold.
    """
    rows = []
    for c, name in enumerate(tested.names):
        known, truth, score = val.truth[:, c], tested.truth[:, c], tested.probabilities[:, c]
        chosen = {rule: choose_threshold(known, val.probabilities[:, c], rule) for rule in RULES}
        thresholds = {rule: threshold for rule, threshold in chosen.items() if not np.isnan(threshold)}
        for wanted, rate in ((1, "sensitivity"), (0, "specificity")):
            of_kind = truth == wanted
            if of_kind.any() and thresholds:
                right = {rule: (score[of_kind] >= threshold) == wanted for rule, threshold in thresholds.items()}
                found = bootstrap_intervals(means(right), tested.groups[of_kind], REPEATS)
                counts = int(of_kind.sum()), int(np.isfinite(known).sum()) // len(np.unique(val.heads))
                rows += [(name, rule, at, rate, *found[rule], *counts) for rule, at in thresholds.items()]
    return pd.DataFrame(rows, columns=POINT_COLUMNS)


def least_probability(val: Predicted, miss: float = MISS) -> float:
    """Return the least probability that a class in a conformal set may have, from validation.

    Sadinle, Lei and Wasserman 2019 (arXiv 1609.00451): a set holds the classes at or above it. With n images for
    calibration, exchangeable with new ones, a set lacks the right class with a probability of at most `miss`; it is the
    ceil((n + 1) (1 - miss))-th largest probability of a right class, and 0 (all classes) with fewer than 1 / miss - 1.
    Of H heads, which see the same images, it is the ceil(H (n + 1) (1 - miss))-th of all: the mean over the heads keeps
    the promise (conformal risk control, Angelopoulos et al. 2022, arXiv 2208.02814).
    """
    right = np.sort(val.probabilities[np.arange(len(val.labels)), val.labels])[::-1]
    rank = int(np.ceil((len(right) + len(np.unique(val.heads))) * (1 - miss)))
    return float(right[rank - 1]) if rank <= len(right) else 0.0


def coverage(tested: Predicted, least: float) -> pd.DataFrame:
    """Return class, images, coverage, low, high, mean_size, empty: of all test images and of those of each class.

    coverage is the share of the sets that hold the right class, with a 95% interval over the groups; mean_size is in
    classes, empty the share of sets without any.
    """
    labels, sets = tested.labels, tested.probabilities >= least  # [M], [M, C]
    held, sizes = sets[np.arange(len(labels)), labels], sets.sum(1)
    rows = []
    for name, chosen in [("all", labels >= 0), *((name, labels == c) for c, name in enumerate(tested.names))]:
        if count := int(chosen.sum()):
            found = bootstrap_intervals(means({"coverage": held[chosen]}), tested.groups[chosen], REPEATS)["coverage"]
            rows.append((name, count, *found, float(sizes[chosen].mean()), float((sizes[chosen] == 0).mean())))
    return pd.DataFrame(rows, columns=["class", "images", "coverage", "low", "high", "mean_size", "empty"])


def subgroups(details: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield detail, group and which of the N rows belong to it, bool [N], for each group that occurs.

    Of more than MAX_GROUPS groups of a detail, the largest come one by one and the others together.
    """
    if "age" in details:
        years = pd.to_numeric(details["age"], errors="coerce")
        bands = pd.cut(years, [*AGES.values(), np.inf], right=False, labels=list(AGES))
        details = details.assign(age=bands)
    for name in (name for name in (*DETAILS, "age") if name in details):
        values = details[name].astype("string").str.strip().fillna("")
        counts = values[values != ""].value_counts()
        if len(counts) > MAX_GROUPS:
            rest = counts.index[MAX_GROUPS - 1 :]
            values = values.mask(values.isin(rest), f"{len(rest):,} others")
        yield from ((name, group, (values == group).to_numpy()) for group in sorted(set(values) - {""}))


def subgroup_table(tested: Predicted) -> pd.DataFrame:
    """Return detail, group, images, value, low, high, note: the score of each subgroup, with an interval over groups.

    The note says where a subgroup has fewer than MIN_IMAGES images, or lacks some of the classes (of a finding,
    positive or negative images): its score is then over the others, and not to be compared with those of other
    subgroups.
    """
    rows, kinds = [], _kinds(tested.labels)
    for detail, group, chosen in subgroups(tested.details):
        members = tested.take(np.flatnonzero(chosen))
        notes = ["few images"] * (len(members.labels) < MIN_IMAGES)
        notes += ["lacks some classes"] * (_kinds(members.labels) < kinds)
        rows.append((detail, group, len(members.labels), *score_of(members), ", ".join(notes)))
    return pd.DataFrame(rows, columns=["detail", "group", "images", "value", "low", "high", "note"])


def _kinds(labels: np.ndarray) -> int:
    """Return how many classes occur, or for findings how many of their values, present and absent."""
    if labels.ndim == 1:
        return len(np.unique(labels))
    return int((labels == 1).any(0).sum() + (labels == 0).any(0).sum())
