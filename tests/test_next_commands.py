"""The commands that scripts print as the next ones: each runs as it is printed."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from dataset_loader.phantoms.dataset import COVID_ROOT
from downstream_task import trained_vs_no_trained_compare as comparing
from selfsup_task import train_barlow_twins as pretraining
from utils.config import REPO_ROOT, RUNS_ROOT, make_config
from utils.scripts import command, parse_flags

pytestmark = pytest.mark.usefixtures("narrow", "quick", "few_resamples", "no_figures")

PRETRAIN = "selfsup_task/train_barlow_twins.py"
BUDGET = ["--num-epochs", "1", "--warmup-epochs", "0", "--batch-size", "32", "--views", "2", "--projector-dims", "32"]
BUDGET += ["--backbone", "resnet18", "--start", "random"]
SMALLER = {
    "downstream_task/trained_vs_no_trained_compare.py": ["--ways", "linear", "--features-res", "0", "--jobs", "1"]
}


def printed(stdout: str) -> list[str]:
    """The command of the line that starts with "next", word by word."""
    [line] = [line for line in stdout.splitlines() if line.startswith("next")]
    return shlex.split(line.partition("python")[1] + line.partition("python")[2], comments=True)


def test_each_script_prints_the_next_command(
    phantoms: Path, tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO_ROOT)
    root, name = tmp_path / "my films" / COVID_ROOT, "next films"
    shutil.copytree(phantoms / COVID_ROOT, root)
    where = ["--dataset", "covid", "--data-root", str(root), "--split-seed", "3", "--img-res", "32", "--threads", "1"]
    where += ["--fold", "2"]
    done = script(PRETRAIN, *where, "--device", "cpu", "--run-name", f"pretrain/{name}", *BUDGET)
    called: list[str] = []
    while done.returncode == 0 and called[-1:] != ["utils/make_report.py"]:
        words = printed(done.stdout)
        called.append(words[1])
        more = ["--output", str(tmp_path)] if words[1] == "utils/make_report.py" else SMALLER.get(words[1], [])
        if words[1].startswith("downstream_task"):
            assert words[-4:] == ["--device", "cpu", "--threads", "1"] or words[1] in SMALLER
        done = script(*words[1:], *more)
    assert done.returncode == 0, done.stderr
    compared = json.loads((RUNS_ROOT / "compare" / name / "config.json").read_text())
    assert called == [
        "downstream_task/trained_vs_no_trained_compare.py",
        "downstream_task/confusion_matrix.py",
        "interpretability/shortcut_audit.py",
        "utils/make_report.py",
    ]
    asked = {"img_res": 32, "split_seed": 3, "data_root": str(root), "device": "cpu", "threads": 1}
    asked |= {"num_labels": [20, 93, "all"], "folds": [2], "draws": 5}  # of 172 labels, outside the encoder's fold
    assert {key: compared[key] for key in asked} == asked


def test_what_two_scripts_share_has_the_same_defaults() -> None:
    for key in (*pretraining.SHARED, "img_res"):
        assert pretraining.config[key] == comparing.config[key], key
    for key in (*pretraining.SHARED, *pretraining.DATA, "img_res"):
        assert pretraining.real_xrays.get(key) == comparing.real_xrays.get(key), key
    assert set(pretraining.NUM_LABELS) | {"all"} == set(comparing.real_xrays["num_labels"])
    assert comparing.real_xrays["draws"] == pretraining.DRAWS


@pytest.mark.parametrize(
    ("changes", "summary", "flags"),
    [
        ({}, {"labels": 1201, "metric": "balanced_accuracy"}, "--num-labels 20 93 187 all"),
        ({"run_name": "pretrain/phantom"}, {"labels": 1201}, ""),
        (
            {"dataset": "covid"},
            {"labels": 8000},
            "--dataset covid --img-res 32 --backbone resnet18 --num-labels 20 93 187 all",
        ),
        ({"pretrain_on": "all"}, {"labels": 187}, "--allow-seen --num-labels 20 93 all"),
        ({}, {"labels": 188, "metric": "auroc"}, "--num-labels 93 187 all"),
        ({}, {"labels": 15, "note": "seen"}, "--allow-seen --num-labels all"),
        ({}, {"labels": 1682, "fold": 3}, "--num-labels 20 93 187 all --folds 3 --draws 5"),
        ({}, {"labels": 90, "fold": 0}, "--num-labels 20 all --folds 0 --draws 5"),
        ({}, {"labels": 1682, "fold": None}, "--num-labels 20 93 187 all"),
        (
            {"val_share": 0.2, "keep_split": "a b.csv"},
            {},
            "--val-share 0.2 --keep-split 'a b.csv' --num-labels 20 93 187 all",
        ),
    ],
)
def test_the_comparison_suits_data_and_labels(changes: dict[str, Any], summary: dict[str, Any], flags: str) -> None:
    config = make_config(pretraining.PretrainConfig, {**pretraining.config, **changes})
    words = shlex.split(pretraining.comparison(config, changes.get("run_name", "pretrain/a/b"), summary))
    own = shlex.split("--run-name compare/a/b --encoders random runs/pretrain/a/b/resnet18_final_state_dict.pt")
    start = words.index("--run-name") if "--run-name" in words else len(words)
    assert words[start : start + 5] == ([] if "run_name" in changes else own)
    assert words[2:start] + words[start + 5 :] == shlex.split(flags)
    chosen = parse_flags(comparing.config, {}, "", words[2:], comparing.real_xrays)
    make_config(comparing.CompareConfig, {**chosen, "run_name": "x"})


def test_a_command_works_from_where_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"runs": ["a b", "c"], "threads": 2, "device": "auto", "laterals": False}
    monkeypatch.chdir(REPO_ROOT)
    assert command("x/y.py", values) == "python x/y.py --runs 'a b' c --threads 2 --no-laterals"
    monkeypatch.chdir(tmp_path)
    assert command("x/y.py", {}) == f"python {REPO_ROOT}/x/y.py"
