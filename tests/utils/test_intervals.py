"""Intervals against closed forms, and against how often they hold in simulated studies."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from utils.intervals import (
    HELD_OUT,
    OWN,
    Shared,
    bootstrap_intervals,
    difference_interval,
    draw_units,
    fewest_groups,
    grouped_mean_interval,
    independent_difference,
    mean_interval,
    resample_weights,
    resamples,
)
from utils.wording import interval_scope, interval_text


def bootstrap_interval(
    score: Callable[[np.ndarray], float], groups: np.ndarray, repeats: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bounds of one score."""
    return bootstrap_intervals(lambda rows: {"score": score(rows)}, groups, repeats, seed)["score"][1:]


def some_groups(generator: np.random.Generator, images: int) -> np.ndarray:
    """Groups [images] of 1 to 3 images."""
    return np.repeat(np.arange(images), generator.integers(1, 4, images))[:images]


def shared(covariance: np.ndarray, labels: float = 0.0, groups: int = 1000) -> Shared:
    """Draws that share no pretraining."""
    return Shared(covariance, np.arange(len(covariance)), labels, groups)


def test_mean_interval_is_students() -> None:
    low, high = stats.t.interval(0.95, 2, loc=2.0, scale=stats.sem([1.0, 2.0, 3.0]))
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, low, high))
    assert mean_interval([1.0, 2.0, 3.0])[1] == pytest.approx(2 - 4.302653 / np.sqrt(3))
    mean, *bounds = mean_interval([0.7])
    assert mean == 0.7 and np.isnan(bounds).all()
    assert np.isnan(mean_interval([])).all()


def test_the_interval_of_grouped_values_is_that_of_the_groups_means() -> None:
    groups = np.array(["a", "a", "b", "c", "c", "c", "d", "e", "f"])
    values = np.array([0.0, 1.0, 0.7, 0.1, 0.2, 0.3, 0.4, 0.9, np.nan])
    means = [0.5, 0.7, 0.2, 0.4, 0.9]  # f is unknown
    assert grouped_mean_interval(values, groups) == pytest.approx(mean_interval(means))
    again = np.append(values, [0.7] * 50), np.append(groups, ["b"] * 50)  # copies of one group's image
    assert grouped_mean_interval(*again) == pytest.approx(mean_interval(means))
    mean, low, high = grouped_mean_interval(values[3:], groups[3:])  # c, d, e: too few groups
    assert mean == pytest.approx(0.5) and np.isnan([low, high]).all()
    assert np.isnan(grouped_mean_interval(np.full(3, np.nan), np.arange(3))).all()


def test_the_rarest_groups_are_counted() -> None:
    groups = np.array([0, 0, 1, 2, 3, 4])
    assert fewest_groups(np.array([1, 1, 0, 0, 2, 2]), groups) == 1  # of class 1, two images of one patient
    assert fewest_groups(np.array([[1, 0], [1, 0], [0, 0], [1, 1], [0, 1], [1, 1]]), groups) == 2
    findings = np.array([[1, np.nan, 0], [1, np.nan, 0], [0, np.nan, 0], [0, np.nan, 0]])
    assert fewest_groups(findings, np.arange(4)) == 2, "values that do not occur are not the rarest"
    assert fewest_groups(findings, np.array([0, 1, 2, 2])) == 1


def test_intervals_and_their_scope_in_words() -> None:
    assert interval_scope({"random": 10, "ours": 5}) == "new patients, new draws of labels and new pretrainings"
    scope = interval_scope({"random": 10, "imagenet": 1})
    assert scope.endswith(", except for imagenet, of which there is only one file")
    assert interval_text(0.7123, 0.68, 0.744) == "0.712 [0.680, 0.744]"
    assert interval_text(12.0, float("nan"), 13.0, form="+.1f") == "+12.0 (too few for an interval)"


def test_resamples_hold_whole_groups_as_often_as_chance_has_it() -> None:
    groups = np.array(["b", "a", "c", "b", "c", "c", "d"])
    members = [np.flatnonzero(groups == name) for name in "abcd"]
    times = []
    for rows in resamples(groups, 4000, seed=1):
        counts = np.bincount(rows, minlength=len(groups))
        per_group = [counts[rows_of_group] for rows_of_group in members]
        assert all((c == c[0]).all() for c in per_group)
        assert sum(c[0] for c in per_group) == 4
        times.append([c[0] for c in per_group])
    np.testing.assert_allclose(np.mean(times, 0), 1, atol=0.06)
    np.testing.assert_allclose(np.var(times, 0), 0.75, atol=0.08)  # binomial: 4 draws of one in 4


def test_the_interval_of_accuracy_covers_as_often_as_it_says() -> None:
    generator, truth = np.random.default_rng(0), 0.9

    def covers(seed: int) -> bool:
        groups = some_groups(generator, 200)
        of_group = generator.beta(truth, 1 - truth, groups[-1] + 1)[groups]  # half of the variance is the group's
        right = generator.random(200) < of_group
        low, high = bootstrap_interval(lambda rows: np.add.reduce(right[rows]) / len(rows), groups, 80, seed=seed)
        return low <= truth <= high

    covered = [covers(seed) for seed in range(1000)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_the_interval_is_the_closed_form_for_independent_images() -> None:
    right = np.arange(500) < 400
    low, high = bootstrap_interval(lambda rows: right[rows].mean(), np.arange(500), repeats=4000)
    reach = stats.t.ppf(0.975, 499) / np.sqrt(499 * 0.8 * 0.2)
    odds = np.exp([np.log(4) - reach, np.log(4) + reach])
    np.testing.assert_allclose([low, high], odds / (1 + odds), atol=0.002)
    wide = bootstrap_interval(lambda rows: right[rows].mean(), np.arange(500) // 5, repeats=4000)
    assert (wide[1] - wide[0]) / (high - low) == pytest.approx(np.sqrt(5), rel=0.06)  # groups all right or all wrong


def test_the_interval_at_its_ends() -> None:
    groups = np.repeat(np.arange(50), 2)
    assert bootstrap_interval(lambda rows: 1.0, groups) == (pytest.approx(0.025 ** (1 / 50)), 1.0)
    assert bootstrap_interval(lambda rows: 0.0, groups) == (0.0, pytest.approx(1 - 0.025 ** (1 / 50)))
    assert bootstrap_interval(lambda rows: 0.25, groups) == pytest.approx((0.25, 0.25))
    assert np.isnan(bootstrap_interval(lambda rows: float("nan"), groups)).all()
    assert np.isnan(bootstrap_interval(lambda rows: 0.5, np.zeros(9))).all()
    with pytest.raises(ValueError, match=r"0\.\.1"):
        bootstrap_interval(lambda rows: 1.5, groups)


def test_resamples_without_one_class_are_left_out() -> None:
    labels, scores = np.array([1, 1] + [0] * 20), np.linspace(0, 1, 22) ** 2
    scores[0] = 0.5

    def area(rows: np.ndarray) -> float:
        return roc_auc_score(labels[rows], scores[rows]) if 0 < labels[rows].sum() < len(rows) else float("nan")

    assert any(np.isnan(area(rows)) for rows in resamples(np.arange(22), 100, 0))
    low, high = bootstrap_interval(area, np.arange(22), repeats=40)
    assert 0 < low < area(np.arange(22)) < high < 1


def test_weights_are_the_resamples() -> None:
    groups = np.array(["b", "a", "c", "b", "c", "c", "d"])
    weights = resample_weights(groups, 20, seed=3)
    assert weights.dtype == np.uint8 and weights[0].tolist() == [1] * 7
    counts = [np.bincount(rows, minlength=7) for rows in resamples(groups, 20, 3)]
    np.testing.assert_array_equal(weights[1:], counts)


def test_draws_that_share_a_pretraining_are_one_unit() -> None:
    random, folds = np.arange(6), np.array([0, 1, 2, 0, 1, 2])
    assert draw_units(random).tolist() == [0, 1, 2, 3, 4, 5]
    assert draw_units(random, folds).tolist() == draw_units(folds, random).tolist() == [0, 1, 2, 0, 1, 2]
    assert draw_units(0 * random, folds).tolist() == [0, 1, 2, 0, 1, 2], "one file of weights joins nothing"
    assert draw_units(0 * random, 0 * random).tolist() == [0, 1, 2, 3, 4, 5]
    pairs = np.array([0, 0, 1, 1, 2, 2])
    assert draw_units(np.array([0, 1, 2, 3, 3, 4]), pairs).tolist() == [0, 0, 1, 1, 1, 1], "joined in turn"


def test_the_interval_is_students_where_images_say_nothing_new() -> None:
    """If images say nothing, only the units' luck counts; if all units agree, only the images do."""
    values = np.array([0.2, 0.1, 0.3])
    assert difference_interval(values, shared(np.zeros((3, 3)))) == pytest.approx(mean_interval(values))
    twice = Shared(np.zeros((6, 6)), np.arange(6) % 3, 0.0, 1000)
    spread = np.repeat([-0.05, 0.05], 3)  # of two draws of one pretraining, which luck of pretrainings outweighs
    assert difference_interval(np.tile(values, 2) + spread, twice) == pytest.approx(mean_interval(values))
    same = difference_interval(np.full(3, 0.1), shared(np.full((3, 3), 0.02**2), groups=20))
    reach = stats.t.ppf(0.975, 19) * 0.02
    assert same == pytest.approx((0.1, 0.1 - reach, 0.1 + reach))


def test_luck_and_images_add_up() -> None:
    """Against the formula written out for five draws, of two folds, that learn from shares of the labels."""
    values, own, groups = np.array([0.1, 0.3, 0.05, 0.2, 0.15]), 0.05**2, 40
    covariance = own * np.equal.outer([0, 1, 0, 1, 0], [0, 1, 0, 1, 0])
    of_mean = own * (9 + 4) / 25
    explained = (5 * own - 25 * of_mean / 5) / 4 / 5  # of the variance between draws, over five
    spread = values.var(ddof=1) / 5
    for labels in (0.0, 0.1, 1.0):
        luck = (1 / 5 + HELD_OUT * labels) * 5 * (spread - explained)
        few = luck + OWN * explained
        freedom = (luck + of_mean) / (few / 4 + (luck + of_mean - few) / (groups - 1))
        reach = stats.t.ppf(0.975, freedom) * np.sqrt(luck + of_mean)
        mean, low, high = difference_interval(values, shared(covariance, labels, groups))
        assert (mean, low, high) == pytest.approx((0.16, 0.16 - reach, 0.16 + reach))


def test_there_is_no_interval_of_two_units_or_one_group() -> None:
    assert difference_interval(np.array([0.1, 0.3]), shared(np.zeros((2, 2))))[0] == pytest.approx(0.2)
    for draws, groups in ((2, 100), (4, 1)):
        assert np.isnan(difference_interval(np.arange(draws), shared(np.eye(draws), groups=groups))[1:]).all()
    pretrainings = Shared(np.zeros((10, 10)), np.arange(10) % 2, 0.0, 100)
    assert np.isnan(difference_interval(np.arange(10.0), pretrainings)[1:]).all()


@pytest.mark.parametrize("units", [3, 5, 10])
@pytest.mark.parametrize("luck", [0.25, 1.0, 4.0])
def test_intervals_hold_for_any_share_of_luck_and_images(units: int, luck: float) -> None:
    """Units with test images of their own, whose covariance is known; luck is its variance over that of a unit."""
    generator, images = np.random.default_rng(0), shared(np.eye(units))
    values = generator.normal(0, np.sqrt(1 + luck), (2000, units))
    bounds = np.array([difference_interval(of_one, images) for of_one in values])
    held, width = (bounds[:, 1] <= 0) & (bounds[:, 2] >= 0), np.median(bounds[:, 2] - bounds[:, 1]) / 2
    assert 0.93 <= held.mean() <= 0.985
    assert width / (1.96 * np.sqrt((1 + luck) / units)) < {3: 1.85, 5: 1.35, 10: 1.15}[units]


def test_the_difference_of_independent_scores_keeps_their_uncertainty() -> None:
    normal = independent_difference((0.8, 0.7, 0.9), (0.5, 0.3, 0.7))
    assert normal == pytest.approx((0.3, 0.3 - np.hypot(0.1, 0.2), 0.3 + np.hypot(0.1, 0.2)))
    perfect = independent_difference((1.0, 0.83, 1.0), (1.0, 0.83, 1.0))  # of 20 images each
    assert perfect == pytest.approx((0, -0.17, 0.17))
