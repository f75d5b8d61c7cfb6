"""The linear head: scikit-learn's optimum, unknown labels, the choice of its strength."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from downstream_task.probes import DEFAULT_STRENGTH, STRENGTHS, fit_linear_head


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
