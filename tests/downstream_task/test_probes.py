"""Features and logistic regression on them: scikit-learn's optimum, unknown labels, the choice of its strength."""

from pathlib import Path

import numpy as np
import pytest
import torch
from clusters import clusters
from data_config import data_config
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import open_xrays
from downstream_task.probes import DEFAULT_STRENGTH, STRENGTHS, InputFormat, fit_linear_head, forward_all, linear_probe
from self_sup_classes.backbones import Backbone
from utils.metrics import balanced_accuracy


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
    features = forward_all(network, xrays, indices, InputFormat(32, in_channels))
    assert features.shape == (len(indices), 512)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    alone = forward_all(network, xrays, indices[3:4], InputFormat(32, in_channels))
    torch.testing.assert_close(alone, features[3:4], rtol=1e-4, atol=1e-5)


def test_a_linear_probe_is_the_optimum_of_logistic_regression() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(120, 8)) * np.arange(1, 9), generator.integers(0, 3, 120)
    val = generator.normal(size=(60, 8)) * np.arange(1, 9)
    head = fit_linear_head(x, y, np.arange(120))
    scaler = StandardScaler().fit(x)
    strength = head.regularisation[0]
    reference = LogisticRegression(C=strength, max_iter=5000, class_weight="balanced").fit(scaler.transform(x), y)
    expected = reference.predict_proba(scaler.transform(val))
    logits = torch.from_numpy(head.logits(val.astype(np.float32)))
    np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), expected, atol=1e-3)


def test_a_linear_probe_of_findings_leaves_out_unknown_labels() -> None:
    generator = np.random.default_rng(0)
    x, val = generator.normal(size=(100, 4)), generator.normal(size=(50, 4))
    targets, val_targets = (x[:, :2] > 0).astype(float), (val[:, :2] > 0).astype(float)
    spoilt = np.vstack([targets, np.full((20, 2), np.nan)])
    with_unknown = fit_linear_head(np.vstack([x, x[:20]]), spoilt, np.arange(120))
    probabilities = 1 / (1 + np.exp(-(val @ with_unknown.weight.T + with_unknown.bias)))
    assert ((probabilities > 0.5) == (val_targets == 1)).mean() > 0.9


def test_the_strength_is_the_likeliest_by_cross_validation_that_keeps_patients_whole() -> None:
    """60 films of 30 patients whose two films are nearly the same: films apart would choose a weaker penalty."""
    generator = np.random.default_rng(0)
    patients, y = np.repeat(np.arange(30), 2), np.repeat(np.arange(30) % 3, 2)
    x = generator.normal(size=(30, 40))[patients] + generator.normal(size=(60, 40)) / 50
    x[:, 0] += y
    head = fit_linear_head(x, y, patients)
    scaled, losses = StandardScaler().fit_transform(x), []
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for c in STRENGTHS:
        model = LogisticRegression(C=c, max_iter=2000, class_weight="balanced")
        p = np.asarray(cross_val_predict(model, scaled, y, groups=patients, cv=folds, method="predict_proba"))
        losses.append(-np.log(p[range(60), y]).mean())
    assert head.regularisation == [STRENGTHS[int(np.argmin(losses))]]
    assert head.regularisation[0] < fit_linear_head(x, y, np.arange(60)).regularisation[0]


def test_with_few_patients_of_a_class_the_strength_is_fixed() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(20, 5)), np.repeat([0, 1], 10)
    assert fit_linear_head(x, y, np.r_[np.arange(10), [10, 10, 11, 11, 12, 12, 13, 13, 13, 13]]).regularisation == [
        DEFAULT_STRENGTH
    ]
    assert fit_linear_head(x[8:12], y[8:12], np.arange(4)).regularisation == [DEFAULT_STRENGTH]
