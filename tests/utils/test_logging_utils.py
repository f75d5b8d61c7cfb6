"""The run folder: nothing is overwritten, nothing is half-written, finished runs stay finished."""

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from folders import touch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

from utils import logging_utils
from utils.config import DATASETS_ROOT, VERSION, Gone, UserError
from utils.facts import fact
from utils.files import write_atomically
from utils.logging_utils import Run
from utils.tensor_files import write_tensors

CONFIG = {"lr": 1e-3, "projector_dims": [512], "dataset": "phantom"}


def opened(root: Path, config: dict[str, Any] = CONFIG) -> Run:
    return Run("a", config, "pretraining", root)


def started(root: Path, config: dict[str, Any] = CONFIG, **facts: Any) -> Run:
    run = opened(root, config)
    run.start(**facts)
    return run


def test_a_run_is_written_once_it_starts_and_says_its_summary_once_it_is_finished(tmp_path: Path) -> None:
    run = Run("a/b", CONFIG, "pretraining", tmp_path)
    assert not run.folder.exists()
    run.start(images=7)
    assert json.loads((run.folder / "config.json").read_text()) == {"version": VERSION, **CONFIG}
    environment = json.loads((run.folder / "environment.json").read_text())
    assert (environment["kind"], environment["images"]) == ("pretraining", 7)
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert run.summary is None
    run.finish({"probe": 0.5, "unknown": float("nan")})
    assert Run("a/b", CONFIG, "pretraining", tmp_path).summary == {"probe": 0.5, "unknown": None}


def test_another_config_is_refused_naming_the_keys_that_differ(tmp_path: Path) -> None:
    config = {**CONFIG, "threads": 0, "jobs": 0}
    started(tmp_path, config)
    opened(tmp_path, {**config, "threads": 1, "jobs": 2})  # which change no result
    with pytest.raises(UserError, match=r"lr \(0.001 there, 0.01 now\), seed \(absent there, 1 now\)"):
        opened(tmp_path, {**config, "lr": 1e-2, "seed": 1})


def test_another_fact_is_refused_by_name_and_one_that_an_older_run_lacks_is_not(tmp_path: Path) -> None:
    run = started(tmp_path, alone=False, data={"images": 7, "pixels": [1, 2]})
    run.start(alone=False, data={"images": 7, "pixels": [1, 2], "new": 3})
    with pytest.raises(UserError, match=r"was started with other data\.pixels \(see its environment\.json\)"):
        run.start(alone=False, data={"images": 7, "pixels": [1, 3]})


def facts(labels: int, **weights: str) -> dict[str, Any]:
    of = {"ill": labels - 3}
    return {"data": {"data_root": "/a", "listed": {"labels": fact(labels, "x" * labels, of)}}, "weights": weights}


def test_a_finished_run_compares_what_it_read_with_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**CONFIG, "data_root": "/a", "run_name": "a"}
    run = Run("a", config, "comparison", tmp_path, look=lambda: facts(9))
    run.start(**facts(5, **{"e.pt": "abc"}), pretrained_on=5)
    run.finish({"score": 1})

    def seen(now: dict[str, Any], **changes: Any) -> Run:
        return Run("a", {**config, **changes}, "comparison", tmp_path, look=lambda: now)

    moved = facts(5, **{"e.pt": "abc", "new.pt": "def"})
    moved["data"]["data_root"] = "/b"
    assert seen(moved, data_root="/b").summary == {"score": 1} and capsys.readouterr().err == ""
    changed = r"was made from other data: labels \(5 then, 4 now; ill 2 then, 1 now\), weights in e.pt\."
    with pytest.raises(UserError, match=changed + ".*choose another run_name or delete that folder"):
        seen(facts(4, **{"e.pt": "abd"}))

    def gone() -> dict[str, Any]:
        raise Gone("there is no folder /a.")

    assert Run("a", config, "comparison", tmp_path, look=gone).summary == {"score": 1}
    assert "is finished; whether its data have changed is not known: there is no folder /a." in capsys.readouterr().err
    with pytest.raises(Gone):  # mistyped, perhaps
        Run("a", {**config, "data_root": "/c"}, "comparison", tmp_path, look=gone)


def test_a_run_that_recorded_nothing_says_so_and_stays_where_its_data_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**CONFIG, "data_root": "datasets/x"}
    run = Run("a", config, "comparison", tmp_path)
    run.start(data={"data_root": "/a"})
    run.finish({"score": 1})
    same = {**config, "data_root": str(DATASETS_ROOT / "y" / ".." / "x/")}
    assert Run("a", same, "comparison", tmp_path, look=lambda: facts(5)).summary == {"score": 1}
    assert "is of a version that did not record its data" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"another config: data_root \(\"datasets/x\" there, \"/b\" now\)"):
        Run("a", {**config, "data_root": "/b"}, "comparison", tmp_path, look=lambda: facts(5))


def test_unknown_keys_of_a_finished_run_are_said_and_those_of_another_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(tmp_path, {**CONFIG, "old": {"key": 1}})
    with pytest.raises(UserError, match=r"old.key \(1 there, absent now\)"):
        opened(tmp_path)
    run.finish({"score": 1})
    assert opened(tmp_path).summary == {"score": 1}
    assert 'does not know, and does not compare: {"old.key": 1}' in capsys.readouterr().err


def test_other_code_is_said_once_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(tmp_path, alone=False)
    run.start(alone=False)
    assert capsys.readouterr().err == ""
    other = {**logging_utils.environment(), "commit": "abc", "threads": 99}
    other["versions"] = {**other["versions"], "torch": "1.0"}
    monkeypatch.setattr(logging_utils, "environment", lambda: other)
    for _ in range(2):
        run.start(alone=False)
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    for change in ("commit .* before, abc now", "threads .* before, 99 now", "torch .* before, 1.0 now"):
        assert re.search(change, said), said
    stored = json.loads((run.folder / "environment.json").read_text())
    assert stored["versions"]["torch"] != "1.0"
    assert [one["versions"]["torch"] for one in stored["resumed"]] == ["1.0"]


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/thesis.tex")
    with pytest.raises(UserError, match="no config"):
        opened(tmp_path)


def test_a_checkpoint_brings_back_tensors_values_and_rows(tmp_path: Path) -> None:
    run = started(tmp_path)
    assert run.checkpoint() is None
    run.add_row({"epoch": 1, "loss": 2.0})
    run.save_checkpoint({"module": {"w": torch.arange(3)}, "epoch": 1})
    run.add_row({"epoch": 2, "loss": 1.0})
    again = opened(tmp_path)
    state = again.checkpoint()
    assert state is not None and torch.equal(state["module"]["w"], torch.arange(3))
    assert again.rows == [{"epoch": 1, "loss": 2.0}]


def test_events_after_the_checkpoint_are_struck_out_on_resume(tmp_path: Path) -> None:
    first = started(tmp_path)
    for step in range(1, 6):
        first.log(step, {"train/loss": 10.0 + step})
    first.save_checkpoint({})
    second = opened(tmp_path)
    for step in range(4, 8):
        second.log(step, {"train/loss": 20.0 + step})
    second.finish({})
    events = EventAccumulator(str(second.folder)).Reload().Scalars("train/loss")
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert [event.value for event in events] == [11, 12, 13, 24, 25, 26, 27]


def test_a_training_is_a_row_of_tensorboards_hparams_and_its_figures_are_images(tmp_path: Path) -> None:
    run = started(tmp_path, {"lr": 0.1, "dims": [512, 512], "nested": {"steps": 3}})
    run.log(1, {"best/accuracy": 0.5})
    run.add_row({"epoch": 1, "step": 1})
    figure = Figure()
    figure.subplots().plot([0, 1])
    run.save_figure("curve", figure, step=3)
    run.finish({})
    assert (run.folder / "figures" / "curve.png").stat().st_size > 1000
    assert EventAccumulator(str(run.folder)).Reload().Images("curve")[0].step == 3
    found = [
        value.metadata.plugin_data.content
        for file in run.folder.glob("events.out.tfevents.*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag == SESSION_START_INFO_TAG
    ]
    start = parse_session_start_info_plugin_data(found[0])
    assert start.hparams["lr"].number_value == 0.1
    assert start.hparams["dims"].string_value == "[512, 512]"
    assert start.hparams["nested.steps"].number_value == 3


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: object) -> None:
        file.write(b"ne")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_be_replaced_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied")  # as Windows does where another program shows the file

    monkeypatch.setattr(Path, "replace", refuse)
    said = r"report\.pdf cannot be written \(Access is denied\); close the program that shows it"
    with pytest.raises(UserError, match=said):
        write_atomically(tmp_path / "report.pdf", lambda file: file.write(b"new"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stands(tmp_path: Path) -> None:
    import resource

    run = started(tmp_path)
    run.save_checkpoint({"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        for write in (
            lambda: run.save_checkpoint({"epoch": 2, "w": torch.zeros(100_000)}),
            lambda: write_tensors(run.folder / "a_state_dict.pt", {"w": torch.zeros(100_000)}),
            lambda: run.save_table("rows", pd.DataFrame({"x": range(100_000)})),
        ):
            with pytest.raises(UserError, match=r"cannot be written \(File too large; \d+\.\d GB are free there\)"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run.unlock()
    assert (started(tmp_path).checkpoint() or {})["epoch"] == 1
    assert not [path for path in run.folder.iterdir() if path.suffix == ".tmp"]


def test_what_killed_processes_left_is_removed_but_not_what_others_are_writing(tmp_path: Path) -> None:
    runs = [Run(name, CONFIG, "comparison", tmp_path) for name in ("shared", "own")]
    for run in runs:
        run.start(alone=run.name == "own")
        touch(run.folder, ".old.csv.1.tmp", "figures/.new.png.2.tmp")
        os.utime(run.folder / ".old.csv.1.tmp", (0, 0))
        run.start(alone=run.name == "own")
    left = [sorted(path.name for path in run.folder.rglob("*.tmp")) for run in runs]
    assert left == [[".new.png.2.tmp"], []]


def test_a_run_whose_folder_vanishes_says_so(tmp_path: Path) -> None:
    run = started(tmp_path)
    shutil.rmtree(run.folder)
    for write in (lambda: run.save_checkpoint({}), lambda: run.finish({})):
        with pytest.raises(UserError, match="was moved or deleted while it was running"):
            write()


def test_two_processes_never_write_one_run(tmp_path: Path) -> None:
    first = started(tmp_path)
    holder = rf"process {os.getpid()} on {re.escape(socket.gethostname())} is running"
    with pytest.raises(UserError, match=holder):
        started(tmp_path)  # a second descriptor is as good as a second process
    (tmp_path / "a" / ".holder").unlink()
    with pytest.raises(UserError, match="another process is running"):
        started(tmp_path)
    first.unlock()
    started(tmp_path)


@pytest.mark.parametrize(
    ("lr", "finishes", "said"),
    [
        (1e-2, False, r"another config: lr \(0.01 there, 0.001 now\)"),
        (1e-2, True, r"another config: lr \(0.01 there, 0.001 now\)"),
        (1e-3, True, "just finished .*; the same command shows its summary"),
    ],
)
def test_what_another_process_started_meanwhile_is_not_taken_over(
    tmp_path: Path, lr: float, finishes: bool, said: str
) -> None:
    waiting = opened(tmp_path)  # the folder does not exist yet
    other = started(tmp_path, {**CONFIG, "lr": lr})
    other.save_checkpoint({"epoch": 1})
    if finishes:
        other.finish({"score": 0.5})
    other.unlock()
    with pytest.raises(UserError, match=said):
        waiting.start()
    assert json.loads((other.folder / "config.json").read_text())["lr"] == lr


@pytest.mark.parametrize("name", ["nosuch/../keep", "..", "../keep", "", ".", " ", "a/ b", "/elsewhere", "x" * 300])
def test_a_name_that_hides_or_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    Run("keep", CONFIG, "pretraining", tmp_path).start()
    with pytest.raises(UserError, match=r"run_name is '.*' *; it must be a folder below|of 300 characters"):
        Run(name, {**CONFIG, "lr": 1e-2}, "pretraining", tmp_path)
