"""Configs: what a user types wrong is said in one sentence."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypedDict

import pytest

from utils.config import REPO_ROOT, UserError, check_config, repo_path

SCRIPT = """
from utils.config import UserError, run_script
config = {"lr": 1e-3, "num_epochs": 3, "projector_dims": [8], "run_name": "", "flag": False}
def main(config):
    if config["run_name"] == "bad":
        raise UserError("this is bad.")
    if config["run_name"] == "bug":
        raise RuntimeError("a bug")
    print(config)
run_script(main, config, "What it does.")
"""


class Schema(TypedDict):
    lr: float
    num_epochs: int
    projector_dims: list[int]
    run_name: str


GOOD: dict[str, Any] = {"lr": 1e-3, "num_epochs": 3, "projector_dims": [8], "run_name": ""}


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=os.sep,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
    )


def test_each_key_is_a_typed_flag() -> None:
    done = script("--lr", "1", "--projector-dims", "8", "16", "--run-name", "x y", "--flag")
    expected = {"lr": 1.0, "num_epochs": 3, "projector_dims": [8, 16], "run_name": "x y", "flag": True}
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--num-epoch", "3"], "--num-epochs"), (["--num-epochs", "three"], "three")]
)
def test_unknown_flags_and_wrong_types_are_refused(arguments: list[str], words: str) -> None:
    done = script(*arguments)
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_users_mistake_is_one_line_and_a_bug_a_traceback() -> None:
    bad, bug = script("--run-name", "bad"), script("--run-name", "bug")
    assert (bad.returncode, bad.stderr) == (1, "error: this is bad.\n")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1.0}, "'learning_rate' is unknown"),
        ({"num_epoch": 1}, "did you mean 'num_epochs'"),
        ({"num_epochs": 3.0}, r"'num_epochs' is 3.0 \(float\), expected int"),
        ({"num_epochs": True}, "expected int"),
        ({"lr": "fast"}, "expected float"),
        ({"projector_dims": 512}, r"expected list\[int\]"),
        ({"projector_dims": [5.0]}, r"expected list\[int\]"),
    ],
)
def test_a_dict_edited_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config({**GOOD, **changes}, Schema)


def test_a_right_dict_is_accepted_and_a_lacking_one_is_not() -> None:
    check_config({**GOOD, "lr": 1}, Schema)
    with pytest.raises(UserError, match="lacks lr"):
        check_config({key: value for key, value in GOOD.items() if key != "lr"}, Schema)


def test_paths_start_at_the_repo_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert repo_path("datasets/x") == REPO_ROOT / "datasets" / "x"
    assert repo_path(tmp_path) == tmp_path
