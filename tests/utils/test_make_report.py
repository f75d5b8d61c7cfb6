"""The report: its numbers are those of the runs' files, nothing hostile gets through, nothing is left unsaid."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_house import is_entry_script, sources

from utils.config import REPO_ROOT
from utils.logging_utils import Run

HOSTILE = """<img src=x onerror=alert(1)> "q" & 'r' $x$ {y}"""
ARMS = ("random", "pretrained")
COUNTS = {"images", "labels", "share", "groups", "near-duplicate pairs", "train", "val", "test", "epochs", "runs"}
FITTED = {"temperature, fitted on validation"}


class Page(HTMLParser):
    """Tables as lists of rows of (text, value, low, high), their captions, and every attribute."""

    def __init__(self, text: str):
        super().__init__()
        self.captions: list[str] = []
        self.tables: list[list[list[tuple[str, float | None, float | None, float | None]]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self.into = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {key: value or "" for key, value in attrs}
        self.attributes += [(tag, key, value) for key, value in known.items()]
        if tag == "div" and known.get("class") == "table":
            self.captions.append(known["aria-label"])
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            numbers = [float(known[key]) if key in known else None for key in ("data-value", "data-low", "data-high")]
            self.tables[-1][-1].append(("", numbers[0], numbers[1], numbers[2]))
            self.into = tag
        elif tag in ("script", "style"):
            self.into = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.into:
            self.into = ""

    def handle_data(self, data: str) -> None:
        if self.into in ("td", "th"):
            cell = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (cell[0] + data, *cell[1:])
        if self.into not in ("script", "style"):
            self.text += data

    def table(self, words: str) -> list[list[tuple[str, float | None, float | None, float | None]]]:
        """The rows under the heads of the first table whose caption has these words."""
        return next(t for caption, t in zip(self.captions, self.tables, strict=True) if words in caption)[1:]


def finished(
    root: Path, name: str, kind: str, tables: dict[str, pd.DataFrame], summary: dict[str, Any], **config: Any
) -> Run:
    run = Run(name, config or {"dataset": "covid"}, kind, root)
    data = {"synthetic": False, "images": 100, "groups": 90, "duplicate_pairs": 3, "split_hash": "abc"}
    run.start(data={**data, "images_by_part": {"train": 80, "val": 10, "test": 10}}, device="cpu")
    for table, rows in tables.items():
        run.save_table(table, rows)
    run.finish(summary)
    return run


def draw(run: Run, *names: str) -> None:
    for name in names:
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1])
        run.save_figure(name, figure)


def comparison(root: Path, name: str, seed: int = 0) -> Run:
    generator = np.random.default_rng(seed)

    def row(**keys: Any) -> dict[str, Any]:
        value, reach = generator.uniform(0.3, 0.9), generator.uniform(0.01, 0.2)
        return {**keys, "value": value, "low": value - reach, "high": value + reach}

    cells = [(method, labels) for method in ("linear", "finetune") for labels in (20, 187)]
    curves = [row(arm=arm, method=m, fraction=0.1, labels=n, draws=3) for arm in ARMS for m, n in cells]
    gaps = [
        {
            **row(arm="pretrained", reference="random", method=m, fraction=0.1, labels=n),
            **dict(
                zip(
                    ("reference_needs", "reference_needs_low", "reference_needs_high"), (50.0, 0.0, np.inf), strict=True
                )
            ),
        }
        for m, n in cells
    ]
    tables = {
        "curves": pd.DataFrame(curves).rename(columns={"value": "mean"}),
        "differences": pd.DataFrame(gaps).rename(columns={"value": "difference"}),
    }
    summary = {"synthetic": False, "metric": "balanced_accuracy", "part": "validation", "notes": [], "left_out": []}
    run = finished(root, name, "comparison", tables, summary)
    draw(run, "label_efficiency")
    return run


def pretraining(root: Path, name: str) -> Run:
    numbers = {"loss_first_epoch": 90.0, "loss_last_epoch": 12.0, "rank_random_network": 188.0, "rank": 252.0}
    probes = {"linear_random_network": 0.56, "linear": 0.6, "knn_random_network": 0.5, "knn": 0.62}
    summary = {
        **numbers,
        **{f"probe/{name}": score for name, score in probes.items()},
        **{"metric": "auroc", "chance": 0.5, "images_per_second": 30.0, "verdict": "healthy"},
        "images": 80,
        "epochs": 3,
        "synthetic": False,
    }
    run = finished(root, name, "pretraining", {}, summary, dataset="covid", recipe="base")
    split = pd.DataFrame(
        {"file": ["a", "b", "c"], "label": ["COVID", "COVID", "Normal"], "part": ["train", "val", "train"]}
    )
    run.save_table("split", split)
    draw(run, "views", "recipe", "curves", "cross_correlation")
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run of each kind."""
    root = tmp_path / "runs"
    comparison(root, "compare/a")
    pretraining(root, "pretrain/a")
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    frozen = pd.DataFrame([{"trainable": "fc", "arm": "random", "labels": 9, "mean": 0.5, "low": 0.4, "high": 0.6}])
    finished(root, "frozen/a", "frozen parts", {"table": frozen}, {"metric": "auroc", "synthetic": False})
    scores = pd.DataFrame([{"score": name, **interval} for name in ("accuracy", "balanced_accuracy", "ece")])
    classes = pd.DataFrame([{"class": "COVID", "score": "sensitivity", **interval}])
    trained = {"encoder": "random", "method": "linear", "trainable": "all", "label_fraction": 0.1, "label_draw": 0}
    tested = {"images": 10, "synthetic": False, "temperature": 1.5}
    tables = {"scores": scores, "classes": classes, "predictions": pd.DataFrame({"a": [1]})}
    draw(finished(root, "test/compare/a/x", "test", tables, tested, trained=trained), "confusion_matrix")
    suggested = {"steepest": 1e-3, "lowest": 1e-2, "diverged": None, "synthetic": False}
    finished(root, "scans/lr/range_pretraining", "learning rates", {"lr_range": pd.DataFrame({"lr": [1.0]})}, suggested)
    for name, varied in (("lr/schedulers", "schedulers"), ("t", "recipes"), ("h", "lambdas")):
        sweep = Run(f"scans/{name}", {"varied": [varied], "dataset": "covid"}, "scan", root)
        sweep.start(alone=False, data={"synthetic": False})
        rows = {"trial": ["1", "b", "best"], "linear": [0.5, None, 0.7], "full": [0.6, None, 0.4]}
        others = {"loss": [9.0, None, 8.0], "rank": [7, None, 6], "error": [None, "the disk was full", None]}
        table = pd.DataFrame({**rows, **others, "metric": ["auroc", None, "auroc"]})
        sweep.save_table("summary", table)
        draw(sweep, name.rpartition("/")[2])
    cost = Run("resources/a", {"varied": ["backbones"], "dataset": "covid", "forecast_epochs": 100}, "resources", root)
    cost.start(alone=False, data={"synthetic": False})
    cells = {"trial": ["small", "big", "odd"], "images_per_second": [100.0, None, None], "hours": [3.0, None, None]}
    ends = {"out_of_memory": [False, True, None], "error": [None, None, "no such layer"]}
    cost.save_table("summary", pd.DataFrame({**cells, **ends, "bottleneck": ["network", None, None]}))
    best = {"score": 0.7, "metric": "auroc", "best": {"lr": 1e-3, "recipe": "crop"}, "synthetic": False}
    finished(root, "search/a", "search", {}, best).save_json("best", {"lr": 1e-3})
    quantities = {key: [0.5, 0.4, 0.6] for key in ("lung_mass", "lung_mass_over_area", "peak_in_lungs", "deletion")}
    seen = {**quantities, "insertion": [None, None, None], "sanity": "passes"}
    looks = {"images": 5, "with_lung_mask": 5, "checkpoints": {"x": seen, "y": seen}, "differences": {"y": seen}}
    maps = {**looks, "notes": [], "synthetic": False}
    draw(finished(root, "grad_cam/a", "maps", {"saliency": pd.DataFrame({"a": [1]})}, maps, method="grad_cam"), "panel")
    audited = pd.DataFrame([{"images": "as is", "head": "as trained", "score": "auroc", **interval}])
    masses = pd.DataFrame([{"class": "COVID", "method": "occlusion", "images": 4, **interval}])
    said = {"metric": "auroc", "verdict": "It needs them.", "images": 10, "chance": 0.5, "synthetic": False}
    source = {"source": {**interval, "chance": 0.5, "by_class": 0.6}}
    draw(finished(root, "audit/a", "audit", {"scores": audited, "lung_mass": masses}, {**said, **source}), "audit")
    return root


def report(script: Any, root: Path) -> tuple[Page, str]:
    ended = script("utils/make_report.py", "--runs", str(root), "--output", str(root / "report"))
    assert ended.returncode == 0, ended.stderr
    text = (root / "report" / "index.html").read_text(encoding="utf-8")
    return Page(text), text


def test_every_kind_of_run_is_shown_and_none_is_skipped(runs: Path, script: Any) -> None:
    page, _ = report(script, runs)
    assert "No skipped folders" in page.text
    assert "No older or foreign folders" in page.text
    assert "Folders skipped: 0." in page.text
    alts = " ".join(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    assert "100 epochs" in " ".join(page.captions)
    for words in ("It needs them.", "lr 0.001", "b failed: the disk was full", "odd failed: no such layer"):
        assert words in page.text
    for words in ("Label efficiency", "trained", "Confusion matrix", "range test", "audit/a", "rank"):
        assert words.lower() in (alts + page.text).lower()
    assert "missing" not in [value for _, name, value in page.attributes if name == "class"]


def test_the_numbers_are_those_of_the_files(runs: Path, script: Any) -> None:
    page, _ = report(script, runs)
    curves = pd.read_csv(runs / "compare/a/curves.csv").set_index(["method", "labels", "arm"])
    rows = page.table("compare/a: balanced accuracy on the validation part")
    assert len(rows) == 4
    names = {"linear probe": "linear", "fine-tuning": "finetune"}
    for method, _, labels, *cells in rows:
        for arm, (text, *numbers) in zip(ARMS, cells, strict=True):
            expected = curves.loc[(names[method[0]], int(labels[0]), arm), ["mean", "low", "high"]]  # type: ignore[index]
            assert numbers == expected.tolist()
            assert text == "{:.3f} [{:.3f}, {:.3f}]".format(*expected)
    gaps = pd.read_csv(runs / "compare/a/differences.csv")
    rows = page.table("differences of balanced accuracy")
    for row, gap in zip(rows, gaps.to_dict("records"), strict=True):
        assert row[4][1:] == tuple(100 * gap[key] for key in ("difference", "low", "high"))
        assert "random needs 50 for (95% of resamples fewer than 20 to more than 187)" in row[5][0]


def test_what_a_table_says_is_what_its_run_found(runs: Path, script: Any) -> None:
    page, _ = report(script, runs)

    def texts(words: str) -> list[list[str]]:
        return [[cell[0] for cell in row] for row in page.table(words)]

    assert texts("frozen/a") == [["fc", "random", "9", "0.500 [0.400, 0.600]"]]
    row = texts("Pretrainings")[0]
    assert row[3:8] == ["90 → 12", "188 → 252", "0.560 → 0.600", "0.500 → 0.620", "AUROC, chance 0.50"]
    assert [row[:3] for row in texts("scans/t")] == [["best", "0.700", "0.400"], ["1", "0.500", "0.600"]]
    assert [row[-1] for row in texts("resources/a")] == ["network", "out of memory", "failed"]
    assert texts("labels of split")[0] == ["COVID", "1", "1"]


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
        path = run.folder / f"{name}.json"
        path.write_text(path.read_text().replace('"synthetic"', '"something_else"'))
    page, _ = report(script, tmp_path)
    assert page.table("Pretrainings")[0][0][0] == "pretrain/a (origin not stated)"


def test_a_scan_of_failures_shows_them(tmp_path: Path, script: Any) -> None:
    sweep = Run("scans/t", {"varied": ["recipes"]}, "scan", tmp_path)
    sweep.start(alone=False, data={"synthetic": True})
    sweep.save_table("summary", pd.DataFrame({"trial": ["1"], "error": ["the disk was full"]}))
    page, _ = report(script, tmp_path)
    assert "scans/t (synthetic): 1 failed: the disk was full" in page.text
    assert "No skipped folders" in page.text


def test_numbers_of_synthetic_xrays_say_so_wherever_they_stand(runs: Path, script: Any) -> None:
    for path in [*runs.rglob("summary.json"), *runs.rglob("environment.json")]:
        path.write_text(path.read_text().replace('"synthetic": false', '"synthetic": true'))
    page, _ = report(script, runs)
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt") and "/" in value]
    in_rows = ("Pretrainings", "Splits", "Each network")
    captions = [caption for caption in page.captions if not caption.startswith(in_rows) and " runs " not in caption]
    assert len(captions) > 10
    for words in [*alts, *captions]:
        assert "(synthetic)" in words
    for words in in_rows:
        assert all("synthetic" in " ".join(cell[0] for cell in row) for row in page.table(words))


def test_fractions_with_equally_many_labels_keep_a_row_each(tmp_path: Path, script: Any) -> None:
    run = comparison(tmp_path, "compare/a")
    for name in ("curves", "differences"):
        table = pd.read_csv(run.folder / f"{name}.csv")
        run.save_table(name, table.assign(fraction=np.where(table["labels"] == 20, 0.01, 0.05), labels=20))
    page, _ = report(script, tmp_path)
    assert [row[1][0] for row in page.table("mean [95% interval]")] == ["1%", "5%", "1%", "5%"]


def test_names_that_look_like_numbers_stay_names(tmp_path: Path, script: Any) -> None:
    run = comparison(tmp_path, "compare/a")
    for name in ("curves", "differences"):
        path = run.folder / f"{name}.csv"
        path.write_text(path.read_text().replace("pretrained", "007"))
    page, _ = report(script, tmp_path)
    assert "007 is better than random" in page.text


def test_every_number_has_an_interval_or_says_one_run(runs: Path, script: Any) -> None:
    page, _ = report(script, runs)
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


def test_a_single_draw_and_a_network_that_saw_too_much_say_so(tmp_path: Path, script: Any) -> None:
    run = comparison(tmp_path, "compare/a")
    for name in ("curves", "differences"):
        table = pd.read_csv(run.folder / f"{name}.csv")
        run.save_table(name, table.assign(low=np.nan, high=np.nan))
    run.save_json("summary", {**run.summary, "transductive": True, "notes": ["it has seen 3 images"]})  # type: ignore[dict-item]
    page, _ = report(script, tmp_path)
    assert "compare/a (transductive), the validation part" in page.text
    assert "it has seen 3 images" in page.text
    assert "Not known: no intervals." in page.text
    assert "linear probe" in page.text
    assert page.text.count("(too few for an interval)") >= 12
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
        ("pretrained", "random", [0.1, 0.0, 0.1, 0.0], "Yes, in part."),  # twice: fine-tuning stayed at its probe
        ("imagenet", "random", [0.1, 0.1, 0.1, 0.1], "imagenet, random:"),
    ],
)
def test_the_answer_does_not_depend_on_the_order_of_the_arms(
    tmp_path: Path, script: Any, arm: str, reference: str, gaps: list[float], lead: str
) -> None:
    run = comparison(tmp_path, "compare/a")
    table = pd.read_csv(run.folder / "differences.csv").assign(arm=arm, reference=reference, difference=gaps)
    run.save_table("differences", table.assign(low=table["difference"] - 0.05, high=table["difference"] + 0.05))
    page, text = report(script, tmp_path)
    assert re.findall(r"<strong>(.*?)</strong>", text) == [lead]
    pairs = {(n, gap) for n, gap in zip((20, 187, 20, 187), gaps, strict=True)}
    assert f"of {len(pairs)} pairs of method" in page.text


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
def test_a_hostile_name_stays_text(tmp_path: Path, script: Any) -> None:
    comparison(tmp_path, f"compare/{HOSTILE}")
    pretraining(tmp_path, HOSTILE)
    page, text = report(script, tmp_path)
    assert HOSTILE in page.text
    assert "<img src=x" not in text
    assert str(markupsafe.escape(HOSTILE)) in text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_the_page_asks_the_network_for_nothing(runs: Path, script: Any) -> None:
    page, text = report(script, runs)
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


def test_what_is_missing_is_named_with_a_command_that_exists(tmp_path: Path, script: Any) -> None:
    (tmp_path / "runs").mkdir()
    page, text = report(script, tmp_path / "runs")
    named = set(re.findall(r"<code>python (\S+)</code>", text))
    entries = {path.relative_to(REPO_ROOT).as_posix() for path in sources() if is_entry_script(path)}
    assert named == {name for name in entries if not name.startswith("utils/")}
    assert "There are no runs yet" in page.text


BROKEN = {  # a folder's only file, its bytes, and a word of the reason why it is not shown
    "old": ("metrics.csv", b"a,b\n1,2\n", "no config.json"),
    "events only": ("events.out.tfevents.1.x", b"xx", "no config.json"),
    "weights": ("resnet18_final_state_dict.pt", b"", "no config.json"),
    "no json": ("config.json", b"{", "cannot be read"),
    "list": ("config.json", b"[1]", "not a JSON object"),
    "bytes": ("config.json", b"\xff\xfe{}", "cannot be read"),
}


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
    (comparison(root, "torn").folder / "curves.csv").write_text('arm,method\n"')
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
    assert len(page.table("whole: balanced accuracy")) == 4
    assert [row[0][0] for row in page.table("Pretrainings")] == ["sound"]


def test_one_run_is_a_report_too(tmp_path: Path, script: Any) -> None:
    page, _ = report(script, pretraining(tmp_path, "pretrain/a").folder)
    assert [row[0][0] for row in page.table("Pretrainings")] == ["a"]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path, script: Any) -> None:
    ended = script("utils/make_report.py", "--runs", str(tmp_path / "none"))
    assert ended.returncode == 1
    assert "there is no folder" in ended.stderr
    assert "Traceback" not in ended.stderr
