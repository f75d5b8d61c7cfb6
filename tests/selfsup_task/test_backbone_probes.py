"""Probes that monitor a pretraining: classes and findings, and what is too rare to be probed."""

import numpy as np
import torch
from clusters import clusters

from selfsup_task.monitor import probe, probe_labels


def test_classes_are_scored_by_balanced_accuracy_and_a_guess_by_chance() -> None:
    (train, labels), (test, test_labels) = clusters(600, noise=0.3), clusters(300, noise=0.3, seed=1)
    scores = probe(train, labels, test, test_labels)
    assert min(scores["probe/linear"], scores["probe/knn"]) > 0.95
    generator = np.random.default_rng(0)
    noise = [torch.from_numpy(generator.normal(size=(n, 10))).float() for n in (600, 300)]
    shuffled = probe(noise[0], labels, noise[1], test_labels)
    assert abs(shuffled["probe/linear"] - 1 / 3) < 0.12


def test_findings_are_scored_by_auroc_leaving_out_what_is_unknown_or_rare() -> None:
    (train, labels), (test, test_labels) = clusters(400, noise=0.3), clusters(300, noise=0.3, seed=1)

    def findings(classes: np.ndarray) -> np.ndarray:
        told = (classes[:, None] == [0, 1]).astype(np.float32)
        told[:20] = -1  # uncertain
        never = np.full((len(classes), 1), np.nan, np.float32)  # blank: counted as negative, so it has no positives
        return np.concatenate([told, never], axis=1)

    scores = probe(train, probe_labels(findings(labels)), test, probe_labels(findings(test_labels)))
    assert scores["probe/linear"] > 0.98
    empty = np.full((400, 2), np.nan, np.float32)
    assert probe(train, probe_labels(empty), test, probe_labels(empty[:300])) == {}


def test_probe_labels_follow_chexperts_authors() -> None:
    rows = np.array([[1, 0], [-1, np.nan]], np.float32)
    np.testing.assert_array_equal(probe_labels(rows), [[1, 0], [np.nan, 0]])
    np.testing.assert_array_equal(probe_labels(np.array([2, 0])), [2, 0])
