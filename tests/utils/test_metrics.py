"""Metrics against closed forms and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from utils.metrics import auroc, balanced_accuracy, dead_dimensions, effective_rank, knn_scores


def test_effective_rank_counts_equal_directions_and_forgets_the_mean() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(200, 1), torch.randn(200, 30)], 1).double())[0][:, 1:]
    for rank in (1, 7, 30):
        assert effective_rank(basis[:, :rank] * 5 + 100) == pytest.approx(rank, rel=1e-6)
    two = basis[:, :2] * torch.tensor([3.0, 1.0])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert effective_rank(two) == pytest.approx(np.exp(entropy), rel=1e-6)
    assert effective_rank(torch.full((50, 8), 3.3)) == 0


def test_dead_dimensions() -> None:
    z = torch.randn(100, 6)
    z[:, 1] = 4.0
    z[:, 4] *= 1e-3
    assert dead_dimensions(z) == 2
    assert dead_dimensions(torch.ones(10, 3)) == 3


def test_knn_agrees_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(300, 10)), generator.normal(size=(50, 10))
    labels = generator.integers(0, 3, 300)

    def weights(distance: np.ndarray) -> Any:
        return np.exp((1 - distance) / 0.07)

    votes: Any = weights  # scikit-learn's stubs know the names of weights alone
    theirs = KNeighborsClassifier(20, metric="cosine", weights=votes)
    expected = theirs.fit(train, labels).predict_proba(test)
    one_hot = torch.eye(3)[torch.from_numpy(labels)]
    ours = knn_scores(torch.from_numpy(train), one_hot, torch.from_numpy(test))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_scores_of_a_guess_are_chance() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    always_zero = np.tile([0.9, 0.1], (100, 1))
    assert balanced_accuracy(labels, always_zero) == 0.5
    assert auroc(labels, always_zero) == 0.5
    assert auroc(labels, np.stack([1 - labels, labels], 1) * 0.6) == 1.0
