"""Splits by patient: whole groups, each stratum's share, nothing but names and the seed; folds; nested subsets."""

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_loader.columns import Columns
from dataset_loader.splits import (
    FOLD_NAMES,
    FOLDS,
    label_subset,
    parts_of,
    places_of,
    split_by_group,
    split_hash,
    strata_of,
    write_split,
)
from utils.config import UserError

SHARES = [0.18] * FOLDS + [0.1]  # five folds and validation
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=120)  # images of each group
STRATA = st.lists(st.integers(1, 25), min_size=1, max_size=5)  # images of each stratum


def make_images(sizes: list[int], strata_count: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths, groups and strata; group g has sizes[g] images, all of stratum g % strata_count."""
    groups = np.repeat([f"patient{group:05d}" for group in range(len(sizes))], sizes)
    paths = np.array([f"{group}/view{row}.jpg" for row, group in enumerate(groups)])
    return paths, groups, np.repeat(np.arange(len(sizes)) % strata_count, sizes)


def make_columns(labels: np.ndarray, names: tuple[str, ...], sizes: list[int] | None = None) -> Columns:
    paths, groups, _ = make_images(sizes or [1] * len(labels))
    masks = np.full(len(labels), None, dtype=object)
    named, details = np.full(len(labels), ""), pd.DataFrame(index=range(len(labels)))
    return Columns(Path("x"), paths, labels, names, groups, masks, named, details)


def drawn_columns(sizes: list[int], strata_count: int = 3) -> Columns:
    """Images of three classes, or so many; all of a group are of one."""
    strata = make_images(sizes, strata_count)[2]
    return make_columns(strata, tuple("abcdefgh"[:strata_count]), sizes)


@given(SIZES, st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.0, 0.1, 0.25]))
def test_groups_stay_whole_and_each_fold_has_its_share_to_within_one_group(
    sizes: list[int], seed: int, strata_count: int, val_share: float
) -> None:
    columns = drawn_columns(sizes, strata_count)
    places, groups = places_of(columns, seed, val_share), columns.groups
    assert set(places) <= {*FOLD_NAMES, "val"}
    assert all(len(set(places[groups == group])) == 1 for group in groups)
    shares = {"val": val_share, **dict.fromkeys(FOLD_NAMES, (1 - val_share) / FOLDS)}
    for stratum in np.unique(columns.labels):
        members = columns.labels == stratum
        largest = np.unique(groups[members], return_counts=True)[1].max()
        for place, share in shares.items():
            assert (places[members] == place).sum() - share * members.sum() < largest


def test_the_rounding_of_many_small_strata_evens_out() -> None:
    _, groups, strata = make_images([1] * 1500, strata_count=300)  # five images each
    sets = split_by_group(groups, strata, 73, SHARES)
    for number, share in enumerate(SHARES):
        counts = np.array([(sets[strata == stratum] == number).sum() for stratum in range(300)])
        assert np.abs(counts - share * 5).max() < 1
        assert counts.sum() == pytest.approx(share * 1500, abs=2)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(sizes: list[int], random) -> None:
    columns = drawn_columns(sizes)
    order = np.array(random.sample(range(len(columns)), len(columns)))
    places, shuffled = places_of(columns, 73), places_of(columns.take(order), 73)
    assert (shuffled == places[order]).all()
    assert split_hash(columns.paths[order], parts_of(shuffled, 2)) == split_hash(columns.paths, parts_of(places, 2))


def test_a_seed_gives_the_same_folds_on_every_machine() -> None:
    columns = drawn_columns([1, 2, 3] * 40)
    hashes = {seed: split_hash(columns.paths, places_of(columns, seed)) for seed in (1, 73)}
    assert hashes == {1: "2c927331ec0671a7", 73: "0f4a4781216e3e86"}


def test_patients_with_many_images_are_not_all_in_one_fold() -> None:
    sizes = [1 + 5 * (group % 4 == 0) for group in range(4000)]
    columns = drawn_columns(sizes)
    places = places_of(columns, seed=73)
    size_of = dict(zip(*np.unique(columns.groups, return_counts=True), strict=True))
    for place in (*FOLD_NAMES, "val"):
        members = sorted(set(columns.groups[places == place]))
        assert np.mean([size_of[group] for group in members]) == pytest.approx(np.mean(sizes), rel=0.1)


def test_a_groups_stratum_is_the_most_frequent_of_its_images() -> None:
    # Nine of ten images of each patient are of class g % 2, the tenth of class 2, which no patient is of.
    columns = drawn_columns([10] * 200, strata_count=2)
    columns.labels[::10] = 2
    places = places_of(columns, seed=73)
    for label in (0, 1):
        of_class = columns.labels == label
        assert (places[of_class] == "val").mean() == pytest.approx(0.1, abs=1e-9)
        assert {(places[of_class] == fold).sum() for fold in FOLD_NAMES} == {18 * 9}


def test_strata_of_findings_are_the_rarest_positive_ones() -> None:
    nan = np.nan
    findings = np.array([[1, nan, nan], [1, 1, 0], [1, nan, 1], [1, 1, 1], [nan, -1, 0], [0, 1, nan]], dtype=np.float32)
    assert strata_of(findings).tolist() == [1, 2, 3, 3, 0, 2]  # positives: 4, 3, 2


def test_folds_of_findings_have_their_share_of_the_rarest() -> None:
    findings = np.zeros((600, 3), dtype=np.float32)
    findings[:300, 0], findings[::6, 1], findings[::12, 2] = 1, 1, 1
    places = places_of(make_columns(findings, ("a", "b", "c")), seed=0)
    assert sorted((findings[places == fold, 2] == 1).sum() for fold in FOLD_NAMES) == [9] * FOLDS
    assert (findings[places == "val", 2] == 1).sum() == 5


@pytest.mark.parametrize(
    ("labels", "names", "written"),
    [
        (
            np.array([[1, -1], [np.nan, 0], [np.nan, np.nan], [0, 0]]),
            ("Edema", "Cardiomegaly"),
            ["Edema=1;Cardiomegaly=-1", "Cardiomegaly=0", "", "Edema=0;Cardiomegaly=0"],
        ),
        (np.array([1, 0, 1, 0]), ("NA", 'Normal, "or" not'), ['Normal, "or" not', "NA"] * 2),
    ],
)
def test_a_split_is_read_back_as_written(tmp_path: Path, labels: np.ndarray, names: Any, written: list[str]) -> None:
    columns = make_columns(labels, names)
    write_split(tmp_path / "split.csv", columns, np.array(["train", "val", "3", "0"]), fold=3)
    table = pd.read_csv(tmp_path / "split.csv", keep_default_na=False)
    assert list(table) == ["file", "label", "group", "part", "fold"]
    assert table["file"].tolist() == columns.paths.tolist()
    assert table["group"].tolist() == columns.groups.tolist()
    assert table["part"].tolist() == ["train", "val", "test", "train"]
    assert table["fold"].astype(str).tolist() == ["", "", "3", "0"]
    assert table["label"].tolist() == written


def strata_and_paths(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Strata of such sizes, [N], and the paths of their images."""
    strata = np.repeat(np.arange(len(sizes)), sizes)
    return strata, np.array([f"{row}.png" for row in range(len(strata))])


@settings(max_examples=30)
@given(STRATA, st.integers(0, 50), st.integers(0, 10**6))
def test_label_subsets_are_nested_and_take_turns_by_sainte_lague(sizes: list[int], draw: int, seed: int) -> None:
    """One image of each stratum; each further label goes to a stratum with the largest n / (2 k + 1), in fractions."""
    strata, paths = strata_and_paths(sizes)
    counts = range(len(sizes), len(strata) + 1)
    subsets = [label_subset(paths, strata, count, draw, seed) for count in counts]
    for count, subset in zip(counts, subsets, strict=True):
        assert len(subset) == count and (np.diff(subset) > 0).all()
    assert strata[subsets[0]].tolist() == list(range(len(sizes)))
    for smaller, larger in itertools.pairwise(subsets):
        (new,) = set(larger) - set(smaller)
        assert set(smaller) < set(larger)
        taken = np.bincount(strata[smaller], minlength=len(sizes)).tolist()
        claims = [Fraction(n, 2 * k + 1) if k < n else Fraction(0) for n, k in zip(sizes, taken, strict=True)]
        assert claims[strata[new]] == max(claims)


@given(STRATA, st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter_to_a_label_subset(sizes: list[int], random) -> None:
    strata, paths = strata_and_paths(sizes)
    order, count = np.array(random.sample(range(len(paths)), len(paths))), random.randint(len(sizes), len(paths))
    subset = label_subset(paths, strata, count, 1, 2)
    assert set(paths[order][label_subset(paths[order], strata[order], count, 1, 2)]) == set(paths[subset])


def test_draws_and_seeds_differ_and_impossible_numbers_are_refused() -> None:
    strata, paths = strata_and_paths([25] * 4)
    drawn = {tuple(label_subset(paths, strata, 10, draw, seed)) for draw in range(5) for seed in range(2)}
    assert len(drawn) == 10
    assert label_subset(paths, strata, 100, 0, 0).tolist() == list(range(100))
    for count in (0, 3, 101):
        with pytest.raises(UserError, match=f"{count} labels are asked for; there are 100 .* 4 classes"):
            label_subset(paths, strata, count, 0, 0)


def named_columns(named: list[str], groups: list[str] | None = None) -> Columns:
    columns = make_columns(np.array([0, 1] * (len(named) // 2)), ("a", "b"))
    return replace(columns, named_parts=np.array(named), groups=np.array(groups) if groups else columns.groups)


@pytest.mark.parametrize(
    ("named", "counts"),
    [
        (["train"] * 60 + ["val"] * 20 + ["test"] * 20, {"train": 60, "val": 20, "test": 20}),
        (["test"] * 10 + [""] * 90, {"train": 81, "val": 9, "test": 10}),  # as the NIH's list
        (["test"] * 10 + ["train"] * 90, {"train": 81, "val": 9, "test": 10}),
        (["train"] * 50 + ["val"] * 20 + ["test"] * 20 + [""] * 10, {"train": 60, "val": 20, "test": 20}),
    ],
)
def test_a_named_test_part_stays_and_folds_change_nothing(named: list[str], counts: dict[str, int]) -> None:
    columns = named_columns(named)
    places = places_of(columns, seed=0)
    for fold in range(FOLDS):
        assert (parts_of(places, fold) == places).all()
    for part in ("val", "test"):
        assert (places[columns.named_parts == part] == part).all()
    assert {part: int((places == part).sum()) for part in counts} == counts


@pytest.mark.parametrize("named", [["val"] * 10 + [""] * 90, ["val"] * 10 + ["train"] * 90])
def test_a_named_validation_part_stays_and_the_others_are_folds(named: list[str]) -> None:
    places = places_of(named_columns(named), seed=0)
    assert (places[:10] == "val").all()
    assert sorted((places == fold).sum() for fold in FOLD_NAMES) == [18] * FOLDS


def test_images_of_a_named_group_go_to_its_part() -> None:
    groups = ["p", "p", "q", "r"] + list("abcdefghi") * 4
    places = places_of(named_columns(["test", "", "", ""] * 10, groups), 0)
    assert places[:2].tolist() == ["test", "test"]
    assert all(len(set(places[np.array(groups) == group])) == 1 for group in groups)


@given(SIZES, st.integers(0, 100))
def test_kept_places_stay_and_new_images_even_the_shares_out(sizes: list[int], seed: int) -> None:
    columns = drawn_columns(sizes)
    before = places_of(columns, seed)
    known = np.isin(columns.groups, np.unique(columns.groups)[::2])
    after = places_of(columns, seed + 1, kept=np.where(known, before, ""))
    assert (after[known] == before[known]).all()
    for label, (place, share) in itertools.product(range(3), zip([*FOLD_NAMES, "val"], SHARES, strict=True)):
        members = columns.labels == label
        if (~known & members & (after == place)).any():  # what has its share already gets no new ones
            largest = np.unique(columns.groups[members], return_counts=True)[1].max()
            assert (after[members] == place).sum() - share * members.sum() < largest
