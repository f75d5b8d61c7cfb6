"""What a result was made with."""

import shlex

import pytest

from utils.software import software


def test_the_command_can_be_pasted_whatever_its_words_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["a/script.py", "--encoders", "runs/fold*/x.pt", "--data-root", "my films"]
    monkeypatch.setattr("sys.argv", words)
    command = str(software()["command"])
    assert shlex.split(command)[1:] == words and "'runs/fold*/x.pt'" in command
