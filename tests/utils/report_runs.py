"""Run folders of every kind for the tests of the report, and the report's page, read back."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.logging_utils import Run

ARMS = ("random", "pretrained")
HEADLINES = {20: "linear", 187: "probe"}  # by number of labels


class Page(HTMLParser):
    """Tables as rows of texts, their captions, every attribute, all text, and the source."""

    def __init__(self, text: str):
        super().__init__()
        self.captions: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.source, self.text, self.into = text, "", ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {key: value or "" for key, value in attrs}
        self.attributes += [(tag, key, value) for key, value in known.items()]
        if tag == "div" and known.get("class") == "table":
            self.captions.append(known["aria-label"])
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("td", "th", "script", "style"):
            self.into = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.into:
            self.into = ""

    def handle_data(self, data: str) -> None:
        if self.into in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.into not in ("script", "style"):
            self.text += data

    def of(self, words: str) -> list[list[str]]:
        """The first table whose caption has these words."""
        return next(t for caption, t in zip(self.captions, self.tables, strict=True) if words in caption)

    def heads(self, words: str) -> list[str]:
        """Its headings."""
        return self.of(words)[0]

    def table(self, words: str) -> list[list[str]]:
        """The rows under them."""
        return self.of(words)[1:]


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

    cells = [(way, labels) for way in ("linear", "probe") for labels in (20, 187)]
    counts = {"draws": 5, "starts": 5, "folds": 5}
    curves = [
        row(arm=arm, way=way, labels=n, headline=way == HEADLINES[n], **counts) for arm in ARMS for way, n in cells
    ]
    needs = {"reference_needs": 50.0, "reference_needs_low": 0.0, "reference_needs_high": np.inf}
    gaps = [
        {**row(arm="pretrained", reference="random", way=way, labels=n), **(needs if way == "headline" else {})}
        for way, n in [*(("headline", n) for n in HEADLINES), *cells]
    ]
    tables = {
        "curves": pd.DataFrame(curves).rename(columns={"value": "mean"}),
        "differences": pd.DataFrame(gaps).rename(columns={"value": "difference"}),
    }
    summary = {"synthetic": False, "metric": "balanced_accuracy", "part": "validation", "notes": [], "left_out": {}}
    run = finished(root, name, "comparison", tables, summary)
    draw(run, "label_efficiency")
    return run


def pretraining(root: Path, name: str) -> Run:
    numbers = {"loss_first_epoch": 90.0, "loss_last_epoch": 12.0, "rank_at_start": 188.0, "rank": 252.0}
    probes = {"linear_at_start": 0.56, "linear": 0.6, "knn_at_start": 0.5, "knn": 0.62}
    summary: dict[str, Any] = {"images": 80, "epochs": 3, "images_per_second": 30.0, "verdict": "healthy"}
    summary |= {**numbers, **{f"probe/{name}": score for name, score in probes.items()}}
    summary |= {"metric": "auroc", "chance": 0.5, "synthetic": False}
    run = finished(root, name, "pretraining", {}, summary, dataset="covid", recipe="base")
    split = {"file": ["a", "b", "c"], "label": ["COVID", "COVID", "Normal"], "part": ["train", "val", "train"]}
    run.save_table("split", pd.DataFrame(split))
    draw(run, "views", "recipe", "curves", "cross_correlation")
    return run


def runs_of_several_kinds(root: Path) -> None:
    """Write runs whose numbers are known; runs as scripts leave them are shown in tests/test_every_data_set.py."""
    comparison(root, "compare/a")
    pretraining(root, "pretrain/a")
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    frozen = pd.DataFrame([{"trainable": "fc", "arm": "random", "labels": 9, "mean": 0.5, "low": 0.4, "high": 0.6}])
    finished(root, "frozen/a", "frozen parts", {"table": frozen}, {"metric": "auroc", "synthetic": False})
    elsewhere = {"images": 20, "synthetic": False, "metric": "auroc", "missing": ["Normal"], "tested": "compare/a/x"}
    elsewhere |= {"collection": "covid-b", "predictions": "abc"}
    scored = {"internal": [0.8, 0.7, 0.9], "outside": [0.6, 0.5, 0.7], "drop": [0.2, 0.1, 0.3]}
    finished(root, "external/covid-b/compare/a/x", "external test", {}, {**elsewhere, **scored})
    sweep = Run("scans/t", {"varied": ["recipes"], "dataset": "covid"}, "scan", root)
    sweep.start(alone=False, data={"synthetic": False})
    rows = {"trial": ["1", "b", "best"], "linear": [0.5, None, 0.7], "full": [0.6, None, 0.4]}
    others = {"loss": [9.0, None, 8.0], "rank": [7, None, 6], "error": [None, "the disk was full", None]}
    sweep.save_table("summary", pd.DataFrame({**rows, **others, "metric": ["auroc", None, "auroc"]}))
    means = {"linear": [0.7, 0.5], "linear_spread": [0.02, 0.01], "full": [0.4, 0.6], "full_spread": 0.03}
    notes = {"seeds": 3, "metric": "auroc", "note": ["", "like the start"]}
    sweep.save_table("ranking", pd.DataFrame({"setting": ["one", "two"], **means, **notes}))
    audited = pd.DataFrame([{"images": "as is", "head": "as trained", "score": "auroc", **interval}])
    masses = pd.DataFrame([{"class": "COVID", "method": "occlusion", "images": 4, **interval}])
    said = {"metric": "auroc", "verdict": "It needs them.", "images": 10, "chance": 0.5, "synthetic": False}
    heads = {"as trained": [0.4, 0.3, 0.5], "refitted": [0.3, 0.25, 0.35]}
    said["scores"] = {name: heads for name in ("as is", "only the border", "patches shuffled")}
    source = {"source": {**interval, "chance": 0.5, "by_class": 0.6}}
    draw(finished(root, "audit/a", "audit", {"scores": audited, "lung_mass": masses}, {**said, **source}), "audit")


def report(script: Any, root: Path, *more: str) -> Page:
    ended = script("utils/make_report.py", str(root), *more, "--output", str(root / "report"))
    assert ended.returncode == 0, ended.stderr
    return Page((root / "report" / "index.html").read_text(encoding="utf-8"))


def replace_in(path: Path, old: str, new: str) -> None:
    """Change the text of a run's file."""
    path.write_text(path.read_text().replace(old, new))
