"""Label spreading: the published formula, what it learns from images without a label, and what it never reads."""

import numpy as np
from clusters import clusters
from sklearn.preprocessing import StandardScaler

from downstream_task.probes import fit_linear_head
from downstream_task.spreading import ALPHA, NEIGHBOURS, fit_spread_head, neighbours, spread
from utils.metrics import balanced_accuracy


def test_labels_spread_as_in_the_paper() -> None:
    """Zhou et al. 2004, section 2: F = (1 - a) (I - a S)^-1 Y, here on a graph of nearest neighbours."""
    n, labelled, y = 80, np.array([3, 0, 7]), np.array([1, 0, 1])
    x = np.random.default_rng(0).normal(size=(n, 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    graph = np.zeros((n, n))
    np.put_along_axis(graph, (-unit @ unit.T).argsort(1)[:, :NEIGHBOURS], 1, axis=1)
    np.fill_diagonal(graph, 0)
    degrees = graph.sum(0)
    given = np.zeros((n, 2))
    given[labelled, y] = 1
    expected = (1 - ALPHA) * np.linalg.solve(np.eye(n) - ALPHA * graph / np.sqrt(np.outer(degrees, degrees)), given)
    expected /= expected.sum(1, keepdims=True)
    expected /= expected.sum(0)
    expected /= expected.sum(1, keepdims=True)
    expected[labelled] = np.eye(2)[y]
    np.testing.assert_allclose(spread(neighbours(x), labelled, y), expected, atol=2e-3)


def test_films_that_no_label_reaches_count_for_no_class() -> None:
    (x, classes), noise = clusters(300), np.random.default_rng(1).normal(size=(100, 10))
    foreign = (np.array([9, -9] * 5) + noise) * np.linspace(0.1, 30, 10)  # of another device, say, in the same scale
    films = np.concatenate([x.numpy(), foreign])
    labelled = np.concatenate([np.flatnonzero(classes == c)[:2] for c in range(3)])
    reached = spread(neighbours(StandardScaler().fit_transform(films)), labelled, classes[labelled]).sum(1) > 0
    assert reached[:300].all() and not reached[300:].any()
    logits = []
    for names in (np.array([0, 1, 2]), np.array([1, 2, 0])):  # of the classes: their order decides nothing
        y = names[classes[labelled]]
        head = fit_spread_head(fit_linear_head(films[labelled], y, labelled), films, labelled, y)
        logits.append(head.logits(films)[:, names])
    np.testing.assert_allclose(logits[0], logits[1], atol=0.02)


def test_images_without_a_label_move_the_head_to_where_they_are() -> None:
    (x, classes), (test, test_classes) = clusters(600), clusters(400, seed=1)
    x, test = x.numpy(), test.numpy()
    labelled = np.concatenate([np.flatnonzero(classes == c)[:2] for c in range(3)])
    head = fit_linear_head(x[labelled], classes[labelled], labelled)
    better = fit_spread_head(head, x, labelled, classes[labelled])
    before, after = (balanced_accuracy(test_classes, one.logits(test)) for one in (head, better))
    assert after > before + 0.02
    findings = np.stack([classes == 0, classes == 1], axis=1).astype(np.float32)[labelled]
    findings[0, 1] = np.nan  # not known, so no label of that finding
    two = fit_linear_head(x[labelled], findings, labelled)
    assert fit_spread_head(two, x, labelled, findings).weight.shape == two.weight.shape == (2, x.shape[1])
