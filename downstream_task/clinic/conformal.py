"""Split-conformal prediction: sets of classes that hold the right one with a chosen probability."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.intervals import bootstrap_intervals, means

MISS = 0.1  # share of the X-rays whose set may lack the right class


def least_probability(probabilities: np.ndarray, labels: np.ndarray, miss: float = MISS) -> float:
    """Return the least probability that a class in the set may have, from validation [M, C] and its labels [M].

    Sadinle, Lei and Wasserman 2019 (arXiv 1609.00451): a set holds the classes at or above it. With n images for
    calibration, exchangeable with new ones, a set lacks the right class with a probability of at most `miss`; it is the
    ceil((n + 1) (1 - miss))-th largest probability of a right class, and 0 (all classes) with fewer than 1 / miss - 1.
    """
    right = np.sort(probabilities[np.arange(len(labels)), labels])[::-1]
    rank = int(np.ceil((len(right) + 1) * (1 - miss)))
    return float(right[rank - 1]) if rank <= len(right) else 0.0


def coverage(
    test: tuple[np.ndarray, np.ndarray], groups: np.ndarray, names: Sequence[str], least: float, repeats: int
) -> pd.DataFrame:
    """Return class, images, coverage, low, high, mean_size, empty: of all test images and of those of each class.

    test is labels [M] and probabilities [M, C]. coverage is the share of the sets that hold the right class, with a 95%
    interval over the groups [M]; mean_size is in classes, empty the share of sets without any.
    """
    labels, probabilities = test
    sets = probabilities >= least  # [M, C]
    held, sizes = sets[np.arange(len(labels)), labels], sets.sum(1)
    rows = []
    for name, chosen in [("all", labels >= 0), *((name, labels == c) for c, name in enumerate(names))]:
        if count := int(chosen.sum()):
            found = bootstrap_intervals(means({"coverage": held[chosen]}), groups[chosen], repeats)["coverage"]
            rows.append((name, count, *found, float(sizes[chosen].mean()), float((sizes[chosen] == 0).mean())))
    return pd.DataFrame(rows, columns=["class", "images", "coverage", "low", "high", "mean_size", "empty"])
