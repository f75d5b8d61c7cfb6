"""Configs: what a user types wrong is said in one sentence."""

from pathlib import Path
from typing import Any, TypedDict

import pytest

from utils.config import REPO_ROOT, UserError, check_config, repo_path


class Schema(TypedDict):
    lr: float
    num_epochs: int
    projector_dims: list[int]
    run_name: str


GOOD: dict[str, Any] = {"lr": 1e-3, "num_epochs": 3, "projector_dims": [8], "run_name": ""}


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
