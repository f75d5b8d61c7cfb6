"""Label efficiency: intervals, differences, plateaus and labels saved, of predictions and curves that are made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from finetuning_config import finetuning_config

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import open_xrays
from downstream_task.label_efficiency import (
    MAX_MISS,
    Cell,
    curve_table,
    difference_table,
    draw_units,
    labels_needed,
    plateau_table,
    read_cells,
    with_best,
)
from downstream_task.targets import predictions_table, read_targets
from utils.intervals import savings_sentence
from utils.metrics import balanced_accuracy, fit_plateau


def cell(labels: int, level: float) -> Cell:
    resampled, encoders = np.full((50, 3), level), ("random",) * 3
    return Cell("arm", "linear", labels / 1000, labels, np.full(3, level), resampled, 50, encoders)


def made_up(scores: np.ndarray, encoders: tuple[str, ...]) -> Cell:
    resampled = scores + np.random.default_rng(1).normal(0, 0.02, (400, 1))
    return Cell("arm", "linear", 0.1, 100, scores, resampled, 200, encoders)


def test_draws_that_share_a_pretraining_are_not_counted_twice() -> None:
    levels, labels = np.array([0.60, 0.64, 0.68]), np.array([-0.01, 0.01])
    scores = (levels[:, None] + labels).ravel()  # three pretrainings, two draws of labels each
    random = made_up(np.full(6, 0.5), ("random",) * 6)
    shared = made_up(scores, ("a", "a", "b", "b", "c", "c"))
    averaged = made_up(levels, ("a", "b", "c"))
    wanted = averaged.less(made_up(np.full(3, 0.5), ("random",) * 3))
    np.testing.assert_allclose(shared.less(random), wanted)
    np.testing.assert_allclose(shared.interval(), averaged.interval())
    apart = made_up(scores, ("a", "b", "c", "d", "e", "f")).less(random)
    assert apart.high - apart.low < wanted.high - wanted.low
    assert [unit.tolist() for unit in draw_units(random, shared)] == [[0, 1], [2, 3], [4, 5]]
    assert [unit.tolist() for unit in draw_units(random)] == [[0], [1], [2], [3], [4], [5]]


def test_intervals_and_differences_of_known_predictions(phantoms: Path, tmp_path: Path) -> None:
    config = finetuning_config(data_root=str(phantoms / COVID_ROOT), img_res=32, store_res=32)
    xrays = open_xrays(config, torch.device("cpu"))
    targets, val = read_targets(xrays, config), xrays.indices("all")
    generator, rows = np.random.default_rng(0), []
    for arm, right in (("random", 0.5), ("pretrained", 0.9)):
        for draw in range(3):
            trial, labels = f"{arm}_{draw}", targets.values[val]
            called = np.where(generator.random(len(val)) < right, labels, (labels + 1) % 4)
            table = predictions_table(xrays, targets, val, np.eye(4)[called])
            (tmp_path / trial).mkdir()
            table.to_csv(tmp_path / trial / "predictions.csv", index=False)
            score = balanced_accuracy(labels, np.eye(4)[called])
            place = {
                "trial": trial,
                "arm": arm,
                "method": "linear",
                "fraction": 0.1,
                "draw": draw,
                "labels": 19,
                "encoder": arm,
            }
            rows.append({**place, "score": score})
    runs = pd.DataFrame(rows)
    cells = read_cells(runs.drop(columns="score"), tmp_path, "predictions.csv")
    means = [runs.loc[runs["arm"] == arm, "score"].to_numpy().mean() for arm in ("random", "pretrained")]
    for row, mean in zip(curve_table(cells).to_dict("records"), means, strict=True):
        assert row["low"] < row["mean"] == pytest.approx(mean)
    gap, same = difference_table(with_best(cells, runs.assign(best=True))).to_dict("records")
    assert (gap["arm"], gap["reference"], gap["method"], gap["labels"]) == ("pretrained", "random", "best", 19)
    assert same == {**gap, "method": "linear"}
    assert gap["difference"] == pytest.approx(means[1] - means[0])
    assert 0 < gap["low"] < gap["difference"] < gap["high"]
    assert gap["reference_needs"] == np.inf


def test_differences_are_to_the_best_method_of_the_reference() -> None:
    levels = {("random", "linear"): 0.5, ("random", "finetune"): 0.6, ("pretrained", "linear"): 0.7}
    cells = [replace(cell(10, level), arm=arm, method=method) for (arm, method), level in levels.items()]
    runs = pd.DataFrame([(*key, 0.01) for key in levels], columns=["arm", "method", "fraction"])
    table = difference_table(with_best(cells, runs.assign(best=[False, True, True])))
    assert table["method"].tolist() == ["best", "linear"]
    np.testing.assert_allclose(table["difference"], 0.1)


def test_a_plateau_is_fitted_and_says_how_many_labels_a_score_needs() -> None:
    labels = np.array([16, 80, 160, 400, 1600])
    a, b, c = 0.85, 1.2, 0.5
    curve = [replace(cell(n, a - b * n**-c), method="best") for n in labels]
    (row,) = plateau_table(curve, target=0.8).to_dict("records")
    assert row["a"] == pytest.approx(a, abs=0.01)
    assert row["needed"] == pytest.approx((b / 0.05) ** 2, rel=0.15)
    assert row["needed_low"] == row["needed"] == row["needed_high"], "all resamples are the same"
    (row,) = plateau_table(curve, target=0.9).to_dict("records")
    assert row["needed"] == np.inf
    assert len(plateau_table(curve[:3], target=0.8)) == 0
    flat = fit_plateau(labels.astype(float), np.full((1, 5), 0.6))
    np.testing.assert_allclose(flat[0, :2], [0.6, 0], atol=1e-9)
    beyond = fit_plateau(labels.astype(float), np.array([[0.5, 0.8, 0.9, 0.97, 1.0]]))
    assert beyond[0, 0] <= 1


def test_labels_for_a_score_that_was_reached_are_interpolated() -> None:
    labels, levels = [12, 60, 120, 1200], [0.3, 0.4, 0.5, 0.9]  # no power law
    curve = [replace(cell(n, level), method="best") for n, level in zip(labels, levels, strict=True)]

    def row(target: float) -> dict[str, float]:
        return plateau_table(curve, target).to_dict("records")[0]

    assert row(0.7)["needed"] == row(0.7)["needed_low"] == pytest.approx((120 * 1200) ** 0.5)
    assert row(0.2)["needed"] == 0  # fewer than 12 were not tried
    fit = row(0.7)
    predicted = fit["a"] - fit["b"] * np.array(labels, dtype=float) ** -fit["c"]
    assert fit["misses"] == pytest.approx(np.abs(predicted - levels).max()) and fit["misses"] > MAX_MISS
    assert row(0.95)["needed"] == np.inf  # such a fit predicts nothing


def test_a_fit_does_not_say_that_labels_suffice_that_did_not() -> None:
    labels = np.array([16, 80, 160, 400])
    curve = [replace(cell(n, 0.85 - 1.2 * n**-0.5 - 0.015 * (n == 400)), method="best") for n in labels]
    (row,) = plateau_table(curve, target=curve[-1].scores.mean() + 1e-3).to_dict("records")
    assert row["misses"] < MAX_MISS and row["needed"] == np.inf


def test_labels_saved_on_a_known_curve() -> None:
    curve = [cell(10, 0.5), cell(100, 0.7), cell(1000, 0.8)]
    needed = labels_needed(cell(10, 0.6), curve)
    assert needed["reference_needs"] == pytest.approx(10**1.5)  # half-way between 10 and 100 on the log scale
    assert needed["reference_needs_low"] == needed["reference_needs_high"] == pytest.approx(10**1.5)
    assert labels_needed(cell(10, 0.9), curve)["reference_needs"] == np.inf
    assert labels_needed(cell(10, 0.4), curve)["reference_needs"] == 0
    assert labels_needed(cell(10, 0.5), curve)["reference_needs"] == pytest.approx(10)
    row = {"labels": 10, **labels_needed(cell(10, 0.9), curve)}
    assert savings_sentence(row, "covid", "random", 10, 1000) == (
        "With 10 labels covid scores as random does with more than 1,000 labels (95% of resamples more than 1,000 to "
        "more than 1,000)."
    )
