"""The linear head: scikit-learn's optimum, unknown labels, the choice of its strength."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from downstream_task.probes import DEFAULT_STRENGTH, STRENGTHS, fit_linear_head


def test_a_linear_probe_is_the_optimum_of_logistic_regression() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(120, 8)) * np.arange(1, 9), generator.integers(0, 3, 120)
    val, val_y = generator.normal(size=(60, 8)) * np.arange(1, 9), generator.integers(0, 3, 60)
    head = fit_linear_head(x, y, val, val_y)
    scaler = StandardScaler().fit(x)
    strength = head.regularisation[0]
    reference = LogisticRegression(C=strength, max_iter=5000, class_weight="balanced").fit(scaler.transform(x), y)
    expected = reference.predict_proba(scaler.transform(val))
    logits = torch.from_numpy(val @ head.weight.T.astype(float) + head.bias)
    np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), expected, atol=1e-3)


def test_a_linear_probe_of_findings_leaves_out_unknown_labels() -> None:
    generator = np.random.default_rng(0)
    x, val = generator.normal(size=(100, 4)), generator.normal(size=(50, 4))
    targets, val_targets = (x[:, :2] > 0).astype(float), (val[:, :2] > 0).astype(float)
    spoilt = np.vstack([targets, np.full((20, 2), np.nan)])
    with_unknown = fit_linear_head(np.vstack([x, x[:20]]), spoilt, val, val_targets)
    probabilities = 1 / (1 + np.exp(-(val @ with_unknown.weight.T + with_unknown.bias)))
    assert ((probabilities > 0.5) == (val_targets == 1)).mean() > 0.9


def test_the_probe_can_choose_its_strength_without_the_validation_part() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 20)), np.repeat([0, 1, 2], 20)
    x[:, 0] += 3 * y
    head = fit_linear_head(x, y, None, None)
    scaled, folds, losses = StandardScaler().fit_transform(x), StratifiedKFold(5, shuffle=True, random_state=0), []
    for c in STRENGTHS:
        model = LogisticRegression(C=c, max_iter=2000, class_weight="balanced")
        p = np.asarray(cross_val_predict(model, scaled, y, cv=folds, method="predict_proba"))
        losses.append(-np.log(p[range(60), y]).mean())
    assert head.regularisation == [STRENGTHS[int(np.argmin(losses))]]
    single = fit_linear_head(x[[0, 1, 20, 40]], y[[0, 1, 20, 40]], None, None)
    assert single.regularisation == [DEFAULT_STRENGTH]
