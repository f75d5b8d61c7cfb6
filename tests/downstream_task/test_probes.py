"""Features and probes: the optimum against scikit-learn's own search, classes and findings, nothing changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_config import data_config

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import open_xrays
from downstream_task.probes import forward_all, linear_probe, probe, probe_labels
from self_sup_classes.backbones import Backbone
from utils.metrics import balanced_accuracy


def clusters(n: int, classes: int = 3, noise: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Features [n, 10] round one centre a class, and the classes, the last of them rare."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, 10))
    labels = generator.choice(classes, n, p=[0.6, 0.35, 0.05][:classes] if classes == 3 else None)
    features = (centres[labels] + noise * generator.normal(size=(n, 10))) * np.linspace(0.1, 30, 10)
    return torch.from_numpy(features).float(), labels


def test_the_linear_probe_reaches_its_optimum_whatever_the_features_scale() -> None:
    (train, labels), (test, test_labels) = clusters(600), clusters(400, seed=1)
    scores = linear_probe(train.numpy(), labels, test.numpy())
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    rescaled = linear_probe(1e3 * train.numpy() + 5, labels, 1e3 * test.numpy() + 5)
    np.testing.assert_allclose(scores, rescaled, atol=1e-2)
    nearest_centre = np.stack([train[labels == c].numpy().mean(0) for c in range(3)]) / np.linspace(0.1, 30, 10)
    distance = ((test.numpy() / np.linspace(0.1, 30, 10))[:, None] - nearest_centre) ** 2
    bayes = balanced_accuracy(test_labels, -distance.sum(-1))  # the best rule for equal round clusters
    assert balanced_accuracy(test_labels, scores) > bayes - 0.04


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


@pytest.mark.parametrize("in_channels", [1, 3])
def test_features_are_those_of_eval_mode_and_leave_the_network_as_it_was(phantoms: Path, in_channels: int) -> None:
    data = {"dataset": "covid", "data_root": str(phantoms / COVID_ROOT)}
    config = data_config(**data, store_res=64, img_res=32)
    xrays = open_xrays(config, torch.device("cpu"))
    network = Backbone("resnet18", in_channels).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    indices = xrays.indices("val")
    features = forward_all(network, xrays, indices, 32, in_channels, torch.float32)
    assert features.shape == (len(indices), 512)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    alone = forward_all(network, xrays, indices[3:4], 32, in_channels, torch.float32)
    torch.testing.assert_close(alone, features[3:4], rtol=1e-4, atol=1e-5)
