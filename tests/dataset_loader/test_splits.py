"""Splits by patient: whole groups, each stratum's share, nothing but names and the seed."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_loader.columns import Columns
from dataset_loader.splits import (
    PARTS,
    complete_split,
    label_subset,
    split_by_group,
    split_hash,
    strata_of,
    write_split,
)
from utils.config import UserError

SHARES = (0.8, 0.1, 0.1)


def make_images(sizes: list[int], strata_count: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths, groups and strata; group g has sizes[g] images, all of stratum g % strata_count."""
    groups = np.repeat([f"patient{group:05d}" for group in range(len(sizes))], sizes)
    paths = np.array([f"{group}/view{row}.jpg" for row, group in enumerate(groups)])
    return paths, groups, np.repeat(np.arange(len(sizes)) % strata_count, sizes)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=120), st.integers(0, 10**6), st.integers(1, 5))
def test_groups_stay_whole_and_parts_get_their_share(sizes: list[int], seed: int, strata_count: int):
    paths, groups, strata = make_images(sizes, strata_count)
    parts = split_by_group(paths, groups, strata, seed)
    assert set(parts) <= set(PARTS)
    assert all(len(set(parts[groups == group])) == 1 for group in groups)
    for stratum in np.unique(strata):
        members = strata == stratum
        largest = np.bincount(np.unique(groups[members], return_inverse=True)[1]).max()
        for part, share in zip(PARTS, SHARES, strict=True):
            assert (parts[members] == part).sum() - share * members.sum() < largest


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 10**6))
def test_single_images_come_within_one_of_each_share(stratum_sizes: list[int], seed: int):
    paths, groups, _ = make_images([1] * sum(stratum_sizes))
    strata = np.repeat(np.arange(len(stratum_sizes)), stratum_sizes)
    parts = split_by_group(paths, groups, strata, seed)
    for stratum, size in enumerate(stratum_sizes):
        for part, share in zip(PARTS, SHARES, strict=True):
            assert abs((parts[strata == stratum] == part).sum() - share * size) < 1 - 1e-9


def test_single_images_get_their_share_of_each_stratum_to_within_one_and_of_all_of_them():
    paths, groups, strata = make_images([1] * 1500, strata_count=300)  # five images each: .5 for val and test
    parts = split_by_group(paths, groups, strata, seed=73)
    for part, share in zip(PARTS, SHARES, strict=True):
        counts = np.array([(parts[strata == stratum] == part).sum() for stratum in range(300)])
        assert np.abs(counts - share * 5).max() < 1
        assert counts.sum() == pytest.approx(share * 1500, abs=2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(sizes: list[int], random):
    paths, groups, strata = make_images(sizes)
    order = list(range(len(paths)))
    random.shuffle(order)
    shuffled = split_by_group(paths[order], groups[order], strata[order], seed=73)
    parts = split_by_group(paths, groups, strata, seed=73)
    assert (shuffled == parts[order]).all()
    assert split_hash(paths[order], shuffled) == split_hash(paths, parts)


def test_a_seed_gives_the_same_split_on_every_machine():
    paths, groups, strata = make_images([1, 2, 3] * 40)
    hashes = {seed: split_hash(paths, split_by_group(paths, groups, strata, seed)) for seed in (1, 73)}
    assert hashes == {1: "fd4b79762ff6491b", 73: "17afa71a1470d71d"}


def test_patients_with_many_images_are_not_all_in_one_part():
    sizes = [1 + 5 * (group % 4 == 0) for group in range(4000)]
    paths, groups, strata = make_images(sizes)
    parts = split_by_group(paths, groups, strata, seed=73)
    size_of = dict(zip(*np.unique(groups, return_counts=True), strict=True))
    for part in PARTS:
        members = sorted(set(groups[parts == part]))
        assert np.mean([size_of[group] for group in members]) == pytest.approx(np.mean(sizes), rel=0.1)


def test_a_groups_stratum_is_the_most_frequent_of_its_images():
    # Nine of ten images of each patient are of stratum g % 2, the tenth of stratum 2, which no patient is of.
    paths, groups, strata = make_images([10] * 200, strata_count=2)
    strata[::10] = 2
    parts = split_by_group(paths, groups, strata, seed=73)
    for stratum in (0, 1):
        of_stratum = strata == stratum
        assert (parts[of_stratum] == "val").mean() == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize(
    ("shares", "message"), [((0.8, 0.1, 0.2), "sum"), ((1.2, -0.1, -0.1), "shares"), ((0.5, 0.5), "shares")]
)
def test_wrong_shares_are_refused(shares: tuple[float, ...], message: str):
    with pytest.raises(ValueError, match=message):
        split_by_group(*make_images([1] * 9), seed=1, shares=shares)


def test_a_path_listed_twice_is_refused():
    paths, groups, strata = make_images([1] * 9)
    paths[1] = paths[0]
    with pytest.raises(ValueError, match="once"):
        split_by_group(paths, groups, strata, seed=1)


def test_strata_of_classes_are_the_classes():
    assert strata_of(np.array([2, 0, 1])).tolist() == [2, 0, 1]


def test_strata_of_findings_are_the_rarest_positive_ones():
    nan = np.nan
    findings = np.array([[1, nan, nan], [1, 1, 0], [1, nan, 1], [1, 1, 1], [nan, -1, 0], [0, 1, nan]], dtype=np.float32)
    assert strata_of(findings).tolist() == [1, 2, 3, 3, 0, 2]  # positives: 4, 3, 2


def make_columns(labels: np.ndarray, names: tuple[str, ...]) -> Columns:
    paths, groups, _ = make_images([1] * len(labels))
    masks = np.full(len(labels), None, dtype=object)
    official, details = np.full(len(labels), ""), pd.DataFrame(index=range(len(labels)))
    return Columns(Path("x"), paths, labels, names, groups, masks, official, details)


def test_a_split_is_read_back_as_written(tmp_path: Path):
    nan = np.nan
    findings = np.array([[1, -1], [nan, 0], [nan, nan]], dtype=np.float32)
    columns = make_columns(findings, ("Edema", "Cardiomegaly"))
    write_split(tmp_path / "split.csv", columns, np.array(["train", "val", "test"]))
    table = pd.read_csv(tmp_path / "split.csv", keep_default_na=False)
    assert table["file"].tolist() == columns.paths.tolist()
    assert table["group"].tolist() == columns.groups.tolist()
    assert table["part"].tolist() == ["train", "val", "test"]
    assert table["label"].tolist() == ["Edema=1;Cardiomegaly=-1", "Cardiomegaly=0", ""]


def test_class_labels_are_written_by_name(tmp_path: Path):
    columns = make_columns(np.array([1, 0]), ("NA", 'Normal, "or" not'))
    write_split(tmp_path / "split.csv", columns, np.array(["train", "val"]))
    assert pd.read_csv(tmp_path / "split.csv", keep_default_na=False)["label"].tolist() == ['Normal, "or" not', "NA"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 50), st.integers(0, 10**6))
def test_label_subsets_are_nested_stratified_and_reproducible(counts: list[int], draw: int, seed: int):
    strata = np.repeat(np.arange(len(counts)), counts)
    paths = np.array([f"{row}.png" for row in range(len(strata))])
    fractions = (0.01, 0.05, 0.1, 0.5, 1.0)
    subsets = [label_subset(paths, strata, fraction, draw, seed) for fraction in fractions]
    for smaller, larger in itertools.pairwise(subsets):
        assert set(smaller) <= set(larger)
    for fraction, subset in zip(fractions, subsets, strict=True):
        expected = [max(1, round(fraction * count)) for count in counts]
        assert np.bincount(strata[subset], minlength=len(counts)).tolist() == expected
    order = np.random.default_rng(seed).permutation(len(paths))
    again = label_subset(paths[order], strata[order], 0.5, draw, seed)
    assert set(paths[order][again]) == set(paths[subsets[3]])


def test_draws_differ_and_impossible_fractions_are_refused():
    paths, strata = np.array([f"{row}.png" for row in range(100)]), np.zeros(100, dtype=int)
    draws = [tuple(label_subset(paths, strata, 0.1, draw, seed=0)) for draw in range(3)]
    assert len(set(draws)) == 3
    for fraction in (0.0, -1.0, 1.5):
        with pytest.raises(UserError, match="label fraction"):
            label_subset(paths, strata, fraction, 0, 0)


def official_columns(official: list[str], groups: list[str] | None = None) -> Columns:
    columns = make_columns(np.array([0, 1] * (len(official) // 2)), ("a", "b"))
    return replace(columns, official=np.array(official), groups=np.array(groups) if groups else columns.groups)


def test_without_official_parts_the_split_is_the_drawn_one():
    columns = official_columns([""] * 200)
    drawn = split_by_group(columns.paths, columns.groups, columns.labels, 3)
    assert complete_split(columns, 3).tolist() == drawn.tolist()


@pytest.mark.parametrize(
    ("official", "counts"),
    [
        (["train"] * 60 + ["val"] * 20 + ["test"] * 20, {"train": 60, "val": 20, "test": 20}),
        (["test"] * 10 + [""] * 90, {"train": 80, "val": 10, "test": 10}),  # as the NIH's list
        (["test"] * 10 + ["train"] * 90, {"train": 80, "val": 10, "test": 10}),
        (["val"] * 10 + [""] * 90, {"train": 80, "val": 10, "test": 10}),
        (["train"] * 50 + ["val"] * 20 + ["test"] * 20 + [""] * 10, {"train": 60, "val": 20, "test": 20}),
    ],
)
def test_official_parts_are_kept_and_the_others_drawn(official: list[str], counts: dict[str, int]):
    parts = complete_split(official_columns(official), seed=0)
    named = np.array(official)
    for part in ("val", "test"):
        assert (parts[named == part] == part).all()
    assert {part: int((parts == part).sum()) for part in counts} == counts


def test_images_of_an_official_group_go_to_its_part():
    parts = complete_split(official_columns(["test", "", "", ""] * 10, ["p", "p", "q", "r"] + list("abcdefghi") * 4), 0)
    assert parts[:2].tolist() == ["test", "test"]


def test_without_labels_all_is_the_train_part():
    columns = make_columns(np.empty((5, 0), dtype=np.float32), ())
    assert complete_split(columns, 0).tolist() == ["train"] * 5
