"""Features and the linear probe: its optimum, and a network that stays as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_config import data_config

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import open_xrays
from downstream_task.probes import forward_all, linear_probe
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
