"""pretrain(config) inside one process: what is measured changes nothing, what is resumed, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dataset_loader.phantoms.dataset import COVID_ROOT
from selfsup_task import pretraining
from selfsup_task.pretrain_config import derived_name
from selfsup_task.train_barlow_twins import config as DEFAULTS
from utils import logging_utils
from utils.config import UserError

SMALL: dict[str, Any] = {
    **DEFAULTS,
    "dataset": "covid",
    "img_res": 32,
    "store_res": 32,
    "batch_size": 64,
    "num_epochs": 2,
    "projector_dims": [16, 16],
}


class Killed(Exception):
    pass


def pretrain(config: Any) -> logging_utils.Run:
    return pretraining.pretrain(config)


@pytest.fixture
def config(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small config whose runs lie in this test's folder."""
    monkeypatch.setattr(pretraining, "Run", lambda name, config: logging_utils.Run(name, config, tmp_path / "runs"))
    return {**SMALL, "data_root": str(phantoms / COVID_ROOT)}


def test_how_often_one_looks_does_not_change_what_is_learnt(config: Any) -> None:
    often = pretrain({**config, "run_name": "often", "probe_every": 1})
    seldom = pretrain({**config, "run_name": "seldom", "probe_every": 2})
    first, second = (
        torch.load(run.folder / "resnet18_final_state_dict.pt", weights_only=True) for run in (often, seldom)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert "probe/linear" in often.rows[1] and "probe/linear" not in seldom.rows[1]
    assert often.rows[0]["probe/linear"] == seldom.rows[0]["probe/linear"]


def test_a_resumed_run_keeps_its_events_and_ends_with_a_verdict(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: object) -> None:
        raise Killed

    named = {**config, "run_name": "resumed"}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pretraining, "save_backbone", killed)  # between the last epoch and the last files
        pretrain(named)
    run = pretrain(named)
    assert run.summary is not None
    assert run.summary["verdict"]
    events = EventAccumulator(str(run.folder)).Reload()
    assert [event.step for event in events.Images("views")] == [0]
    assert [event.step for event in events.Scalars("health/rank")] == [int(row["step"]) for row in run.rows]


def test_four_views_are_trained_on_shown_and_named(config: Any) -> None:
    run = pretrain({**config, "views": 4})
    assert "_v4_" in run.name and "_v" not in derived_name(config)
    assert run.summary is not None and run.summary["verdict"]
    assert 0 < run.rows[-1]["health/on_diagonal_vs_random"] < 2
    assert run.rows[-1]["train/on_diagonal"] < run.rows[1]["train/on_diagonal"]
    width, height = Image.open(run.folder / "figures" / "views.png").size
    assert width / height == pytest.approx(5 / 6, abs=0.15)  # an X-ray and four views, six rows


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "resnet-18"}, "did you mean 'resnet18'"),
        ({"recipe": "xrays"}, "did you mean 'xray'"),
        ({"dataset": "covidd"}, "did you mean 'covid'"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"batch_size": 500}, "batch_size is 500 but there are 19. training images"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"views": 1}, "views is 1; it must be at least 2"),
        ({"views": 0}, "views is 0; it must be at least 2"),
        ({"store_res": 999}, "store_res"),
        ({"img_res": 64}, "store_res is 32 and img_res 64"),
        ({"projector_dims": [0]}, "projector_dims"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"probe_every": 0}, "probe_every is 0"),
        ({"lr": -1.0}, "lr is -1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"random_seed": -1}, "random_seed is -1"),
        ({"run_name": "../outside"}, "outside"),
        ({"learning_rate": 1.0}, "'learning_rate' is unknown"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_written(
    config: Any, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        pretrain({**config, **changes})
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_resumed_on_other_data(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: object) -> None:
        raise Killed

    named = {**config, "run_name": "moved"}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pretraining, "fit", killed)
        pretrain(named)
    victim = next((Path(config["data_root"]) / "Normal" / "images").iterdir())
    pixels = victim.read_bytes()
    victim.unlink()
    try:
        with pytest.raises(UserError, match="was begun with other data"):
            pretrain(named)
    finally:
        victim.write_bytes(pixels)
    assert pretrain(named).summary is not None


def test_under_a_name_that_is_taken_a_missing_data_folder_is_what_is_told(config: Any, tmp_path: Path) -> None:
    logging_utils.Run("taken", {"another": "config"}, tmp_path / "runs").start()
    absent = {**config, "run_name": "taken", "data_root": str(tmp_path / "absent")}
    with pytest.raises(UserError, match="absent"):
        pretrain(absent)
    with pytest.raises(UserError, match="holds a run with another config"):
        pretrain({**absent, "dataset": "phantom"})
    assert not (tmp_path / "absent").exists()  # no phantoms are drawn for a refusal
