"""Label efficiency: tables of predictions that are made up, curves that are known, and how often intervals hold."""

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from simulated_comparisons import Design, coverage, coverage_of_labels_needed
from sklearn.metrics import roc_auc_score
from tables_of_predictions import CLASSES, FINDINGS, of_classes, of_findings

from downstream_task.label_efficiency import (
    CURVE_COLUMNS,
    DIFFERENCE_COLUMNS,
    MAX_MISS,
    Cell,
    Images,
    curve_table,
    difference_table,
    in_common,
    labels_needed,
    plateau_table,
    read_cells,
    report,
)
from utils.config import REPO_ROOT, UserError
from utils.metrics import balanced_accuracy, fit_plateau
from utils.wording import savings_sentence

WAYS = [("linear", 20), ("zeros", 20), ("zeros", 90)]
Tables = dict[str, pd.DataFrame]


def made_up(make: Callable[..., pd.DataFrame] = of_classes, draws: int = 6, folds: int = 3) -> Tables:
    """Two arms with two ways and numbers of labels: 40 validation images, and 80 test images of each fold."""
    tables: Tables = {}
    for draw, (arm, skill), (way, labels) in product(range(draws), (("random", 0.5), ("ours", 0.7)), WAYS):
        fold = draw % folds
        cell = {"fold": fold, "draw": draw, "arm": arm, "way": way, "labels": labels}
        seed = 1000 * draw + labels + 10 * len(arm) + len(way)
        table = make(seed, skill, 120, **cell, start=draw if arm == "random" else fold)
        own = np.where(table["part"] == "val", "", f"-{fold}")
        tables[f"{arm}-{way}-{labels}-{draw}"] = table.assign(file=table["file"] + own, group=table["group"] + own)
    return tables


def runs_of(tables: Tables) -> pd.DataFrame:
    """The rows of summary.csv for these tables; the way that comes first for an arm and number of labels headlines."""
    columns = ["arm", "way", "labels", "fold", "draw", "start"]
    runs = pd.DataFrame([{"trial": name, **table.iloc[0][columns].to_dict()} for name, table in tables.items()])
    first = runs.groupby(["arm", "labels"], sort=False)["way"].transform("first")
    return runs.assign(headline=runs["way"] == first, transductive=False)


def cells_of(tables: Tables, part: str = "test", runs: pd.DataFrame | None = None) -> list[Cell]:
    return read_cells(runs_of(tables) if runs is None else runs, tables.__getitem__, part)


def cell(labels: int, level: float, arm: str = "arm", way: str = "linear", headline: bool = True) -> Cell:
    images = Images(pd.Index([]), {}, np.ones((51, 0)), 50, 1e6)
    draws, starts = ((0, 0), (1, 1), (2, 2)), np.arange(3)
    return Cell(arm, way, labels, headline, draws, starts, np.full(3, level), np.full((50, 3), level), images)


def score_of(table: pd.DataFrame, part: str) -> float:
    rows = table.query("part == @part")
    known = np.array([CLASSES.index(label) for label in rows["label"]])
    return balanced_accuracy(known, rows[[f"p {name}" for name in CLASSES]].to_numpy())


@pytest.mark.parametrize("part", ["val", "test"])
def test_scores_are_computed_within_a_fold_and_averaged_over_draws(part: str) -> None:
    tables = made_up()
    cells = cells_of(tables, part)
    assert [(c.arm, c.way, c.labels) for c in cells[:3]] == [("random", way, n) for way, n in WAYS]
    for one, row in zip(cells, curve_table(cells).to_dict("records"), strict=True):
        scores = [score_of(tables[f"{one.arm}-{one.way}-{one.labels}-{draw}"], part) for draw in range(6)]
        np.testing.assert_allclose(one.scores, scores)
        assert row["mean"] == pytest.approx(np.mean(scores)) and row["low"] < row["mean"] < row["high"]
        assert (row["draws"], row["starts"], row["folds"]) == (6, {"random": 6, "ours": 3}[one.arm], 3)
        assert (
            len(one.images.files) == {"val": 40, "test": 240}[part] and one.images.groups == len(one.images.files) / 4
        )
        times = dict(zip(one.images.files, one.images.weights[7], strict=True))  # the same for all draws of all folds
        for draw, score in enumerate(one.resampled[6]):
            table = tables[f"{one.arm}-{one.way}-{one.labels}-{draw}"]
            again = table.loc[table.index.repeat([times.get(file, 0) for file in table["file"]])]
            assert score == pytest.approx(score_of(again, part))


def test_findings_are_scored_within_a_fold_too() -> None:
    tables = made_up(of_findings)
    for one in cells_of(tables)[:2]:
        for draw, score in enumerate(one.scores):
            rows = tables[f"{one.arm}-{one.way}-{one.labels}-{draw}"].query("part == 'test'")
            pairs = [rows[[f"label {name}", f"p {name}"]].dropna().to_numpy().T for name in FINDINGS]
            assert score == pytest.approx(np.mean([roc_auc_score(*pair) for pair in pairs]))


def test_the_order_of_images_says_nothing() -> None:
    tables = made_up()
    runs = runs_of(tables)
    mixed = {name: table.sample(frac=1, random_state=i) for i, (name, table) in enumerate(tables.items())}
    mixed[next(iter(mixed))] = tables[next(iter(mixed))]  # the table that the others are put in order by
    want, found = (difference_table(cells_of(of, runs=runs)) for of in (tables, mixed))
    np.testing.assert_allclose(found["difference"], want["difference"])


def test_other_images_are_refused() -> None:
    tables = made_up()
    for wrong in (slice(0, 119), np.r_[np.arange(119), 118]):
        with pytest.raises(UserError, match="ours-zeros-90-4 predicts other images of fold 1"):
            cells_of(tables | {"ours-zeros-90-4": tables["ours-zeros-90-4"].iloc[wrong]}, runs=runs_of(tables))


def test_differences_are_of_headlines_and_of_each_way_that_both_have() -> None:
    tables = made_up()
    runs = runs_of(tables)
    runs["headline"] = [
        (arm, way) in {("random", "linear"), ("ours", "zeros")}
        for arm, way in zip(runs["arm"], runs["way"], strict=True)
    ]
    runs = runs.query("arm != 'ours' or draw != 5")
    cells = cells_of(tables, runs=runs)
    table = difference_table(cells)
    assert table.columns.tolist() == DIFFERENCE_COLUMNS
    assert table[["way", "labels"]].values.tolist() == [["headline", 20], *map(list, WAYS)]
    mean = {(c.arm, c.way, c.labels): c.scores[:5].mean() for c in cells}  # of draws that both have
    want = [mean["ours", "zeros", 20] - mean["random", "linear", 20]]
    want += [mean["ours", *way] - mean["random", *way] for way in WAYS]
    np.testing.assert_allclose(table["difference"], want)
    assert table.loc[0, ["arm_way", "reference_way"]].tolist() == ["zeros", "linear"]
    assert table["reference_needs"].notna().tolist() == [True, False, False, False]
    assert all(row["low"] < row["difference"] < row["high"] for row in table.to_dict("records"))
    apart = difference_table([cells[0], replace(cells[3], draws=((7, 7),) * 5)])
    assert np.isnan(apart["difference"]).all(), "no draw in common"


def test_draws_that_learn_from_the_same_labels_say_less_where_the_test_part_is_named() -> None:
    tables = {name: table.assign(fold=table["draw"] % 3) for name, table in made_up(folds=1).items()}
    cells = [one for one in cells_of(tables) if (one.arm, one.way) == ("ours", "zeros")]
    assert [one.labels for one in cells] == [20, 90]  # 90 are all, as far as the tables tell
    few, most = (in_common(replace(one, scores=np.linspace(0.3, 0.7, 6))).contrast([1]) for one in cells)
    assert most.mean == few.mean and most.high - most.low > 1.1 * (few.high - few.low)


def test_two_pretrainings_give_no_interval() -> None:
    tables = made_up(draws=4, folds=2)
    curves = curve_table(cells_of(tables))
    assert curves["low"].isna().tolist() == [False] * 3 + [True] * 3, "four random weights, two pretrainings"


def test_the_report_says_it_in_words() -> None:
    tables = made_up()
    summary = {"metric": "balanced_accuracy", "chance": 1 / 3, "part": "test", "target_score": 0.9}
    runs = runs_of(tables)
    runs["transductive"] = (runs["arm"] == "ours") & (runs["draw"] == 3)
    found, text, figure = report(cells_of(tables, runs=runs), {**summary, "synthetic": True})
    assert found["curves"].columns.tolist() == CURVE_COLUMNS
    assert isinstance(figure, Figure) and len(found["plateaus"]) == 0
    assert figure.get_suptitle() == "Label efficiency on the test part (synthetic): 240 X-rays, 3 folds"
    gap = found["differences"].iloc[0]
    assert f"20 labels, ours (transductive) - random by the main way (linear): {100 * gap['difference']:+.1f} [" in text
    assert "Label efficiency on the test part (synthetic): balanced accuracy, mean [95% interval over patients," in text
    assert "ours (transductive) scores as random does" in text, "the arm is marked, and not the comparison"
    assert set(found["curves"].query("transductive")["arm"]) == {"ours"}
    assert "draws; a difference" not in text
    assert text.endswith("Intervals are for new patients, new draws of labels and new pretrainings.")
    fewer = cells_of(tables, runs=runs.query("arm == 'random' or draw < 4"))
    text = report(fewer, {**summary, "synthetic": True})[1]
    assert "Means are of 4 to 6 draws; a difference is over those that both arms have." in text


def test_nothing_is_said_of_more_labels_than_the_reference_was_tried_with() -> None:
    tables = made_up()
    runs: Any = runs_of(tables)
    most = runs["labels"].max()
    runs = runs[(runs["arm"] == "ours") | (runs["labels"] < most)]
    tried = runs.loc[runs["arm"] == "random", "labels"].max()
    summary = {"metric": "balanced_accuracy", "chance": 1 / 3, "part": "test", "target_score": 0.9, "synthetic": True}
    text = report(cells_of(tables, runs=runs), summary)[1]
    assert f"more than {tried:,}" in text and f"more than {most:,}" not in text


def test_a_plateau_is_fitted_and_says_how_many_labels_a_score_needs() -> None:
    labels = np.array([16, 80, 160, 400, 1600])
    a, b, c = 0.85, 1.2, 0.5
    curve = [cell(n, a - b * n**-c) for n in labels]
    (row,) = plateau_table(curve, target=0.8).to_dict("records")
    assert row["a"] == pytest.approx(a, abs=0.01)
    assert row["needed"] == pytest.approx((b / 0.05) ** 2, rel=0.15)
    assert row["needed_low"] == pytest.approx(row["needed"]) == row["needed_high"], "all resamples are the same"
    (row,) = plateau_table(curve, target=0.9).to_dict("records")
    assert row["needed"] == np.inf
    (row,) = plateau_table(curve, target=0.845).to_dict("records")
    assert row["needed"] == np.inf, "the fit says 36 times the labels that were tried, which nobody can check"
    assert len(plateau_table(curve[:3], target=0.8)) == 0
    assert len(plateau_table([*curve[:3], cell(400, 0.7, headline=False)], target=0.8)) == 0
    two = [replace(one, starts=np.array([0, 1, 1])) for one in curve]
    assert np.isnan(plateau_table(two, target=0.8)[["a_low", "needed_high"]]).all(axis=None)
    flat = fit_plateau(labels.astype(float), np.full((1, 5), 0.6))
    np.testing.assert_allclose(flat[0, :2], [0.6, 0], atol=1e-9)
    beyond = fit_plateau(labels.astype(float), np.array([[0.5, 0.8, 0.9, 0.97, 1.0]]))
    assert beyond[0, 0] <= 1


def test_labels_for_a_score_that_was_reached_are_interpolated() -> None:
    labels, levels = [12, 60, 120, 1200], [0.3, 0.4, 0.5, 0.9]  # no power law
    curve = [cell(n, level) for n, level in zip(labels, levels, strict=True)]

    def row(target: float) -> dict[str, float]:
        return plateau_table(curve, target).to_dict("records")[0]

    assert row(0.7)["needed"] == pytest.approx((120 * 1200) ** 0.5) == row(0.7)["needed_low"]
    assert row(0.2)["needed"] == 0  # fewer than 12 were not tried
    fit = row(0.7)
    predicted = fit["a"] - fit["b"] * np.array(labels, dtype=float) ** -fit["c"]
    assert fit["misses"] == pytest.approx(np.abs(predicted - levels).max()) and fit["misses"] > MAX_MISS
    assert row(0.95)["needed"] == np.inf  # such a fit predicts nothing


def test_a_fit_does_not_say_that_labels_suffice_that_did_not() -> None:
    curve = [cell(n, 0.85 - 1.2 * n**-0.5 - 0.015 * (n == 400)) for n in (16, 80, 160, 400)]
    (row,) = plateau_table(curve, target=curve[-1].scores.mean() + 1e-3).to_dict("records")
    assert row["misses"] < MAX_MISS and row["needed"] == np.inf


def test_means_for_new_images_and_pretrainings_spread_as_the_interval_says() -> None:
    """Of the plateau's resamples, against the closed form of the same mean's interval."""
    generator = np.random.default_rng(0)
    scores, noise = generator.normal(0.6, 0.03, 20), generator.normal(0, 0.01, (4000, 1))
    draws = tuple((0, k) for k in range(20))
    one = replace(cell(20, 0.6), draws=draws, starts=np.arange(20), scores=scores, resampled=scores + noise)
    drawn = in_common(replace(one, images=one.images._replace(pool=float("inf"))))
    mean, low, high = drawn.contrast([1])
    np.testing.assert_allclose(np.quantile(drawn.means(), (0.025, 0.5, 0.975)), (low, mean, high), atol=0.0015)


def test_labels_saved_on_a_known_curve() -> None:
    curve = [cell(10, 0.5), cell(100, 0.7), cell(1000, 0.8)]
    needed = labels_needed(cell(10, 0.6), curve)
    assert needed["reference_needs"] == pytest.approx(10**1.5)  # half-way between 10 and 100 on the log scale
    assert needed["reference_needs_low"] == pytest.approx(10**1.5) == needed["reference_needs_high"]
    assert set(labels_needed(cell(10, 0.9), curve).values()) == {np.inf}
    assert set(labels_needed(cell(10, 0.4), curve).values()) == {0}
    np.testing.assert_allclose(list(labels_needed(cell(10, 0.5), curve).values()), 10)
    wide = replace(cell(10, 0.6), scores=np.array([0.5, 0.6, 0.7]))
    reach = 4.302653 * 0.1 / np.sqrt(3)  # Student's t with two degrees of freedom
    needed = labels_needed(wide, [*curve, cell(10000, 0.9)])
    assert needed["reference_needs_low"] == 0
    assert needed["reference_needs_high"] == pytest.approx(10 ** (3 + 10 * (0.6 + reach - 0.8)), rel=1e-3)
    row = {"labels": 10, **labels_needed(cell(10, 0.9), curve)}
    assert savings_sentence(row, "covid", "random", 10, 1000) == (
        "With 10 labels covid scores as random does with more than 1,000 labels, the most that were tried."
    )
    row = {"labels": 10, **labels_needed(cell(10, 0.4), curve)}
    assert savings_sentence(row, "covid", "random", 10, 1000).endswith(
        "fewer than 10 labels, the fewest that were tried."
    )
    two = [replace(one, starts=np.array([0, 1, 1])) for one in curve]
    unknown = labels_needed(cell(10, 0.6), two)
    assert unknown["reference_needs"] == pytest.approx(10**1.5) and np.isnan(unknown["reference_needs_low"])


def test_a_point_with_fewer_draws_takes_none_from_the_others() -> None:
    def drawn(labels: int, scores: list[float], first: int = 0) -> Cell:
        numbers, of_draws = np.arange(first, first + len(scores)), np.array(scores)
        draws, resampled = tuple(zip(numbers.tolist(), numbers.tolist(), strict=True)), np.tile(of_draws, (50, 1))
        return replace(cell(labels, 0), draws=draws, starts=numbers, scores=of_draws, resampled=resampled)

    ours = drawn(10, [0.49, 0.5, 0.51, 0.7, 0.8])
    curve = [drawn(10, [0.5] * 5), drawn(100, [0.7] * 5), drawn(1000, [0.8] * 3)]
    gap = in_common(ours, curve[0]).contrast([1, -1])
    assert gap.low < 0 < gap.mean
    needed = labels_needed(ours, curve)
    assert needed["reference_needs"] == pytest.approx(10**1.5)
    assert needed["reference_needs_low"] == 0, "with 10 labels the difference includes 0"
    apart = labels_needed(ours, [*curve[:2], drawn(1000, [0.8] * 3, first=5)])
    assert np.isnan(list(apart.values())).all(), "no draw in common"


SMALL = Design(images=1000, resamples=60)


@pytest.mark.parametrize(
    "design",
    [SMALL, replace(SMALL, luck=(0.005, 0.005, 0.06), gap=0.0), replace(SMALL, part="val", images=200)],
    ids=["folds", "pretrainings differ", "the same images"],
)
def test_intervals_hold_as_often_as_they_say(design: Design) -> None:
    found = coverage(design, repeats=120)
    assert min(found["difference"], found["score"]) >= 0.9  # of 1,500 repeats 95 to 97 % hold
    assert 0.9 <= found["width"] <= 1.4
    assert abs(found["bias"]) < 0.006


def test_labels_needed_hold_as_often_as_they_say() -> None:
    assert coverage_of_labels_needed(SMALL, repeats=60) >= 0.9


def the_20_lines() -> str:
    guide = (REPO_ROOT / "docs" / "GUIDE.md").read_text(encoding="utf-8")
    section = guide.partition("## Every number from the tables")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found, "the guide shows them"
    return found[1]


@pytest.mark.parametrize("make", [of_classes, of_findings])
def test_a_stranger_recomputes_the_curves_with_20_lines(
    make: Callable[..., pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, tables = the_20_lines(), made_up(make)
    assert len([line for line in lines.splitlines() if line]) <= 20
    assert set(re.findall(r"^(?:from|import) (\w+)", lines, re.MULTILINE)) <= {"pandas", "numpy", "sklearn", "pathlib"}
    for name, table in tables.items():
        folder = tmp_path / "runs" / "compare" / "covid" / name
        folder.mkdir(parents=True)
        table.to_csv(folder / "predictions.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, pd.DataFrame] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(lines, names)
    want = curve_table(cells_of(tables)).set_index(["arm", "way", "labels"])["mean"]
    np.testing.assert_allclose(names["means"].loc[want.index], want, rtol=0, atol=1e-12)
    assert "linear" in printed.getvalue()
