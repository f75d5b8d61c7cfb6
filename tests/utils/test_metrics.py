"""Metrics against closed forms and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    recall_score,
    roc_auc_score,
)

from self_sup_classes.health import dead_dimensions, effective_rank
from utils.metrics import (
    TEMPERATURES,
    calibration_error,
    expected_calibration_error,
    fit_temperature,
    per_class_scores,
    prediction_scores,
    weighted_scores,
)

no_warnings = pytest.mark.filterwarnings("error")


def guesses(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels [images], class 0 the commonest, and probabilities [images, classes] that know something."""
    generator = np.random.default_rng(seed)
    shares = np.arange(classes, 0, -1) / np.arange(classes + 1).sum()
    labels = generator.choice(classes, images, p=shares)
    logits = generator.normal(size=(images, classes)) + 1.2 * np.eye(classes)[labels]
    return labels, softmax(logits, axis=1)


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


@no_warnings
def test_classification_scores_agree_with_scikit_learn() -> None:
    labels, probabilities = guesses(500, 4)
    predicted = probabilities.argmax(1)
    expected = {
        "accuracy": (predicted == labels).mean(),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "auroc": roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "auprc": average_precision_score(np.eye(4)[labels], probabilities, average="macro"),
    }
    ece = expected_calibration_error(probabilities.max(1), predicted == labels)
    assert calibration_error(labels, probabilities) == pytest.approx(ece)
    assert prediction_scores(labels, probabilities.astype(np.float32)) == pytest.approx(expected)


@no_warnings
@pytest.mark.parametrize("kind", ["classes", "findings"])
def test_scores_of_weighted_images_are_those_of_their_copies(kind: str) -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 12, (80, 3)) / 12  # with ties
    labels: Any = generator.integers(0, 3, 80)
    if kind == "findings":
        labels = generator.choice([0, 1, np.nan], (80, 3), p=[0.6, 0.2, 0.2])
        labels[:, 2] = np.where(labels[:, 2] == 1, np.nan, labels[:, 2])  # of one kind alone
    weights = generator.integers(0, 4, (5, 80))
    weights[4] *= (labels if kind == "classes" else labels[:, 0]) != 1  # without a class, or a finding's positives

    def score(rows: np.ndarray) -> float:
        if kind == "classes":
            return recall_score(labels[rows], scores[rows].argmax(1), average="macro", labels=np.unique(labels[rows]))
        known = [rows[np.isfinite(labels[rows, c])] for c in range(3)]
        pairs = [(labels[r, c], scores[r, c]) for c, r in enumerate(known) if len(set(labels[r, c])) == 2]
        return float(np.mean([roc_auc_score(*pair) for pair in pairs]))

    copies = [score(np.repeat(np.arange(80), row)) for row in weights]
    np.testing.assert_allclose(weighted_scores(labels, scores, weights), copies, rtol=1e-12)
    assert np.isnan(weighted_scores(np.full((4, 1), np.nan), scores[:4, :1], weights[:1, :4])).all()


def test_absent_classes_are_left_out_of_the_averages() -> None:
    labels, probabilities = guesses(300, 4)
    kept = labels != 2
    labels, probabilities = labels[kept], probabilities[kept]
    predicted = probabilities.argmax(1)
    assert (predicted == 2).any()
    scores = prediction_scores(labels, probabilities)
    counts = confusion_matrix(labels, predicted)
    right, called, images = counts.diagonal(), counts.sum(0), counts.sum(1)
    present = images > 0
    assert scores["balanced_accuracy"] == pytest.approx((right / np.maximum(images, 1))[present].mean())
    assert scores["macro_f1"] == pytest.approx((2 * right / (called + images))[present].mean())
    areas = [roc_auc_score(labels == c, probabilities[:, c]) for c in (0, 1, 3)]
    assert scores["auroc"] == pytest.approx(np.mean(areas))
    only = prediction_scores(np.zeros(3, int), np.tile([0.6, 0.4], (3, 1)))
    assert (only["accuracy"], only["balanced_accuracy"], only["macro_f1"]) == (1, 1, 1)
    assert np.isnan([only["auroc"], only["auprc"]]).all()


@no_warnings
def test_per_class_scores_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 0])
    probabilities = np.array(
        [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7]]
    )
    sensitivity, specificity, auroc, auprc = per_class_scores(labels, probabilities).T
    np.testing.assert_allclose(sensitivity, [2 / 4, 1 / 2, np.nan])
    np.testing.assert_allclose(specificity, [1 / 2, 3 / 4, 5 / 6])
    np.testing.assert_allclose(auroc, [5.5 / 8, 7 / 8, np.nan])  # pairs in the right order; ties count half
    np.testing.assert_allclose(auprc[1:], [(1 / 1 + 2 / 3) / 2, np.nan])
    assert np.isnan(per_class_scores(labels[:0], probabilities[:0])).all()


@no_warnings
def test_finding_scores_leave_out_the_unknown_and_the_one_sided() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (200, 4)).astype(float)
    probabilities = expit(generator.normal(size=(200, 4)) + labels - 0.5)
    labels[generator.random((200, 4)) < 0.4] = np.nan
    labels[:, 2] = np.where(np.isnan(labels[:, 2]), np.nan, 0)
    labels[:, 3] = np.nan
    known = np.isfinite(labels)
    both = [(labels[known[:, c], c], probabilities[known[:, c], c]) for c in (0, 1)]
    scores = prediction_scores(labels, probabilities)
    assert scores["auroc"] == pytest.approx(np.mean([roc_auc_score(y, p) for y, p in both]))
    assert scores["auprc"] == pytest.approx(np.mean([average_precision_score(y, p) for y, p in both]))
    assert calibration_error(labels, probabilities) == pytest.approx(
        expected_calibration_error(probabilities[known], labels[known])
    )
    unknown = np.full((5, 3), np.nan), np.full((5, 3), 0.5)
    assert np.isnan([*prediction_scores(*unknown).values(), calibration_error(*unknown)]).all()


@no_warnings
def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.1, 0.2, 0.5, 0.6, 0.9, 1.0])
    correct = np.array([0, 1, 1, 0, 1, 1])
    # Bins of a half: (0, .5] has mean confidence 0.8 / 3 and accuracy 2 / 3; (.5, 1] 2.5 / 3 and 2 / 3.
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx((1.2 / 3 + 0.5 / 3) / 2)
    assert expected_calibration_error(confidence, correct, bins=1) == pytest.approx(abs(4 - 3.3) / 6)
    each = pytest.approx((0.1 + 0.8 + 0.5 + 0.6 + 0.1) / 6)
    assert expected_calibration_error(confidence, correct == 1, bins=1000) == each
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0
    generator = np.random.default_rng(0)
    sure = generator.random(100_000)
    assert expected_calibration_error(sure, generator.random(100_000) < sure) < 0.015
    assert expected_calibration_error(sure, generator.random(100_000) < sure**2) == pytest.approx(1 / 6, abs=0.01)


def test_temperature_by_hand() -> None:
    """Three of four right at a margin m: the likeliest confidence is 3 / 4, where m / T = ln 3."""
    logits, labels = np.tile([5.0, 0.0], (4, 1)), np.array([0, 0, 0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(5 / np.log(3), rel=1e-6)
    assert fit_temperature(logits + 100, labels) == pytest.approx(5 / np.log(3), rel=1e-6)
    findings = np.array([[1, np.nan], [1, 1], [np.nan, 0], [0, 1]])
    signed = np.where(np.isnan(findings), 99.0, 3.0)
    assert fit_temperature(signed, findings) == pytest.approx(3 / np.log(2), rel=1e-6)  # four of six there


def test_temperature_undoes_a_scale_and_is_the_best() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 4)) * 2
    labels = (softmax(logits, axis=1).cumsum(1) < generator.random((20_000, 1))).sum(1)
    t = fit_temperature(logits * 6, labels)
    assert t == pytest.approx(6, rel=0.05)
    losses = [log_loss(labels, softmax(logits * 6 / s, axis=1)) for s in (t, t * 1.02, t / 1.02)]
    assert losses[0] == min(losses)
    findings = (generator.random((20_000, 4)) < expit(logits)).astype(float)
    findings[generator.random((20_000, 4)) < 0.5] = np.nan
    assert fit_temperature((logits * 6).astype(np.float32), findings) == pytest.approx(6, rel=0.05)


@no_warnings
def test_temperature_at_its_ends() -> None:
    separated = np.array([[3.0, 0.0], [0.0, 5.0]]), np.array([0, 1])  # four right of four, if it were one more of each
    t = fit_temperature(*separated)
    assert softmax(separated[0] / t, axis=1).max(1).mean() == pytest.approx(3 / 4)
    t = fit_temperature(np.array([[3.0], [-5.0], [-1.0]]), np.array([[1.0], [0.0], [np.nan]]))
    assert expit(np.array([3, 5]) / t).mean() == pytest.approx(3 / 4)
    logits = np.array([[1e4, 0.0], [0.0, 1e4]])
    assert fit_temperature(logits, np.array([1, 0])) == TEMPERATURES[1]
    assert fit_temperature(np.full((5, 3), 0.3), np.array([0, 1, 2, 0, 0])) == 1
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1
    assert fit_temperature(np.ones((2, 2)), np.full((2, 2), np.nan)) == 1
