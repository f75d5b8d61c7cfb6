"""Configs: a mistake in the dict at the top of a script is one sentence."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from utils.config import (
    DATASETS_ROOT,
    REPO_ROOT,
    RUNS_ROOT,
    VERSION,
    Config,
    Count,
    Distinct,
    NotNegative,
    Positive,
    UserError,
    as_dict,
    between,
    differences,
    make_config,
    one_of,
    open_config,
    part_of,
    repo_path,
)
from utils.config import _root as root_of_variable


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    num_steps: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class Outer(Config):
    lr: NotNegative
    num_epochs: Count
    projector_dims: Distinct[Annotated[int, between(2, 64)]]
    optimizer: Annotated[str, one_of({"adam": 1, "sgd": 2})]
    run_name: str
    resume: bool
    finetune: Inner


@dataclass(frozen=True, kw_only=True)
class Stricter(Outer):
    lr: Positive


GOOD: dict[str, Any] = {
    "lr": 1e-3,
    "num_epochs": 3,
    "projector_dims": [8],
    "optimizer": "adam",
    "run_name": "",
    "resume": True,
    "finetune": {"num_steps": 5, "lr": 0.1},
}


def test_a_dict_becomes_a_frozen_config_and_back() -> None:
    config = make_config(Outer, {**GOOD, "lr": 1})
    assert config.finetune == Inner(num_steps=5, lr=0.1)
    assert as_dict(config) == {**GOOD, "lr": 1}
    assert make_config(Outer, as_dict(config)) == config
    with pytest.raises(AttributeError):
        config.lr = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1.0}, "'learning_rate' is unknown; Known: finetune, lr"),
        ({"num_epoch": 1}, "'num_epoch' is unknown; did you mean 'num_epochs'"),
        ({"num_epochs": 3.0}, r"'num_epochs' is 3.0 \(float\), expected int"),
        ({"num_epochs": True}, r"'num_epochs' is True \(bool\), expected int"),
        ({"num_epochs": 0}, "num_epochs is 0; it must be at least 1"),
        ({"lr": -0.1}, "lr is -0.1; it must be at least 0"),
        ({"lr": float("nan")}, "lr is nan; it must be a number"),
        ({"lr": float("inf")}, "lr is inf; it must be a number"),
        ({"projector_dims": []}, "projector_dims is empty; give at least one"),
        ({"projector_dims": [8, 8]}, r"projector_dims is \[8, 8\]; give each value once"),
        ({"projector_dims": [8, 65]}, "projector_dims is 65; it must be from 2 to 64"),
        ({"optimizer": "adm"}, "optimizer is 'adm', which does not exist; did you mean 'adam'"),
        ({"resume": 1}, "expected bool"),
        ({"lr": "fast"}, "expected float"),
        ({"lr": False}, "expected float"),
        ({"projector_dims": 512}, r"expected list\[int\]"),
        ({"projector_dims": [5.0]}, r"expected list\[int\]"),
        ({"finetune": 3}, "expected Inner"),
        ({"finetune": {"num_steps": "5", "lr": 0.1}}, "'num_steps' is '5'"),
        ({"finetune": {"num_step": 5, "lr": 0.1}}, "did you mean 'num_steps'"),
        ({"finetune": {"lr": 0.1}}, "lacks num_steps"),
    ],
)
def test_a_wrong_dict_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config(Outer, {**GOOD, **changes})


def test_missing_keys_are_named_and_variants_checked() -> None:
    with pytest.raises(UserError, match="config lacks lr; add it to the dict"):
        make_config(Outer, {key: value for key, value in GOOD.items() if key != "lr"})
    config = make_config(Outer, GOOD)
    with pytest.raises(UserError, match="at least 1"):
        replace(config, num_epochs=0)
    assert part_of(config, Inner) == {"lr": 1e-3}


def test_a_subclass_may_bound_a_field_more_tightly() -> None:
    assert make_config(Outer, {**GOOD, "lr": 0.0}).lr == 0
    with pytest.raises(UserError, match=r"lr is 0.0; it must be above 0"):
        make_config(Stricter, {**GOOD, "lr": 0.0})


@dataclass(frozen=True, kw_only=True)
class Second(Config):
    """A config that has grown: `gain` was always 1, `size` follows from `lr`, and `names` [] used to mean all."""

    lr: float
    gain: float
    size: int
    names: list[str]
    finetune: Inner

    later: ClassVar = {
        "gain": 1.0,
        "size": lambda old: 8 if old.get("lr", 0) > 1 else 4,
        "names": lambda old: old.get("names") or ["all"],
    }


def test_a_config_of_an_earlier_version_takes_the_values_that_do_the_same() -> None:
    stored = {"lr": 2.0, "names": [], "finetune": {"num_steps": 5, "lr": 0.1, "gone": 1}, "gone": 2}
    inner = Inner(num_steps=5, lr=0.1)
    assert open_config(Second, stored) == Second(lr=2.0, gain=1.0, size=8, names=["all"], finetune=inner)
    now = {**stored, "version": VERSION}  # [] means what it means now; a key that is absent all the same is filled in
    assert open_config(Second, now) == Second(lr=2.0, gain=1.0, size=8, names=[], finetune=inner)
    with pytest.raises(UserError, match="lacks lr"):
        open_config(Second, {"names": [], "finetune": stored["finetune"], "size": 1})


def test_a_long_value_is_shown_in_part() -> None:
    [text] = differences({"a": "x" * 1000, "data_root": 1}, {"a": 1, "data_root": 2}, leave_out=("data_root",))
    assert len(text) < 200 and text.endswith("... there, 1 now)")


def test_roots_may_start_at_home_and_paths_start_at_the_repos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, root in {"~/x": tmp_path / "x", "~": tmp_path, "/y": Path("/y"), "": REPO_ROOT / "runs"}.items():
        monkeypatch.setenv("CXR_RUNS", value)
        assert root_of_variable("CXR_RUNS", "runs") == root
    monkeypatch.chdir(tmp_path)
    assert repo_path("docs/x") == REPO_ROOT / "docs" / "x"
    assert repo_path("datasets/x") == DATASETS_ROOT / "x"
    assert repo_path("runs/x") == RUNS_ROOT / "x"
    assert repo_path(tmp_path) == tmp_path
