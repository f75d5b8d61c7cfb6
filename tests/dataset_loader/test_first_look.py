"""Classes and findings counted by part, and names that only a program tells from each other."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dataset_loader.first_look import say_labels


def columns(labels: list[Any], *names: str) -> Any:
    return SimpleNamespace(labels=np.array(labels), label_names=names)


def test_classes_are_counted_and_odd_ones_said(capsys: pytest.CaptureFixture[str]) -> None:
    names = "Normal", "normal", "Viral Pneumonia", "viral_pneumonia\u200b", "Mass"
    labels = np.repeat(np.arange(5), [1200, 10, 12, 12, 3])
    parts = np.where(np.arange(1237) < 1100, "train", np.where(np.arange(1237) < 1205, "val", "test"))
    say_labels(columns(labels.tolist(), *names), parts)
    header, first, second, *rest = capsys.readouterr().err.splitlines()
    assert header.split() == ["class", "train", "val", "test"]
    assert first.split() == ["Normal", "1,100", "100", "0"] and second.split() == ["normal", "0", "5", "5"]
    assert len({len(line.replace("\u200b", "")) for line in (header, first, second)}) == 1
    alike, _, few = rest[-3:]
    assert "'Normal' and 'normal' differ only" in alike
    assert few == "warning: classes of fewer than 10 films: Mass (3)"


def test_findings_are_counted_where_they_are_present(capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    say_labels(columns([[1, nan], [-1, 0], [1, 1]], "Edema", "Mass"), np.array(["train", "train", "test"]))
    told = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert told[1:] == [["Edema", "1", "0", "1"], ["Mass", "0", "0", "1"]]
    say_labels(columns([[]] * 3), np.array(["train"] * 3))
    assert capsys.readouterr().err == ""
