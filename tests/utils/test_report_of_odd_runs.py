"""The report of odd runs: without a stated origin, hostile names, only failures, broken folders, nothing at all."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import markupsafe
import pandas as pd
import pytest
from report_runs import comparison, finished, pretraining, replace_in, report
from test_house import is_entry_script, sources

from utils.config import REPO_ROOT
from utils.logging_utils import Run
from utils.report.pretraining import MAX_DRAWN

HOSTILE = """<img src=x onerror=alert(1)> "q" & 'r' $x$ {y}"""
BROKEN = {  # a folder's only file, its bytes, and a word of the reason why it is not shown
    "old": ("metrics.csv", b"a,b\n1,2\n", "no config.json"),
    "events only": ("events.out.tfevents.1.x", b"xx", "no config.json"),
    "weights": ("resnet18_final_state_dict.pt", b"", "no config.json"),
    "no json": ("config.json", b"{", "cannot be read"),
    "list": ("config.json", b"[1]", "not a JSON object"),
    "bytes": ("config.json", b"\xff\xfe{}", "cannot be read"),
}


def test_findings_are_counted_one_by_one(tmp_path: Path, script: Any) -> None:
    run = pretraining(tmp_path, "pretrain/a")
    path = run.folder / "environment.json"
    environment = json.loads(path.read_text())
    environment["data"] |= {"multilabel": True, "duplicate_pairs": None}
    path.write_text(json.dumps(environment))
    labels = ["Edema=1;Fracture=0", "Edema=1;Fracture=1", "Fracture=-1"]
    run.save_table("split", pd.DataFrame({"file": ["a", "b", "c"], "label": labels, "part": ["train", "val", "train"]}))
    page, _ = report(script, tmp_path)
    rows = [[cell[0] for cell in row] for row in page.table("labels of split")]
    assert rows == [["Edema", "1", "1"], ["Fracture", "0", "1"]]
    assert page.table("Splits")[0][5][0] == "not looked for"


def test_a_run_that_does_not_state_the_origin_of_its_xrays_says_so(tmp_path: Path, script: Any) -> None:
    run = pretraining(tmp_path, "pretrain/a")
    for name in ("environment", "summary"):
        replace_in(run.folder / f"{name}.json", '"synthetic"', '"something_else"')
    page, _ = report(script, tmp_path)
    assert page.table("Pretrainings")[0][0][0] == "pretrain/a (origin not stated)"


def test_a_scan_of_failures_shows_them(tmp_path: Path, script: Any) -> None:
    sweep = Run("scans/t", {"varied": ["recipes"]}, "scan", tmp_path)
    sweep.start(alone=False, data={"synthetic": True})
    sweep.save_table("summary", pd.DataFrame({"trial": ["1"], "error": ["the disk was full"]}))
    page, _ = report(script, tmp_path)
    assert "scans/t (synthetic): 1 failed: the disk was full" in page.text
    assert "No skipped folders" in page.text


def test_of_many_pretrainings_all_are_listed_and_only_the_first_drawn(tmp_path: Path, script: Any) -> None:
    for number in range(MAX_DRAWN + 2):
        pretraining(tmp_path, f"pretrain/{number:02}")
    page, _ = report(script, tmp_path)
    assert len(page.table("Pretrainings")) == MAX_DRAWN + 2
    drawn = [
        value for tag, name, value in page.attributes if (tag, name) == ("img", "alt") and "rank and probes" in value
    ]
    assert len(drawn) == MAX_DRAWN
    assert f"Figures of the first {MAX_DRAWN} of {MAX_DRAWN + 2} pretrainings" in page.text


def test_names_that_look_like_numbers_stay_names(tmp_path: Path, script: Any) -> None:
    run = comparison(tmp_path, "compare/a")
    for name in ("curves", "differences"):
        replace_in(run.folder / f"{name}.csv", "pretrained", "007")
    page, _ = report(script, tmp_path)
    assert "007 is better than random" in page.text


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
def test_a_hostile_name_stays_text(tmp_path: Path, script: Any) -> None:
    comparison(tmp_path, f"compare/{HOSTILE}")
    pretraining(tmp_path, HOSTILE)
    page, text = report(script, tmp_path)
    assert HOSTILE in page.text
    assert "<img src=x" not in text
    assert str(markupsafe.escape(HOSTILE)) in text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_what_is_missing_is_named_with_a_command_that_exists(tmp_path: Path, script: Any) -> None:
    (tmp_path / "runs").mkdir()
    page, text = report(script, tmp_path / "runs")
    named = set(re.findall(r"<code>python (\S+)</code>", text))
    entries = {path.relative_to(REPO_ROOT).as_posix() for path in sources() if is_entry_script(path)}
    assert named == {name for name in entries if not name.startswith("utils/")}
    assert "There are no runs yet" in page.text


def broken_runs(root: Path) -> dict[str, str]:
    """Folders that cannot be shown, each with a word of the reason."""
    for name, (file, content, _) in BROKEN.items():
        (root / name).mkdir()
        (root / name / file).write_bytes(content)
    (root / "link").symlink_to(root / "old", target_is_directory=True)
    Run("half", {"a": 1}, "pretraining", root).start()
    Run("failed", {"a": 1}, "trial", root).start()
    (root / "failed" / "error.txt").write_text("the disk was full")
    finished(root, "other", "a kind of tomorrow", {}, {"anything": 1})
    no_kind = root / "no kind"
    shutil.copytree(root / "other", no_kind)
    (no_kind / "environment.json").write_text("{}")
    (comparison(root, "torn").folder / "curves.csv").write_text('arm,way\n"')
    (pretraining(root, "lacking").folder / "summary.json").write_text('{"rank_random_network": 1.0}')
    (comparison(root, "picture").folder / "figures" / "label_efficiency.png").write_bytes(b"no picture")
    return {
        **{name: reason for name, (_, _, reason) in BROKEN.items()},
        **{
            "half": "not finished",
            "failed": "the disk was full",
            "other": "'a kind of tomorrow' is not known",
            "no kind": "names no kind",
        },
        "link": "shown under another name",
        **dict.fromkeys(["torn", "lacking", "picture"], "cannot be shown"),
    }


def test_broken_runs_are_listed_with_the_reason_and_hide_no_other(tmp_path: Path, script: Any) -> None:
    expected = broken_runs(tmp_path)
    comparison(tmp_path, "whole", seed=1)
    pretraining(tmp_path, "sound")
    page, _ = report(script, tmp_path)
    tables = [page.table(words) for words in ("Skipped folders", "Older or foreign folders")]
    skipped = {row[0][0]: row[1][0] for rows in tables for row in rows}
    for name, reason in expected.items():
        assert reason in skipped[name], (name, skipped[name])
    assert "whole" not in skipped
    assert len(page.table("whole: balanced accuracy")) == 6
    assert [row[0][0] for row in page.table("Pretrainings")] == ["sound"]


def test_one_run_is_a_report_too(tmp_path: Path, script: Any) -> None:
    page, _ = report(script, pretraining(tmp_path, "pretrain/a").folder)
    assert [row[0][0] for row in page.table("Pretrainings")] == ["a"]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path, script: Any) -> None:
    ended = script("utils/make_report.py", "--runs", str(tmp_path / "none"))
    assert ended.returncode == 1
    assert "there is no folder" in ended.stderr
    assert "Traceback" not in ended.stderr
