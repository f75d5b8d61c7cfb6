"""The report: its numbers are those of the runs' files, nothing is left unsaid, nothing is fetched."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_runs import ARMS, HEADLINES, Page, comparison, finished, one_of_each_kind, replace_in, report

COUNTS = {
    "images",
    "labels",
    "groups",
    "near-duplicate pairs",
    "train",
    "val",
    "test",
    "epochs",
    "runs",
    "X-rays",
}
COUNTS |= {"classes in a set", "empty sets", "files left out", "validation labels"}
FITTED = {"temperature, fitted on validation", "temperature"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind; only read by the tests."""
    root = tmp_path_factory.mktemp("report") / "runs"
    one_of_each_kind(root)
    return root


@pytest.fixture(scope="module")
def written(runs: Path, script: Any) -> tuple[Page, str]:
    """The report of a run of each kind."""
    return report(script, runs)


@pytest.fixture
def page(written: tuple[Page, str]) -> Page:
    return written[0]


def test_every_kind_of_run_is_shown_and_none_is_skipped(page: Page) -> None:
    assert "No skipped folders" in page.text
    assert "No older or foreign folders" in page.text
    assert "Folders skipped: 0." in page.text
    alts = " ".join(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    assert "100 epochs" in " ".join(page.captions)
    for words in (
        "It needs them.",
        "lr 0.001",
        "b failed: the disk was full",
        "odd failed: no such layer",
        "0.8 is that of",
    ):
        assert words in page.text
    for words in ("covid-b has no images of Normal", "0.910 [0.800, 0.970]", "few images", "Youden", "+0.200", "1.25"):
        assert words in page.text
    for words in ("Label efficiency", "trained", "Confusion matrix", "range test", "audit/a", "rank"):
        assert words.lower() in (alts + page.text).lower()
    assert "missing" not in [value for _, name, value in page.attributes if name == "class"]


def test_the_numbers_are_those_of_the_files(runs: Path, page: Page) -> None:
    curves = pd.read_csv(runs / "compare/a/curves.csv").set_index(["way", "labels", "arm"])
    rows = page.table("compare/a: balanced accuracy on the validation part")
    assert len(rows) == 2 + 4, "the headline ways come first"
    names = {"linear probe": "linear", "fine-tuning from the probe": "probe"}
    for n, (way, labels, *cells) in enumerate(rows):
        own = HEADLINES[int(labels[0])] if n < 2 else names[way[0]]
        assert (way[0] == "headline way") == (n < 2)
        for arm, (text, *numbers) in zip(ARMS, cells, strict=True):
            expected = curves.loc[(own, int(labels[0]), arm), ["mean", "low", "high"]]  # type: ignore[index]
            assert numbers == expected.tolist()
            assert text == "{:.3f} [{:.3f}, {:.3f}]".format(*expected)
    gaps = pd.read_csv(runs / "compare/a/differences.csv")
    rows = page.table("differences of balanced accuracy")
    assert "new draws of labels and new pretrainings" in " ".join(page.captions)
    for row, gap in zip(rows, gaps.to_dict("records"), strict=True):
        assert row[3][1:] == tuple(100 * gap[key] for key in ("difference", "low", "high"))
        saved = "random does with 50 labels (95% interval fewer than 20 to more than 187)"
        assert (saved in row[4][0]) == (row[0][0] == "headline way")


def test_what_a_table_says_is_what_its_run_found(page: Page) -> None:
    def texts(words: str) -> list[list[str]]:
        return [[cell[0] for cell in row] for row in page.table(words)]

    assert texts("frozen/a") == [["fc", "random", "9", "0.500 [0.400, 0.600]"]]
    row = texts("Pretrainings")[0]
    assert row[3:8] == ["90 → 12", "188 → 252", "0.560 → 0.600", "0.500 → 0.620", "AUROC, chance 0.50"]
    assert [row[:3] for row in texts("scans/t")] == [["best", "0.700", "0.400"], ["1", "0.500", "0.600"]]
    assert [row[-1] for row in texts("resources/a")] == ["network", "out of memory", "failed"]
    assert texts("labels of split")[0] == ["COVID", "1", "1"]


def test_every_number_has_an_interval_or_says_one_run(page: Page) -> None:
    seen = 0
    for caption, (heads, *rows) in zip(page.captions, page.tables, strict=True):
        for row in rows:
            for (head, *_), (text, value, low, high) in zip(heads, row, strict=True):
                if value is None or head in COUNTS | FITTED or "labels of split" in caption:
                    continue
                seen += 1
                says = "one run" in caption or "too few for an interval" in text
                assert says or (low is not None and high is not None and low <= value <= high), (caption, head, text)
    assert seen > 30


def test_the_page_asks_the_network_for_nothing(written: tuple[Page, str]) -> None:
    page, text = written
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "poster", "action", "data"):
            assert value.startswith("data:image/png;base64,"), (tag, name, value[:40])
        if name == "href":
            assert value.startswith("#"), value
    assert not {tag for tag, _, _ in page.attributes} & {"link", "iframe", "object", "embed", "base"}
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert all(value for tag, name, value in page.attributes if tag == "img" and name == "alt")
    anchors = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} == anchors


def test_numbers_of_synthetic_xrays_say_so_wherever_they_stand(runs: Path, tmp_path: Path, script: Any) -> None:
    copied = shutil.copytree(runs, tmp_path / "runs")
    for path in [*copied.rglob("summary.json"), *copied.rglob("environment.json")]:
        replace_in(path, '"synthetic": false', '"synthetic": true')
    page, _ = report(script, copied)
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt") and "/" in value]
    in_rows = ("Pretrainings", "Splits", "Each network", "Predictions")
    captions = [caption for caption in page.captions if not caption.startswith(in_rows) and " runs " not in caption]
    assert len(captions) > 10
    for words in [*alts, *captions]:
        assert "(synthetic)" in words
    for words in in_rows:
        assert all("synthetic" in " ".join(cell[0] for cell in row) for row in page.table(words))


def test_a_comparison_whose_test_rows_are_not_scored_says_what_scores_them(tmp_path: Path, script: Any) -> None:
    finished(tmp_path, "compare/a", "comparison", {}, {"synthetic": False, "metric": "auroc"})
    page, _ = report(script, tmp_path)
    assert page.text.count("compare/a: confusion_matrix.py scores its test rows.") == 2


def test_runs_of_the_earlier_protocol_are_named_and_not_shown(tmp_path: Path, script: Any) -> None:
    comparison(tmp_path, "compare/a")
    before = {"synthetic": False, "metric": "auroc"}
    finished(tmp_path, "compare/b", "comparison", {}, before, patience=6, fractions=[0.1])
    finished(tmp_path, "test/compare/b/all", "test comparison", {}, before)
    finished(tmp_path, "test/compare/b/x", "test", {}, {**before, "temperature": 1.0})
    page, _ = report(script, tmp_path)
    rows = page.table("Older or foreign folders: 3")
    assert {row[0][0] for row in rows} == {"compare/b", "test/compare/b/all", "test/compare/b/x"}
    assert all("earlier protocol: the validation part chose steps and settings" in row[1][0] for row in rows)
    assert "compare/a is better" not in page.text and "pretrained is better than random" in page.text


def test_a_single_draw_and_a_network_that_saw_too_much_say_so(tmp_path: Path, script: Any) -> None:
    run = comparison(tmp_path, "compare/a")
    for name in ("curves", "differences"):
        table = pd.read_csv(run.folder / f"{name}.csv")
        run.save_table(name, table.assign(low=np.nan, high=np.nan))
    run.save_json("summary", {**run.summary, "transductive": True, "notes": ["it has seen 3 images"]})  # type: ignore[dict-item]
    page, _ = report(script, tmp_path)
    assert "compare/a (transductive), the validation part" in page.text
    assert "it has seen 3 images" in page.text
    assert "Not known: no intervals." in page.text and "of 0 numbers of labels" not in page.text
    assert "with 95% intervals for" not in " ".join(page.captions)
    assert "linear probe" in page.text
    assert page.text.count("(too few for an interval)") >= 18
    assert "nan" not in page.text


@pytest.mark.parametrize(
    ("arm", "reference", "gaps", "lead"),
    [
        ("pretrained", "random", [0.1, 0.2, 0.3, 0.4], "Yes."),
        ("random", "pretrained", [-0.1, -0.2, -0.3, -0.4], "Yes."),
        ("pretrained", "random", [-0.1, -0.2, -0.3, 0.01], "It hurts."),
        ("pretrained", "random", [0.1, -0.1, 0.0, 0.0], "Mixed."),
        ("pretrained", "random", [0.1, 0.0, 0.0, 0.01], "Yes, in part."),
        ("pretrained", "random", [0.0, 0.01, -0.01, 0.0], "Not shown."),
        ("pretrained", "random", [0.1, 0.0, 0.1, 0.0], "Yes, in part."),
        ("imagenet", "random", [0.1, 0.1, 0.1, 0.1], "imagenet, random:"),
    ],
)
def test_the_answer_counts_headlines_alone_whatever_the_order_of_the_arms(
    tmp_path: Path, script: Any, arm: str, reference: str, gaps: list[float], lead: str
) -> None:
    run = comparison(tmp_path, "compare/a")
    others = [-5 * gaps[0]] * 4  # of each way, which do not count
    rows = [("headline", n, gap) for n, gap in zip((20, 93, 187, 1682), gaps, strict=True)]
    rows += [("linear", n, gap) for n, gap in zip((20, 93, 187, 1682), others, strict=True)]
    table = pd.DataFrame(rows, columns=["way", "labels", "difference"]).assign(arm=arm, reference=reference)
    table = table.assign(low=table["difference"] - 0.05, high=table["difference"] + 0.05)
    needs = ("reference_needs", "reference_needs_low", "reference_needs_high")
    run.save_table("differences", table.assign(**dict.fromkeys(needs, 50.0)))
    page, text = report(script, tmp_path)
    assert re.findall(r"<strong>(.*?)</strong>", text) == [lead]
    assert "of 4 numbers of labels" in page.text
    first, last = (100 * abs(gaps[n]) if reference == "pretrained" else 100 * gaps[n] for n in (0, -1))
    assert f"with 20 labels {first:+.1f} [" in page.text and f"with 1,682 labels {last:+.1f} [" in page.text
