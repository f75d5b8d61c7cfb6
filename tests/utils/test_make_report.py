"""The report: the answer first, its numbers those of the runs' files, nothing left unsaid, nothing fetched."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pandas as pd
import pytest
from report_runs import ARMS, HEADLINES, Page, comparison, finished, pretraining, replace_in, report
from report_runs import runs_of_several_kinds as write_runs
from test_house import is_entry_script, sources

from utils.config import REPO_ROOT
from utils.logging_utils import Run
from utils.report.answer import verdict
from utils.report.sections import SECTIONS

HOSTILE = """<img src=x onerror=alert(1)> "q" & 'r' $x$ {y}"""
NO_RUNS = {  # a folder's only file, its bytes, and a word of the reason why it is not shown
    "no json": ("environment.json", b"{", "cannot be read"),
    "list": ("environment.json", b"[1]", "not a JSON object"),
    "bytes": ("environment.json", b"\xff\xfe{}", "cannot be read"),
    "lost": ("config.json", b"{}", "no environment.json"),
    "another program's": ("metrics.csv", b"a,b\n1,2\n", "no environment.json"),
    "never started": ("error.txt", b"the data are gone", "failed: the data are gone"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of several kinds; only read by the tests."""
    root = tmp_path_factory.mktemp("report") / "runs"
    write_runs(root)
    return root


@pytest.fixture(scope="module")
def page(runs: Path, script: Any) -> Page:
    """Their report."""
    return report(script, runs)


def test_the_answer_stands_first_with_what_speaks_against_it(page: Page) -> None:
    answer = page.text[page.text.index("Does pretraining help") : page.text.index("Which layers need training")]
    said = "pretrained against random: with 20 labels pretrained saves about 30 labels [0 to more than 167];"
    assert f"compare/a, validation: {said}" in answer
    assert "compare/a/x (real) loses 0.200 [0.100, 0.300] of its AUROC on covid-b: 0.800 [0.700, 0.900]" in answer
    assert "a new head gets AUROC 0.300 [0.250, 0.350] from the border" in answer


def test_the_numbers_are_those_of_the_files(runs: Path, page: Page) -> None:
    curves = pd.read_csv(runs / "compare/a/curves.csv").set_index(["way", "labels", "arm"])
    gaps = pd.read_csv(runs / "compare/a/differences.csv").set_index(["way", "labels"])
    names = {"main way": "headline", "linear probe": "linear", "fine-tuning from the probe": "probe"}
    rows = page.table("compare/a, main ways") + page.table("compare/a, each way")
    assert len(rows) == 2 + 4
    for way, labels, *cells, gap in [row[: 3 + len(ARMS)] for row in rows]:
        own = HEADLINES[int(labels)] if way == "main way" else names[way]
        for arm, cell in zip(ARMS, cells, strict=True):
            expected = curves.loc[(own, int(labels), arm), ["mean", "low", "high"]]  # type: ignore[index]
            assert cell == "{:.3f} [{:.3f}, {:.3f}]".format(*expected)
        points = 100 * gaps.loc[(names[way], int(labels)), ["difference", "low", "high"]]  # type: ignore[index]
        assert gap == "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points)
    assert rows[0][-1] == "50 labels (95% interval fewer than 20 to more than 187)"
    assert page.heads("compare/a, main ways")[-2] == "pretrained minus random, points"


def test_what_a_table_says_is_what_its_run_found(page: Page) -> None:
    assert "Folders skipped: 0." in page.text and "the disk was full" in page.text
    assert page.table("frozen/a") == [["fc", "random", "9", "0.500 [0.400, 0.600]"]]
    row = page.table("Pretrainings")[0]
    assert row[1:5] == ["80", "3", "90 → 12", "188 → 252"] and row[-4:-2] == ["0.560 → 0.600", "0.500 → 0.620"]
    means = ["0.500", "0.010", "like the start", "0.600", "0.030"]
    assert page.table("scans/t: AUROC on validation, mean")[1] == ["two", "3", *means]
    assert [row[0] for row in page.table("scans/t: AUROC on validation (one run")] == ["best", "1", "b"]
    assert page.table("labels of split")[0] == ["COVID", "1", "1"]
    assert page.table("Another hospital")[0][-2:] == ["0.200 [0.100, 0.300]", "Normal"]


def test_the_page_asks_the_network_for_nothing(page: Page) -> None:
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "poster", "action", "data"):
            assert value.startswith("data:image/png;base64,"), (tag, name, value[:40])
        if name == "href":
            assert value.startswith("#"), value
    assert not {tag for tag, _, _ in page.attributes} & {"link", "iframe", "object", "embed", "base"}
    assert "url(" not in page.source and "@import" not in page.source and "default-src 'none'" in page.source
    assert all(value for tag, name, value in page.attributes if tag == "img" and name == "alt")
    anchors = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} == anchors


def test_numbers_of_synthetic_xrays_say_so_wherever_they_stand(runs: Path, tmp_path: Path, script: Any) -> None:
    copied = shutil.copytree(runs, tmp_path / "runs")
    for path in [*copied.rglob("summary.json"), *copied.rglob("environment.json")]:
        replace_in(path, '"synthetic": false', '"synthetic": true')
    page = report(script, copied)
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    in_rows = ("Pretrainings", "Splits", "Another hospital")
    captions = [caption for caption in page.captions if not caption.startswith(in_rows) and " were read" not in caption]
    assert len(captions) > 5
    for words in [*alts, *captions]:
        assert "(synthetic)" in words
    for words in in_rows:
        assert all("synthetic" in " ".join(row) for row in page.table(words))


def rows(*gaps: tuple[float, ...]) -> pd.DataFrame:
    needs = ["reference_needs", "reference_needs_low", "reference_needs_high"]
    return pd.DataFrame(gaps, columns=["labels", "difference", "low", "high", *needs])


HELPS, SAID = (20, 0.09, 0.05, 0.12, 83.4, 42, np.inf), "a saves about 63 labels [22 to more than 180]"
BEYOND, NOTHING = (20, 0.09, 0.05, 0.12, np.inf), (200, 0.0, -0.02, 0.02, 190.0, 0, np.inf)


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        (
            [HELPS, (200, 0.04, 0.01, 0.07, np.inf, np.inf, np.inf)],
            f"{SAID}; with 200 labels a is 4.0 [1.0, 7.0] points better.",
        ),
        (
            [HELPS, (93, 0.02, -0.01, 0.05, 120.0, 80, np.inf), NOTHING],
            f"{SAID}; with 93 or more labels nothing was shown",
        ),
        ([(*BEYOND, 42, np.inf), NOTHING], "a saves more than 180 labels [22 to more than 180]; with 200 labels"),
        ([(*BEYOND, np.inf, np.inf)], "a saves more than 180 labels [the whole interval]."),
        ([(*BEYOND, np.nan, np.nan)], "a saves more than 180 labels."),
        (
            [(20, -0.05, -0.07, -0.03, 0.0, 0, 0), NOTHING],
            "with 20 labels a is 5.0 [3.0, 7.0] points worse; with 200 labels nothing was",
        ),
        (
            [(20, 0.09, np.nan, np.nan, 80.0, np.nan, np.nan)],
            "with 20 labels there are too few draws or folds to tell (+9.0 points)",
        ),
        (
            [(20, 0.0, -0.1, 0.1, 20, 0, np.inf), (90, 0.1, 0.05, 0.2, 180, 100, np.inf), NOTHING],
            "with 20 and 200 labels nothing was shown",
        ),
    ],
)
def test_the_verdict_says_at_how_many_labels_what_was_shown(gaps: list[Any], said: str) -> None:
    assert said in verdict(rows(*gaps), "a", "b", 200)


def test_a_single_draw_and_a_network_that_saw_too_much_say_so(tmp_path: Path, script: Any) -> None:
    run = comparison(tmp_path, "compare/a")
    for name in ("curves", "differences"):
        table = pd.read_csv(run.folder / f"{name}.csv").assign(low=np.nan, high=np.nan)
        run.save_table(name, table.assign(transductive=table["arm"] == "pretrained"))
    run.save_json("summary", {**run.summary, "transductive": True, "notes": ["it has seen 3 images"]})  # type: ignore[dict-item]
    page = report(script, tmp_path)
    said = "pretrained against random: with 20 or more labels there are"
    assert f"compare/a (transductive: pretrained), validation: {said}" in page.text
    assert "it has seen 3 images" in page.text and "nan" not in page.text


def test_runs_are_chosen_and_left_out_by_name(tmp_path: Path, script: Any) -> None:
    for name in ("compare/a", "compare/old/b", "junk/c"):
        comparison(tmp_path, name)
    page = report(script, tmp_path, "--exclude", "compare/old*", "junk")
    assert "Runs read: 1." in page.text and "compare/a, validation" in page.text
    page = report(script, tmp_path / "compare", str(tmp_path / "junk"))
    assert "Runs read: 3." in page.text
    page = report(script, tmp_path / "compare" / "a")
    assert "Runs read: 1." in page.text and "a, validation" in page.text


def test_comparisons_without_test_scores_and_of_the_earlier_protocol_are_named(tmp_path: Path, script: Any) -> None:
    before = {"synthetic": False, "metric": "auroc"}
    finished(tmp_path, "compare/a", "comparison", {}, before)
    finished(tmp_path, "compare/b", "comparison", {}, before, patience=6, fractions=[0.1])
    finished(tmp_path, "test/compare/b/x", "test", {}, {**before, "temperature": 1.0})
    page = report(script, tmp_path)
    found = page.table("2 folders are not shown")
    assert {row[0] for row in found} == {"compare/b", "test/compare/b/x"}
    assert "compare/a: confusion_matrix.py scores its test rows." in page.text
    assert all("earlier protocol: the validation part chose steps and settings" in row[1] for row in found)


def test_findings_are_counted_one_by_one(tmp_path: Path, script: Any) -> None:
    run = pretraining(tmp_path, "pretrain/a")
    path = run.folder / "environment.json"
    environment = json.loads(path.read_text())
    environment["data"] |= {"multilabel": True, "duplicate_pairs": None}
    path.write_text(json.dumps(environment))
    labels = ["Edema=1;Fracture=0", "Edema=1;Fracture=1", "Fracture=-1"]
    run.save_table("split", pd.DataFrame({"file": ["a", "b", "c"], "label": labels, "part": ["train", "val", "train"]}))
    page = report(script, tmp_path)
    assert page.table("labels of split") == [["Edema", "1", "1"], ["Fracture", "0", "1"]]


def test_hostile_names_and_those_that_look_like_numbers_stay_text(tmp_path: Path, script: Any) -> None:
    run = comparison(tmp_path, "compare/a")
    for name in ("curves", "differences"):
        replace_in(run.folder / f"{name}.csv", "pretrained", "007")
    if os.name != "nt":  # Windows allows no such names
        pretraining(tmp_path, HOSTILE)
    page = report(script, tmp_path)
    assert "007 against random" in page.text
    assert "<img src=x" not in page.source and not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert os.name == "nt" or str(markupsafe.escape(HOSTILE)) in page.source


def test_what_is_missing_is_named_with_a_command_that_exists(tmp_path: Path, script: Any) -> None:
    named = set(re.findall(r"<code>python (\S+?)(?: [^<]*)?</code>", report(script, tmp_path).source))
    entries = {path.relative_to(REPO_ROOT).as_posix() for path in sources() if is_entry_script(path)}
    assert named <= entries and named == {one.script.partition(" ")[0] for one in SECTIONS if one.script}


def broken_runs(root: Path) -> dict[str, str]:
    """Folders that cannot be shown, each with a word of the reason."""
    for name, (file, content, _) in NO_RUNS.items():
        (root / name).mkdir()
        (root / name / file).write_bytes(content)
    Run("half", {"a": 1}, "pretraining", root).start()
    Run("failed", {"a": 1}, "trial", root).start()
    (root / "failed" / "error.txt").write_text("the disk was full")
    finished(root, "other", "a kind of tomorrow", {}, {"anything": 1})
    (comparison(root, "torn").folder / "curves.csv").write_text('arm,way\n"')
    (pretraining(root, "lacking").folder / "split.csv").write_text("file\n")
    (comparison(root, "picture").folder / "figures" / "label_efficiency.png").write_bytes(b"no picture")
    return {
        **{name: reason for name, (_, _, reason) in NO_RUNS.items()},
        **{"half": "not finished", "failed": "the disk was full", "other": "'a kind of tomorrow' is not known"},
        **dict.fromkeys(["torn", "lacking", "picture"], "cannot be shown"),
    }


def test_broken_runs_are_listed_with_the_reason_and_hide_no_other(tmp_path: Path, script: Any) -> None:
    expected = broken_runs(tmp_path)
    comparison(tmp_path, "whole", seed=1)
    pretraining(tmp_path, "sound")
    page = report(script, tmp_path)
    skipped = dict(page.table("folders are not shown"))
    assert skipped.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in skipped[name], (name, skipped[name])
    assert len(page.table("whole, main ways")) == 2


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path, script: Any) -> None:
    ended = script("utils/make_report.py", "--runs", str(tmp_path / "none"))
    assert ended.returncode == 1
    assert "there is no folder" in ended.stderr and "Traceback" not in ended.stderr
