"""The test part, scored from tables of predictions alone: against scikit-learn, asked again, without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn import metrics
from tables_of_predictions import (
    CLASSES,
    FINDINGS,
    finished_comparison,
    finished_run,
    of_classes,
    of_findings,
)

from downstream_task.clinic.tables import choose_threshold
from utils.config import REPO_ROOT, RUNS_ROOT
from utils.files import content_hash, write_table

pytestmark = pytest.mark.usefixtures("few_resamples", "no_figures")

TEST = "downstream_task/confusion_matrix.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder under runs/ that no other test has."""
    return RUNS_ROOT / "tables" / tmp_path.parent.name / tmp_path.name


def scored(folder: Path) -> Path:
    return RUNS_ROOT / "test" / folder.relative_to(RUNS_ROOT)


def score(script: Any, *folders: Path) -> Any:
    return script(TEST, "--runs", *map(str, folders))


def rows_of(table: pd.DataFrame, part: str) -> tuple[np.ndarray, np.ndarray]:
    rows: Any = table[table["part"] == part]
    labels = np.array([CLASSES.index(name) for name in rows["label"]])
    return labels, rows[[f"p {name}" for name in CLASSES]].to_numpy()


def values(folder: Path, name: str, index: str | list[str]) -> Any:
    return pd.read_csv(scored(folder) / f"{name}.csv", keep_default_na=False, na_values={"value": [""]}).set_index(
        index
    )


def test_scores_of_classes_are_scikit_learns(folder: Path, script: Any) -> None:
    table = of_classes(0, 1.0)
    done = score(script, finished_run(folder, table))
    assert done.returncode == 0, done.stderr
    labels, p = rows_of(table, "test")
    one = np.eye(len(CLASSES))[labels]
    expected = {
        "accuracy": metrics.accuracy_score(labels, p.argmax(1)),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, p.argmax(1)),
        "macro_f1": metrics.f1_score(labels, p.argmax(1), average="macro"),
        "auroc": metrics.roc_auc_score(one, p),
        "auprc": metrics.average_precision_score(one, p),
    }
    scores = values(folder, "scores", "score")
    for name, value in expected.items():
        assert scores.loc[name, "value"] == pytest.approx(value), name
        assert scores.loc[name, "low"] < value < scores.loc[name, "high"]
    classes = values(folder, "classes", ["class", "score"])["value"]
    for c, name in enumerate(CLASSES):
        assert classes[name, "sensitivity"] == pytest.approx(metrics.recall_score(one[:, c], p.argmax(1) == c))
        assert classes[name, "auroc"] == pytest.approx(metrics.roc_auc_score(one[:, c], p[:, c]))
    summary = json.loads((scored(folder) / "summary.json").read_text())
    assert summary["images"] == len(labels) == 160 and summary["groups"] == 40
    assert summary["balanced_accuracy"][0] == pytest.approx(expected["balanced_accuracy"])
    assert "160 X-rays of 40 groups, test part (synthetic)" in done.stdout


def test_what_is_chosen_is_chosen_on_the_validation_rows_and_says_on_how_many(folder: Path, script: Any) -> None:
    table = of_classes(0, 1.0)
    done = score(script, finished_run(folder, table))
    (val, p), (labels, p_test) = rows_of(table, "val"), rows_of(table, "test")

    def loss(temperature: float) -> float:
        return float(metrics.log_loss(val, softmax(np.log(p) / temperature, axis=1)))

    found: Any = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-8})
    summary = json.loads((scored(folder) / "summary.json").read_text())
    assert summary["temperature"] == pytest.approx(found.x, rel=1e-4) and found.x > 1.2
    scaled, scaled_test = (softmax(np.log(one) / summary["temperature"], axis=1) for one in (p, p_test))
    points = values(folder, "operating_points", ["class", "rule", "rate"])
    for c, name in enumerate(CLASSES):
        threshold = choose_threshold((val == c).astype(float), scaled[:, c], "Youden")
        found = points.loc[(name, "Youden", "sensitivity")]
        assert found["threshold"] == pytest.approx(threshold)
        assert found["value"] == pytest.approx(metrics.recall_score(labels == c, scaled_test[:, c] >= threshold))
    sets = values(folder, "conformal", "class")
    right = np.sort(scaled[np.arange(80), val])[::-1]
    held = scaled_test[np.arange(160), labels] >= right[int(np.ceil(81 * 0.9)) - 1]
    assert sets.loc["all", "coverage"] == pytest.approx(held.mean())
    for found in (points, sets):
        assert set(found["validation_labels"]) == {80} == {summary["validation_labels"]}
    assert "chosen on 80 labelled validation images" in done.stdout
    groups = values(folder, "subgroups", ["detail", "group"])
    women = np.array(table["sex"] == "F")[np.array(table["part"] == "test")]
    score_of_women = metrics.balanced_accuracy_score(labels[women], p_test[women].argmax(1))
    assert groups.loc[("sex", "F"), "value"] == pytest.approx(score_of_women)
    assert groups.loc[("age", "18 to 39"), "images"] > 0


def test_scores_of_findings_leave_out_the_unknown_and_come_by_study_too(folder: Path, script: Any) -> None:
    table: Any = of_findings(0, 0.7)
    assert score(script, finished_run(folder, table)).returncode == 0
    rows = table[table["part"] == "test"]
    of_image, of_study, kept = [], [], []
    for name in FINDINGS:
        known = rows.dropna(subset=f"label {name}")
        of_image.append(metrics.roc_auc_score(known[f"label {name}"], known[f"p {name}"]))
        studies = rows.groupby(["group", "study"]).agg({f"label {name}": "max", f"p {name}": "mean"}).dropna()
        of_study.append(metrics.roc_auc_score(*studies.to_numpy().T))
        kept.append(table[table["part"] == "val"][f"label {name}"].notna().sum())
    scores = values(folder, "scores", "score")["value"]
    assert scores["auroc"] == pytest.approx(np.mean(of_image))
    assert scores["auroc_by_study"] == pytest.approx(np.mean(of_study))
    labels = values(folder, "operating_points", "class")["validation_labels"]
    assert [labels[name].unique().tolist() for name in FINDINGS] == [[n] for n in kept]
    assert not (scored(folder) / "conformal.csv").exists()


def test_a_finished_page_is_printed_again_and_never_overwritten(folder: Path, script: Any) -> None:
    table = of_classes(0, 1.0)
    first = score(script, finished_run(folder, table))
    stamps = {path: path.stat().st_mtime_ns for path in scored(folder).rglob("*.*")}
    assert len(stamps) >= 7
    assert score(script, folder).stdout == first.stdout
    assert json.loads((scored(folder) / "summary.json").read_text())["predictions"] == content_hash(
        folder / "predictions.csv"
    )
    write_table(folder / "predictions.csv", table.assign(fold=1))
    other = score(script, folder)
    assert other.returncode == 1 and "predictions (" in other.stderr and "delete that folder" in other.stderr
    assert other.stderr.count("error: ") == 1 and "Traceback" not in other.stderr
    assert {path: path.stat().st_mtime_ns for path in scored(folder).rglob("*.*")} == stamps
    (scored(folder) / "summary.json").unlink()  # never finished: done again
    assert score(script, folder).returncode == 0
    assert json.loads((scored(folder) / "summary.json").read_text())["folds"] == [1]
    (scored(folder) / "scores.csv").unlink()
    gone = score(script, folder)
    assert gone.returncode == 1 and "scores.csv is not there any more" in gone.stderr


def test_of_a_comparison_all_runs_are_compared_and_headlines_of_the_first_draw_get_a_page(
    folder: Path, script: Any
) -> None:
    runs = finished_comparison(folder, {"random": 0.6, "pretrained": 1.4})
    done = score(script, folder)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.name for path in scored(folder).glob("*/scores.csv")}
    assert pages == {f"{arm}_{way}" for arm in ("random", "pretrained") for way in ("linear_n20", "probe_n90")}
    recalls = {}
    for row in runs.to_dict("records"):
        labels, p = rows_of(pd.read_csv(folder / row["trial"] / "predictions.csv", keep_default_na=False), "test")
        cell = row["arm"], row["way"], row["labels"]
        recalls.setdefault(cell, []).append(metrics.balanced_accuracy_score(labels, p.argmax(1)))
    curves = values(folder / "all", "curves", ["arm", "way", "labels"])
    assert len(curves) == len(recalls) == 8
    for cell, of_draws in recalls.items():
        assert curves.loc[cell, "mean"] == pytest.approx(np.mean(of_draws))
        assert bool(curves.loc[cell, "headline"]) == (cell[1:] in (("linear", 20), ("probe", 90)))
    gaps = values(folder / "all", "differences", ["way", "labels"])
    for way, labels, own in (("linear", 20, "linear"), ("headline", 20, "linear"), ("headline", 90, "probe")):
        ours, theirs = (np.mean(recalls[arm, own, labels]) for arm in ("pretrained", "random"))
        assert gaps.loc[(way, labels), "difference"] == pytest.approx(ours - theirs)
    for words in ("mean [95% interval over patients, labels and pretrainings]", "value [95% interval over patients]"):
        assert words in done.stdout, "two intervals of one score, and what each is over"
    assert "network of its main way" in done.stdout and done.stdout.count("tables and figures") == 1
    assert "a note" in done.stdout and "the test part (synthetic)" in done.stdout
    assert score(script, folder).stdout == done.stdout
    one = folder / "pretrained_probe_n20_d1"
    named = score(script, one)
    assert named.returncode == 0 and (scored(one) / "scores.csv").exists(), "a run that is named gets a page"
    write_table(one / "predictions.csv", of_classes(5, 1.0))
    other = score(script, folder)
    assert other.returncode == 1 and f"predictions.{one.name} (" in other.stderr


def test_the_page_of_a_comparisons_network_is_of_the_test_images_of_all_folds(folder: Path, script: Any) -> None:
    """Each image once, by the first head of its fold; scores are computed within folds, and then averaged."""
    runs = finished_comparison(folder, {"random": 0.9}, draws=4)
    runs["fold"] = runs["draw"] % 2
    write_table(folder / "summary.csv", runs)
    for row in runs.to_dict("records"):
        table = pd.read_csv(folder / row["trial"] / "predictions.csv", keep_default_na=False).assign(fold=row["fold"])
        in_test = table["part"] == "test"
        table.loc[in_test, "file"] = table["file"] + f"-{row['fold']}"
        write_table(folder / row["trial"] / "predictions.csv", table)
    assert score(script, folder).returncode == 0
    tables = [
        pd.read_csv(folder / f"random_linear_n20_d{k}" / "predictions.csv", keep_default_na=False) for k in (0, 1)
    ]
    expected = [
        metrics.roc_auc_score(np.eye(len(CLASSES))[labels], p) for labels, p in (rows_of(t, "test") for t in tables)
    ]
    page = folder / "random_linear_n20"
    assert values(page, "scores", "score").loc["auroc", "value"] == pytest.approx(np.mean(expected))
    summary = json.loads((scored(page) / "summary.json").read_text())
    assert (summary["folds"], summary["images"], summary["validation_labels"]) == ([0, 1], 320, 80)
    assert set(values(page, "operating_points", "class")["validation_labels"]) == {80}


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_runs_of_the_earlier_protocol_are_one_sentence(folder: Path, script: Any, kind: str) -> None:
    run = finished_run(folder / "random_linear_f0.05_d0", of_classes(0, 1.0))
    (run / "predictions.csv").rename(run / "predictions_val.csv")
    if kind == "comparison":
        write_table(folder / "summary.csv", pd.DataFrame({"trial": [run.name], "chosen": [True], "draw": [0]}))
        (folder / "summary.json").write_text("{}")
    done = score(script, folder if kind == "comparison" else run)
    assert done.returncode == 1
    assert "trained under the earlier protocol" in done.stderr and "Traceback" not in done.stderr
    assert not scored(folder).exists()


def test_what_is_no_run_or_has_nothing_to_score_is_one_sentence(folder: Path, script: Any) -> None:
    table: Any = of_classes(0, 1.0)
    finished_run(folder / "all_films", table[table["part"] == "val"])
    for name, words in {"all_films": "no test rows", "absent": "there is no run"}.items():
        done = score(script, folder / name)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
    finished_run(folder / "predicted", table.drop(columns="part"))  # as predict.py leaves it
    assert "is not a finished fine-tuning run" in score(script, folder / "predicted").stderr


def test_no_step_of_it_needs_torch(folder: Path) -> None:
    finished_comparison(folder, {"random": 0.6, "pretrained": 1.4}, draws=2)
    block = """
import runpy, sys
class WithoutTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "torchvision", "tensorboard"):
            raise ImportError(name)
sys.meta_path.insert(0, WithoutTorch())
from downstream_task import label_efficiency
from downstream_task.clinic import tables
label_efficiency.REPEATS = tables.REPEATS = 20
for command in sys.argv[1:]:
    sys.argv = command.split("|")
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
    commands = [f"{TEST}|--runs|{folder}", f"utils/make_report.py|--output|{folder / 'report'}"]
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    words = [sys.executable, "-c", block, *commands]
    done = subprocess.run(words, cwd=REPO_ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page = (folder / "report" / "index.html").read_text()
    assert folder.name in page and "pretrained against random: with" in page
