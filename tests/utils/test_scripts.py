"""Entry scripts: every key is a flag that says what it is, what a user types wrong is said in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.config import REPO_ROOT
from utils.scripts import key_comments

SCRIPT = """
from utils.config import UserError
from utils.scripts import run_script
config = {
    "lr": 1e-3,
    "num_epochs": 3,  # as long as it takes
    # a comment on a line of its own belongs to no key
    "projector_dims": [8],
    "draws": 2,
    "fractions": [1.0],  # of the stones
    "run_name": "",
    "flag": False,
    "finetune": {"num_steps": 5, "names": []},
}
def main(config):
    if config["run_name"] == "bad":
        raise UserError("this is bad.")
    if config["run_name"] == "bug":
        raise RuntimeError("a bug")
    print(config)
run_script(main, config, "What it does.")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "stones.py").write_text(SCRIPT, encoding="utf-8")
    return tmp_path / "stones.py"


def call(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, path, *arguments],
        capture_output=True,
        text=True,
        cwd=os.sep,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT), "COLUMNS": "150"},
    )


def test_each_key_is_a_typed_flag(path: Path) -> None:
    nested = ["--finetune.num-steps", "6", "--finetune.names", "a", "b"]
    done = call(path, "--lr", "1", "--projector-dims", "8", "16", "--run-name", "x y", "--flag", *nested)
    expected = {
        "lr": 1.0,
        "num_epochs": 3,
        "projector_dims": [8, 16],
        "draws": 2,
        "fractions": [1.0],
        "run_name": "x y",
        "flag": True,
        "finetune": {"num_steps": 6, "names": ["a", "b"]},
    }
    assert done.stdout.strip() == str(expected)


def test_help_says_what_stands_beside_the_keys_or_in_the_main_script_of_its_kind(path: Path) -> None:
    text = " ".join(call(path, "--help").stdout.replace("│", " ").split())
    assert "What it does." in text
    assert "--num-epochs INT as long as it takes (default: 3)" in text
    assert "of the stones" in text
    assert "label subsets for each fraction" in text  # "draws", from trained_vs_no_trained_compare.py
    assert "optimiser steps of a fine-tuning" in text  # "finetune.num_steps"
    assert "--lr FLOAT (default" in text
    assert "belongs to no key" not in text


def test_a_scan_explains_what_it_varies_by_the_pretrainings_words_wherever_the_repo_is_linked(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(REPO_ROOT, target_is_directory=True)
    text = call(tmp_path / "link" / "selfsup_task" / "scan_best_hyperparameters.py", "--help").stdout
    text = " ".join(text.replace("│", " ").split())
    assert "pairs of views" in text  # --batch-size
    assert "labelled images a step" in text  # --finetune.batch-size


def test_comments_are_found_by_key_whatever_the_values_hold() -> None:
    lines = ["config = {", "'a': '# no',", "'b': [  # two", "1,", "],", "**c,  # three", "'d': 1,  # 4 #5", "}"]
    assert key_comments("\n".join(lines)) == {"b": "two", "d": "4 #5"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--num-epoch", "3"],
            "'--num-epoch' is no flag of stones.py, and no value of one; did you mean --num-epochs? ",
        ),
        (
            ["--finetune.num-step=3"],
            "'--finetune.num-step' is no flag of stones.py, and no value of one; did you mean --finetune.num-steps?",
        ),
        (["--no-flagg"], "'--no-flagg' is no flag of stones.py, and no value of one; did you mean --no-flag?"),
        (["3"], "'3' is no flag of stones.py, and no value of one; --help lists them all."),
    ],
)
def test_a_flag_that_does_not_exist_is_refused_in_one_line(path: Path, arguments: list[str], sentence: str) -> None:
    done = call(path, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1


def test_a_value_of_the_wrong_type_is_refused(path: Path) -> None:
    done = call(path, "--num-epochs", "three")
    assert done.returncode != 0
    assert "three" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_users_mistake_is_one_line_and_a_bug_a_traceback(path: Path) -> None:
    bad, bug = call(path, "--run-name", "bad"), call(path, "--run-name", "bug")
    assert (bad.returncode, bad.stderr) == (1, "error: this is bad.\n")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr
