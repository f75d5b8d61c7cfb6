"""Label spreading: a linear head that also learns from the pictures of train images whose labels it does not see."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.semi_supervised import LabelSpreading

from downstream_task.probes import DEFAULT_STRENGTH, LinearHead, head_of, logistic_regression, regressions

# Fixed on validation images of synthetic X-rays, near the values of Iscen et al. 2019.
NEIGHBOURS = 50  # of each image in the graph
ALPHA = 0.9  # what an image takes from its neighbours in a step of spreading; the rest is its own label
WEIGHT = 4  # all images together, as a multiple of the labelled ones
MAX_IMAGES = 10_000  # in the graph, whose time grows with their square; so many labels do not spread


def fit_spread_head(
    head: LinearHead, features: np.ndarray, labelled: np.ndarray, targets: np.ndarray, class_weights: bool = True
) -> LinearHead:
    """Return the mean of `head` and of a regression on what its labels say of all images.

    head      fitted to the labelled images alone
    features  [N, F] of train images
    labelled  [n] the rows of those with a label; targets are their classes [n], or findings [n, C] of 1, 0 and NaN
    class_weights  whether classes weigh the same in the regression, as they do in the graph
    """
    scaler = StandardScaler().fit(features)
    x = np.asarray(scaler.transform(features))
    graph = neighbours(x)
    models = [_fit(x, graph, labelled[known], y, class_weights) for known, y in regressions(targets)]
    other = head_of(models, scaler, targets.ndim > 1, [])
    return LinearHead((head.weight + other.weight) / 2, (head.bias + other.bias) / 2, head.regularisation)


def neighbours(x: np.ndarray) -> Any:
    """Return the sparse graph [N, N] of features [N, F]: 1 for the nearest NEIGHBOURS by cosine, itself among them."""
    return kneighbors_graph(normalize(x), min(NEIGHBOURS, len(x)), include_self=True)


def _fit(x: np.ndarray, graph: Any, labelled: np.ndarray, y: np.ndarray, class_weights: bool) -> LogisticRegression:
    """Fit standardised features [N, F] to the classes that `y` [n] of the rows `labelled` [n] spreads to.

    As in Iscen et al. 2019 (arXiv 1904.04717, section 3.2), an image weighs as much as its class is certain, 1 less the
    entropy, or nothing where no label reaches it.
    """
    shares = spread(graph, labelled, y)
    classes = shares.argmax(1)
    entropy = -(shares * np.log(shares.clip(1e-12))).sum(1) / np.log(shares.shape[1])
    weights = (1 - entropy).clip(0) * (shares.sum(1) > 0)  # [N]
    if class_weights:
        weights /= np.bincount(classes, weights)[classes].clip(1e-12)
    weights *= WEIGHT * len(y) / weights.sum()
    return logistic_regression(DEFAULT_STRENGTH, x, classes, class_weights=False, weights=weights)


def spread(graph: Any, labelled: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return for N images the share of each class [N, C] that spreads to them from labels y [n] of `labelled` [n].

    Labels spread along the graph [N, N] (Zhou et al. 2004, Learning with Local and Global Consistency). Classes get
    equal masses; a labelled image keeps its class. Images that no label reaches have no shares, [0, ..., 0].
    """
    given = np.full(graph.shape[0], -1)
    given[labelled] = y
    spreading: Any = LabelSpreading  # whose kernel may be a function: of images that the graph stands for
    model = spreading(kernel=lambda a, b: graph, alpha=ALPHA, max_iter=200)
    shares = model.fit(np.zeros((len(given), 1)), given).label_distributions_
    shares = shares / shares.sum(0)
    shares /= shares.sum(1, keepdims=True).clip(1e-12)
    shares[labelled] = np.eye(shares.shape[1])[y]
    return shares
