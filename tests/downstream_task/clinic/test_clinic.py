"""Operating points, conformal sets, subgroups: against scikit-learn, by hand and by simulation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import auc, balanced_accuracy_score, recall_score, roc_auc_score, roc_curve

from downstream_task.clinic import tables
from downstream_task.clinic.films import PATH, find_films
from downstream_task.clinic.tables import (
    MAX_GROUPS,
    MIN_IMAGES,
    RULES,
    by_study,
    choose_threshold,
    coverage,
    least_probability,
    operating_points,
    subgroup_table,
)
from downstream_task.predictions import Predicted
from utils.metrics import expected_calibration_error


def said(labels: np.ndarray, p: np.ndarray, groups: np.ndarray | None = None, **details: Any) -> Predicted:
    """What a network says of images, each of which is a group by default."""
    names, groups = tuple("abcd"[: p.shape[1]]), np.arange(len(p)) if groups is None else groups
    return Predicted(names, labels, p, groups, pd.DataFrame(details, index=range(len(p))), np.zeros(len(p)))


def scores_and_truth(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random(count) < 0.3).astype(float)
    return truth, np.round(1 / (1 + np.exp(-rng.normal(1.5 * truth, 1))), 2)  # rounded: ties


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", RULES)
def test_thresholds_are_the_best_of_scikit_learns_curve(rule: str, seed: int) -> None:
    truth, score = scores_and_truth(200, seed)
    false, right, thresholds = roc_curve(truth, score, drop_intermediate=False)
    wanted, least = RULES[rule]
    ok = {"specificity": 1 - false >= least, "sensitivity": right >= least}.get(wanted, np.ones(len(false), bool))
    value = {"specificity": right, "sensitivity": 1 - false}.get(wanted, right - false)
    threshold = choose_threshold(truth, score, rule)
    found = (score >= threshold)[truth == 1].mean(), (score < threshold)[truth == 0].mean()
    best = np.flatnonzero(ok & np.isclose(value, value[ok].max()))
    assert any(np.allclose(found, (right[i], 1 - false[i])) for i in best)
    assert threshold in thresholds or threshold == np.inf


def test_unknown_findings_and_missing_kinds() -> None:
    truth, score = np.array([1, 0, np.nan, 1, 0]), np.array([0.9, 0.2, 0.99, 0.6, 0.7])
    assert choose_threshold(truth, score, "sensitivity 0.90") == 0.6
    assert choose_threshold(truth, score, "specificity 0.90") == 0.9
    assert np.isnan(choose_threshold(np.zeros(5), score, "Youden"))
    one = said(np.zeros((5, 1)), score[:, None])
    assert operating_points(one, one).empty, "no threshold can be chosen"


def test_operating_points_use_validations_thresholds_on_test_images() -> None:
    (val_truth, val_score), (truth, score) = scores_and_truth(300, 0), scores_and_truth(300, 1)
    val, test = said(val_truth[:, None], val_score[:, None]), said(truth[:, None], score[:, None], np.arange(300) // 2)
    table = operating_points(val, test).set_index(["rule", "rate"])
    assert len(table) == 2 * len(RULES)
    for rule in RULES:
        threshold = choose_threshold(val_truth, val_score, rule)
        for label, rate in ((1, "sensitivity"), (0, "specificity")):
            row = table.loc[rule, rate]
            expected = recall_score(truth, score >= threshold, pos_label=label)
            assert row["value"] == pytest.approx(expected)
            assert row["threshold"] == threshold
            spread = 1.96 * np.sqrt(expected * (1 - expected) / row["images"])
            assert row["high"] - row["low"] == pytest.approx(2 * spread, rel=0.4)


def test_conformal_sets_hold_the_right_class_as_often_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "REPEATS", 2)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        logits = rng.normal(size=(60 + 200, 4))
        labels = rng.integers(0, 4, len(logits))
        logits[np.arange(len(logits)), labels] += 1
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        least = least_probability(said(labels[:60], p[:60]), miss=0.1)
        table = coverage(said(labels[60:], p[60:]), least).set_index("class")
        shares.append(table.loc["all", "coverage"])
    assert 0.9 - 0.005 < np.mean(shares) < 0.9 + 1 / 61 + 0.005


def test_conformal_sets_by_hand() -> None:
    p = np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    labels = np.array([0, 1, 1])
    one = said(labels, p)
    assert least_probability(one, miss=0.5) == 0.7  # the second of .8, .7, .4
    assert least_probability(one) == 0, "too few images to promise anything but all classes"
    five = replace(said(np.tile(labels, 5), np.tile(p, (5, 1))), heads=np.repeat(np.arange(5), 3))
    assert least_probability(five, miss=0.3) == least_probability(one, miss=0.3) == 0.4, "five heads on three images"
    assert least_probability(five, miss=0.2) == least_probability(one, miss=0.2) == 0, "are not fifteen images"
    table = coverage(one, 0.7).set_index("class")
    assert table["coverage"].tolist() == pytest.approx([2 / 3, 1, 1 / 2])
    assert table["mean_size"].tolist() == pytest.approx([2 / 3, 1, 1 / 2])
    assert table["empty"].tolist() == pytest.approx([1 / 3, 0, 1 / 2])


def test_subgroups_by_sex_age_and_view() -> None:
    right = np.random.default_rng(0).random(100) < 0.7
    sex, age, view = ["F"] * 60 + ["M"] * 20 + [None] * 20, [17, 18, 40, 79, np.nan] * 20, ["AP", "PA"] * 50
    labels = np.array([0, 1] * 30 + [0] * 40)
    table = subgroup_table(said(labels, np.eye(2)[np.where(right, labels, 1 - labels)], sex=sex, age=age, view=view))
    found = table.set_index(["detail", "group"])
    women, young = (
        balanced_accuracy_score(labels[rows], np.where(right, labels, 1 - labels)[rows])
        for rows in (range(60), range(0, 100, 5))
    )
    assert found.loc[("sex", "F"), "value"] == pytest.approx(women)
    assert found.loc[("age", "0 to 17"), "value"] == pytest.approx(young)
    assert found.loc[("age", "60 to 79"), "images"] == 20
    assert set(table["group"]) == {"F", "M", "AP", "PA", "0 to 17", "18 to 39", "40 to 59", "60 to 79"}
    few = table["note"].str.contains("few images")
    assert few.tolist() == (table["images"] < MIN_IMAGES).tolist()
    assert set(table["group"][table["note"].str.contains("lacks some classes")]) == {"M", "AP"}
    low, value, high = (table[name].to_numpy() for name in ("low", "value", "high"))
    assert ((low < value) & (value < high)).all()


def test_scores_by_study_are_those_of_mean_probabilities() -> None:
    rng = np.random.default_rng(0)
    patients, studies, views = np.repeat(np.arange(60), 4), np.tile([1, 1, 1, 2], 60), 240
    of_study = np.unique(np.stack([patients, studies]), axis=1, return_inverse=True)[1].ravel()
    labels = rng.integers(0, 2, (120, 2)).astype(np.float32)[of_study]
    labels[0:3, 0] = [1, np.nan, np.nan]  # a finding of one view
    labels[3, 1] = np.nan  # of a study of which nothing is known
    p = np.clip(np.nan_to_num(labels) * 0.4 + rng.random((views, 2)) * 0.6, 0.01, 0.99)
    tested = said(labels, p, patients.astype(str), study=studies)
    found = by_study(tested)
    assert found is not None and len(found.labels) == len(found.groups) == 120
    value = found.score(np.arange(120))
    expected = []
    for c in range(2):
        table = pd.DataFrame({"study": of_study, "label": labels[:, c], "p": p[:, c]})
        known = table.groupby("study").agg({"label": "max", "p": "mean"}).dropna()
        expected.append(roc_auc_score(known["label"], known["p"]))
    assert value == pytest.approx(np.mean(expected))
    assert by_study(tested.take(np.arange(3, 240, 4))) is None, (
        "each study has one view, so its score is the one by image"
    )


def test_what_is_said_twice_of_several_heads_is_one_number() -> None:
    """Scores are means over heads, also beside ROC curves; calibration errors, raw and scaled, join their images."""
    rng = np.random.default_rng(0)
    labels, heads = rng.integers(0, 3, 150), np.arange(150) % 3
    logits = rng.normal(size=(150, 3)) + 1.5 * np.eye(3)[labels] + 3 * np.eye(3)[heads]  # each prefers another class
    tested = replace(said(labels, np.asarray(softmax(logits, axis=1))), heads=heads)
    unscaled = tables.all_scores(tested, tested)
    assert unscaled["ece"] == unscaled["ece_after_temperature_scaling"]
    ece = expected_calibration_error(tested.probabilities.max(1), tested.probabilities.argmax(1) == labels)
    assert unscaled["ece"][0] == pytest.approx(ece)
    found, figures, _ = tables.page(tested, tested, "")
    scores, classes = found["scores"].set_index("score")["value"], found["classes"].set_index(["class", "score"])
    for c, name in enumerate(tested.names):
        areas = [roc_auc_score(labels[heads == k] == c, tested.probabilities[heads == k, c]) for k in range(3)]
        assert classes.loc[(name, "auroc"), "value"] == pytest.approx(np.mean(areas))
        curve = figures["roc"].axes[0].lines[1 + c]
        assert curve.get_label() == f"{name}, AUROC {np.mean(areas):.2f}"
        assert auc(*curve.get_data()) == pytest.approx(np.mean(areas), abs=2e-3)
    drawn = [text.get_text() for text in figures["reliability"].legends[0].get_texts()]
    assert drawn[0] == f"raw, ECE {scores['ece']:.3f}"
    assert drawn[1] == f"after temperature scaling, ECE {scores['ece_after_temperature_scaling']:.3f}"


def test_of_many_small_groups_the_largest_come_one_by_one() -> None:
    sources = ["big"] * 50 + ["small"] * 30 + [f"film {n}" for n in range(20)]
    table = subgroup_table(said(np.zeros(100, dtype=int), np.eye(2)[[0] * 100], source=sources))
    images = dict(zip(table["group"], table["images"], strict=True))
    assert len(images) == MAX_GROUPS and sum(images.values()) == 100
    assert (images["big"], images["small"], images[f"{22 - MAX_GROUPS + 1} others"]) == (50, 30, 22 - MAX_GROUPS + 1)


def test_a_film_that_a_table_and_its_folder_name_comes_once_with_its_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "tables").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "films" / name).touch()
    (tmp_path / "tables" / "t.csv").write_text("File,patient,path\n../films/a.png,p1,kept\n")
    films = find_films([str(tmp_path / "films"), str(tmp_path / "tables" / "t.csv")], laterals=False).table
    assert films[PATH].tolist() == [str(tmp_path / "films" / name) for name in ("a.png", "b.png")]
    assert films["patient"].tolist()[0] == "p1" and films["path"].tolist()[0] == "kept"
    assert "1 X-rays are named again" in capsys.readouterr().err
