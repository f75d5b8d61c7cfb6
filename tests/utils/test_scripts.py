"""Entry scripts: each key is a flag with its comment as help; a mistake on the command line is one sentence."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utils import signals
from utils.config import REPO_ROOT, UserError
from utils.scripts import flags, key_comments, parse_flags
from utils.signals import Stopped, signals_wait, stop_requested

SCRIPT = """
import time
from dataclasses import dataclass
from utils.config import Config, UserError
from utils.scripts import flags, run_script

def wait():
    print("ready", flush=True)
    time.sleep(60)

config = {
    "lr": 1e-3,
    "num_epochs": 3,  # passes; 100% of the images each
    # a comment on a line of its own belongs to no key
    "run_name": "",
}

if __name__ == "__main__":
    config = flags(config, "What it does, to 50%.", __file__, first="run_name")
    if config["run_name"] == "imports":
        wait()

@dataclass(frozen=True, kw_only=True)
class StoneConfig(Config):
    lr: float
    num_epochs: int
    run_name: str

def main(config: StoneConfig) -> None:
    if config.run_name == "bad":
        raise UserError("this is bad.")
    if config.run_name == "bug":
        raise RuntimeError("a bug")
    if config.run_name == "works":
        wait()
    print(config)

run_script(main, StoneConfig, config)
"""

CONFIG: dict[str, Any] = {
    "lr": 1e-3,
    "num_epochs": 3,
    "projector_dims": [8],
    "names": [],
    "run_name": "",
    "flag": False,
    "finetune": {"num_steps": 5, "lrs": [0.1]},
}


def parsed(*arguments: str) -> dict[str, Any]:
    return parse_flags(CONFIG, {}, "What it does.", arguments)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "stones.py").write_text(SCRIPT, encoding="utf-8")
    return tmp_path / "stones.py"


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO_ROOT), "COLUMNS": "150"}


def call(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=os.sep, env=ENVIRONMENT)


def started(path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The script, once it has said that it is ready."""
    command, pipe = [sys.executable, path, *arguments], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {}),
        (["--lr", "1"], {"lr": 1.0}),
        (["--lr=2e-4"], {"lr": 2e-4}),
        (["--lr", "-1e-3"], {"lr": -1e-3}),
        (["--num-epochs", "-2"], {"num_epochs": -2}),
        (["--num_epochs", "5"], {"num_epochs": 5}),
        (["--projector-dims", "8", "-16"], {"projector_dims": [8, -16]}),
        (["--projector-dims"], {"projector_dims": []}),
        (["--names", "a b", "c"], {"names": ["a b", "c"]}),
        (["--run-name", "x y"], {"run_name": "x y"}),
        (["--flag"], {"flag": True}),
        (["--flag", "--no-flag"], {"flag": False}),
        (["--finetune.num-steps", "6"], {"finetune": {"num_steps": 6, "lrs": [0.1]}}),
        (["--finetune.num_steps=6", "--finetune.lrs", "1", "2"], {"finetune": {"num_steps": 6, "lrs": [1.0, 2.0]}}),
    ],
)
def test_each_key_is_a_typed_flag(arguments: list[str], changes: dict[str, Any]) -> None:
    assert repr(parsed(*arguments)) == repr({**CONFIG, **changes})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num-epoch", "3"], "'--num-epoch' is not a flag or a value of one; did you mean --num-epochs? "),
        (
            ["--finetune.num-step=3"],
            "'--finetune.num-step' is not a flag or a value of one; did you mean --finetune.num-",
        ),
        (["--no-flagg"], "'--no-flagg' is not a flag or a value of one; did you mean --no-flag?"),
        (["3"], "'3' is not a flag or a value of one; --help lists them all."),
        (["--num-epochs", "three"], "--num-epochs: 'three' is not a whole number; --help lists the flags."),
        (["--num-epochs", "3.0"], "--num-epochs: '3.0' is not a whole number"),
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--projector-dims", "8", "x"], "--projector-dims: 'x' is not a whole number"),
        (["--lr"], "--lr: expected one argument"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        parsed(*arguments)
    assert str(raised.value).startswith(sentence)


REAL = {"num_epochs": 20, "projector_dims": [64, 64], "finetune": {"num_steps": 300}}


@pytest.mark.parametrize(
    ("arguments", "epochs", "dims", "steps"),
    [
        ("", 3, [8], 5),
        ("--dataset phantom_marker", 3, [8], 5),
        ("--dataset covid", 20, [64, 64], 300),
        ("--dataset covid --num-epochs 3", 3, [64, 64], 300),
        ("--finetune.num-steps 7 --dataset=covid", 20, [64, 64], 7),
    ],
)
def test_real_xrays_change_defaults_and_flags_win(arguments: str, epochs: int, dims: list[int], steps: int) -> None:
    found = parse_flags({"dataset": "phantom", **CONFIG}, {}, "", arguments.split(), REAL)
    expected = {**CONFIG, "dataset": found["dataset"], "num_epochs": epochs, "projector_dims": dims}
    assert found == {**expected, "finetune": {"num_steps": steps, "lrs": [0.1]}}


def test_the_data_sets_name_goes_into_the_run_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", "--dataset", "covid"])
    found = flags({"dataset": "phantom", "run_name": "pretrain/{dataset}"}, "")
    assert found == {"dataset": "covid", "run_name": "pretrain/covid"}


def test_torchrun_is_answered_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            flags(CONFIG, "", __file__)
        assert ended.value.code == 1
        said.append(capsys.readouterr().err)
        assert flags(CONFIG, "", __file__, torchrun=True) == CONFIG
    assert all("does not run under torchrun" in one and "once for each GPU" in one for one in said)


def test_comments_are_found_by_key_whatever_the_values_hold() -> None:
    lines = ["config = {", "'a': '# no',", "'b': [  # two", "1,", "],", "**c,  # three", "'d': 1,  # 4 #5", "}"]
    assert key_comments("\n".join(lines)) == {"b": "two", "d": "4 #5"}


def test_help_shows_comments_those_of_the_scripts_own_file_first_and_values_for_real_xrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = 'c = {\n"lr": 1,  # own words\n}\nreal_xrays: dict = {\n"lr": 3,  # 2 gained 5% less\n}\n'
    (tmp_path / "own.py").write_text(own)
    other = 'c = {\n"lr": 1,  # other words\n"finetune": {\n"num_steps": 1,  # steps of a stone\n},\n}\n'
    (tmp_path / "other.py").write_text(other)
    monkeypatch.setattr("sys.argv", ["script.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        files = [str(tmp_path / name) for name in ("own.py", "other.py")]
        flags(CONFIG, "What it does.", *files, real_xrays={"lr": 3.0})
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "--lr VALUE own words (default: 0.001; real X-rays: 3.0 (2 gained 5% less))" in text
    assert "--finetune.num-steps VALUE steps of a stone (default: 5)" in text
    assert text.count("(default: False)") == 1
    assert "other words" not in text


def test_a_script_as_a_user_calls_it(path: Path) -> None:
    text = " ".join(call(path, "--help").stdout.split())
    assert "What it does, to 50%." in text
    assert "--num-epochs VALUE passes; 100% of the images each (default: 3)" in text
    assert "belongs to no key" not in text
    done = call(path, "some/run", "--num-epochs", "4")
    assert done.stdout == "StoneConfig(lr=0.001, num_epochs=4, run_name='some/run')\n"


def test_a_users_mistake_is_one_line_and_a_bug_a_traceback(path: Path) -> None:
    unknown, bad, bug = call(path, "--num-epoch", "4"), call(path, "bad"), call(path, "bug")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert unknown.stderr.startswith("error: '--num-epoch' is not a flag")
    assert (bad.returncode, bad.stderr) == (1, "error: this is bad.\n")
    assert bug.returncode == 1 and "Traceback" in bug.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("name", "signalled", "code"), [("imports", "SIGINT", 130), ("works", "SIGTERM", 143), ("works", "SIGHUP", 129)]
)
def test_a_signal_ends_a_script_without_a_traceback(path: Path, name: str, signalled: str, code: int) -> None:
    number = signal.Signals[signalled]
    signal.signal(number, signal.SIG_DFL)  # a shell that runs the tests in the background ignores SIGINT
    process = started(path, name)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    expected = f"\n{number.name}: stopping\n"
    if name == "works":
        expected += "stopped; the same command resumes from the last checkpoint, if there is one yet.\n"
    assert said == expected


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")
def test_a_signal_that_nohup_ignores_stays_ignored(path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started(path, "works")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.3)
    process.kill()
    process.communicate()


def test_the_first_signal_waits_for_the_end_of_a_block_and_the_second_does_not(signals_here: None) -> None:
    done = []
    with pytest.raises(Stopped) as stopped, signals_wait():
        signal.raise_signal(signal.SIGTERM)
        assert stop_requested()
        done.append("held back")
    assert (done, stopped.value.code) == (["held back"], 143)
    signals._signals.number = 0
    with pytest.raises(Stopped), signals_wait():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        done.append("too late")
    signals._signals.number = 0
    with pytest.raises(Stopped), signals_wait():
        signal.raise_signal(signal.SIGTERM)
        with signals_wait(False):
            done.append("too late")
    assert done == ["held back"]
