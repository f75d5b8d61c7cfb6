"""Intervals against closed forms, and against how often they hold in simulated studies."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from utils.intervals import (
    Difference,
    bootstrap_intervals,
    fewest_groups,
    grouped_mean_interval,
    independent_difference,
    interval_text,
    mean_interval,
    paired_difference,
    resampled_scores,
    resamples,
)
from utils.metrics import weighted_scores


def bootstrap_interval(
    score: Callable[[np.ndarray], float], groups: np.ndarray, repeats: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bounds of one score."""
    return bootstrap_intervals(lambda rows: {"score": score(rows)}, groups, repeats, level, seed)["score"][1:]


def compared(
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    arms: Sequence[np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    repeats: int,
) -> Difference:
    """Difference of two arms, each [K, M] predictions, as comparisons compute it."""
    a, b = (resampled_scores(score, arm, labels, groups, repeats, seed=0) for arm in arms)
    once = np.ones((1, len(labels)))
    now_a, now_b = (np.array([score(labels, run, once)[0] for run in arm]) for arm in arms)
    return paired_difference(now_a, now_b, a, b, len(np.unique(groups)))


def accuracy(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ (labels == predictions) / weights.sum(1)


def some_groups(generator: np.random.Generator, images: int) -> np.ndarray:
    """Groups [images] of 1 to 3 images."""
    return np.repeat(np.arange(images), generator.integers(1, 4, images))[:images]


def two_arms(
    generator: np.random.Generator, images: int, draws: int, spread: float, advantage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which images [2, draws, images] are right, of two arms, and the groups; near 80 % right.

    An image is hard for every run (and so are those of its group), harder for one arm, or by luck for one run; each
    run of each arm is better or worse by `spread`. Both arms are equal if `advantage` is 0.
    """
    groups = some_groups(generator, images)
    units = groups[-1] + 1
    difficulty = generator.normal(0, 1, units)[groups] + generator.normal(0, 0.7, images)
    of_the_arm = generator.normal(0, 0.5, (2, 1, units))[..., groups]
    by_luck = generator.normal(0, 0.4, (2, draws, images))
    of_the_run = generator.normal(0, spread, (2, draws, 1))
    skill = 1.2 + np.array([advantage, 0]).reshape(2, 1, 1)
    return skill + difficulty + of_the_arm + by_luck + of_the_run > 0, groups


def share_called_different(cases: int, images: int, draws: int, spread: float, advantage: float = 0.0) -> float:
    """Share of simulated comparisons of accuracy whose interval excludes 0; all runs are resampled at once."""
    generator = np.random.default_rng(0)
    called = []
    for seed in range(cases):
        right, groups = two_arms(generator, images, draws, spread, advantage)
        times = np.array([np.bincount(rows, minlength=images) for rows in resamples(groups, 100, seed)])
        a, b = (times @ arm.T.astype(float) / times.sum(1, keepdims=True) for arm in right)
        now_a, now_b = right.mean(-1)
        _, low, high = paired_difference(now_a, now_b, a, b, units=len(np.unique(groups)))
        called.append(low > 0 or high < 0)
    return float(np.mean(called))


def test_mean_interval_is_students() -> None:
    low, high = stats.t.interval(0.9, 2, loc=2.0, scale=stats.sem([1.0, 2.0, 3.0]))
    assert mean_interval([1.0, 2.0, 3.0], level=0.9) == pytest.approx((2.0, low, high))
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
    assert fewest_groups(np.array([[0], [0], [0], [0], [0], [0]]), groups) == 5


def test_an_interval_in_words() -> None:
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


@pytest.mark.parametrize("truth", [0.7, 0.9])
def test_the_interval_of_accuracy_covers_as_often_as_it_says(truth: float) -> None:
    generator = np.random.default_rng(0)

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


def test_the_interval_is_the_seeds_and_the_levels() -> None:
    generator = np.random.default_rng(0)
    right, groups = generator.random(100) < 0.8, some_groups(generator, 100)
    first, again, other = (bootstrap_interval(lambda r: right[r].mean(), groups, 200, seed=s) for s in (1, 1, 2))
    assert first == again != other
    narrow = bootstrap_interval(lambda rows: right[rows].mean(), groups, 200, level=0.5, seed=1)
    assert first[0] < narrow[0] < right.mean() < narrow[1] < first[1]


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
    one_arm, other = scores[None].repeat(3, 0), np.random.default_rng(0).random((3, 22))
    arms = one_arm[..., None], other[..., None]
    assert np.isfinite(compared(weighted_scores, arms, labels[:, None], np.arange(22), repeats=40)).all()


@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_equal_arms_are_seldom_called_different(spread: float) -> None:
    assert share_called_different(500, images=200, draws=3, spread=spread) <= 0.07


def test_ten_points_are_found_with_three_draws() -> None:
    right = two_arms(np.random.default_rng(0), 100_000, 3, 0.1, advantage=0.65)[0]
    assert right[0].mean() - right[1].mean() == pytest.approx(0.1, abs=0.02)
    assert share_called_different(100, images=500, draws=3, spread=0.1, advantage=0.65) >= 0.8


def test_the_paired_interval_is_students_where_images_say_nothing_new() -> None:
    """If all images agree, only the draws vary; if all draws agree, only the images vary."""
    a, b = np.array([0.8, 0.7, 0.9]), np.array([0.6, 0.6, 0.6])
    difference = paired_difference(a, b, np.tile(a, (50, 1)), np.tile(b, (50, 1)), units=100)
    assert difference == pytest.approx(mean_interval(a - b))
    noise = np.random.default_rng(0).normal(0, 0.02, (50, 1))
    difference = paired_difference(b + 0.1, b, b + 0.1 + noise, np.tile(b, (50, 1)), units=20)
    reach = stats.t.ppf(0.975, 19) * noise.std(ddof=1) * np.sqrt(20 / 19)
    assert difference == pytest.approx((0.1, 0.1 - reach, 0.1 + reach))


def test_draws_and_images_add_up() -> None:
    """Against the formula written out for three draws, with noise that the draws share and noise of their own."""
    generator = np.random.default_rng(0)
    a, zero = np.array([0.1, 0.3, 0.05]), np.zeros((4000, 3))
    resampled = a + generator.normal(0, 0.05, (4000, 1)) + generator.normal(0, 0.01, (4000, 3))
    draws, shared = np.var(a, ddof=1) / 3, 0.05**2 * 40 / 39
    freedom = 1 / (draws / (draws + shared) / 2 + shared / (draws + shared) / 39)
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(draws + shared)
    low, high = paired_difference(a, zero[0], resampled, zero, units=40)[1:]
    assert (high - low) / 2 == pytest.approx(reach, rel=0.02)
    lucky = paired_difference(zero[0] + 0.1, zero[0], generator.normal(0, 0.03, (4000, 3)), zero, units=1000)
    assert lucky.mean - lucky.low == pytest.approx(stats.t.ppf(0.975, 2) * 0.03 / np.sqrt(3), rel=0.05)


def test_both_arms_get_the_same_resamples() -> None:
    """Arms that are the same but for one image differ by that image alone, however hard the others are."""
    generator = np.random.default_rng(0)
    right, groups = two_arms(generator, 200, 3, 0.3, 0)
    labels, almost = np.ones(200, bool), right[0].copy()
    almost[:, 7] = ~almost[:, 7]
    assert compared(accuracy, (right[0], right[0]), labels, groups, repeats=50) == Difference(0.0, 0.0, 0.0)
    close = compared(accuracy, (right[0], almost), labels, groups, repeats=200)
    assert close.high - close.low < 0.06
    mean, low, high = compared(accuracy, (almost, right[0]), labels, groups, repeats=200)
    assert (mean, low, high) == pytest.approx((-close.mean, -close.high, -close.low))


def test_one_draw_or_unpaired_draws_give_no_bounds() -> None:
    right, groups = two_arms(np.random.default_rng(0), 60, 3, 0.1, 0)
    labels = np.ones(60, bool)
    one = compared(accuracy, (right[0, :1], right[1, :1]), labels, groups, repeats=20)
    assert one.mean == pytest.approx(right[0, 0].mean() - right[1, 0].mean())
    assert np.isnan([one.low, one.high]).all()
    with pytest.raises(ValueError, match="same draws"):
        compared(accuracy, (right[0], right[1, :1]), labels, groups, repeats=20)


def test_the_difference_of_independent_scores_keeps_their_uncertainty() -> None:
    normal = independent_difference((0.8, 0.7, 0.9), (0.5, 0.3, 0.7))
    assert normal == pytest.approx((0.3, 0.3 - np.hypot(0.1, 0.2), 0.3 + np.hypot(0.1, 0.2)))
    perfect = independent_difference((1.0, 0.83, 1.0), (1.0, 0.83, 1.0))  # of 20 images each
    assert perfect == pytest.approx((0, -0.17, 0.17))


def test_values_that_do_not_occur_are_not_the_rarest() -> None:
    findings = np.array([[1, np.nan, 0], [1, np.nan, 0], [0, np.nan, 0], [0, np.nan, 0]])
    assert fewest_groups(findings, np.array(["a", "b", "c", "d"])) == 2
    assert fewest_groups(findings, np.array(["a", "b", "c", "c"])) == 1
