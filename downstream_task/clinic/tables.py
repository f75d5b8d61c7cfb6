"""The tables and figures of the test part that a clinic asks for, written beside its scores."""

import numpy as np

from downstream_task.clinic.conformal import coverage, least_probability
from downstream_task.clinic.operating_points import operating_points
from downstream_task.clinic.subgroups import subgroup_table
from downstream_task.finished_runs import Scored
from utils import plots
from utils.logging_utils import Run
from utils.metrics import one_against_rest


def save_clinic_tables(run: Run, scored: Scored, title: str, repeats: int) -> None:
    """Write operating_points.csv, conformal.csv (of classes), subgroups.csv (where known), figures roc and reliability.

    Thresholds and the least probability of a class in a set are chosen on the validation part, for probabilities at the
    temperature that predict.py uses; predictions.csv beside them has those as the network gives them.
    """
    targets, labels, groups, scaled = scored.targets, scored.labels, scored.groups, scored.scaled
    val_labels, val_scaled = scored.validation
    truth = one_against_rest(labels, len(targets.names))
    val = one_against_rest(val_labels, len(targets.names)), val_scaled
    points = operating_points(val, (truth, scaled), groups, targets.names, repeats)
    run.save_table("operating_points", points.assign(temperature=scored.temperature))
    if not targets.multilabel:
        least = least_probability(val_scaled, val_labels)
        sets = coverage((labels, scaled), groups, targets.names, least, repeats)
        run.save_table("conformal", sets.assign(least=least, temperature=scored.temperature))
    details = scored.xrays.columns.details.iloc[scored.rows]

    def score(drawn: np.ndarray) -> float:
        return targets.score(labels[drawn], scaled[drawn])

    table = subgroup_table(details, score, labels, groups, repeats)
    if len(table):
        run.save_table("subgroups", table)
    run.save_figure("roc", plots.roc_curves(truth, scored.probabilities, targets.names, title), step=0)
    probabilities = {"as they are": scored.probabilities, "at the temperature": scaled}
    run.save_figure("reliability", plots.reliability(labels, probabilities, title), step=0)
