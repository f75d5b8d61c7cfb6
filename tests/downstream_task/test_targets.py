"""Targets: CheXpert's policies on hand-made rows, losses against torch's own, labels that are refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from downstream_task.targets import TargetConfig, Targets, apply_policy, check_learnable, loss_function, read_targets
from utils.config import UserError

NAN = float("nan")
ROWS = np.array([[1, 0], [-1, NAN], [NAN, -1]], dtype=np.float32)


@pytest.mark.parametrize(
    ("uncertain", "blank", "expected"),
    [
        ("ignore", "zero", [[1, 0], [NAN, 0], [0, NAN]]),
        ("zeros", "zero", [[1, 0], [0, 0], [0, 0]]),
        ("ones", "zero", [[1, 0], [1, 0], [0, 1]]),
        ("ignore", "ignore", [[1, 0], [NAN, NAN], [NAN, NAN]]),
        ("ones", "ignore", [[1, 0], [1, NAN], [NAN, 1]]),
    ],
)
def test_policies_on_hand_made_rows(uncertain: str, blank: str, expected: list[list[float]]) -> None:
    np.testing.assert_array_equal(apply_policy(ROWS, uncertain, blank), np.array(expected, dtype=np.float32))


def config(**changes: Any) -> TargetConfig:
    own = {"findings": ["Edema"], "uncertain": "ignore", "blank": "zero", "class_weights": False}
    return TargetConfig(**{**own, **changes})


def labelled(labels: np.ndarray, names: tuple[str, ...], own: tuple[str, ...] = (), parts: str = "") -> Any:
    """Data of which only the labels are known; `parts` has the last letter of the part of each film."""
    columns = SimpleNamespace(labels=labels, label_names=names, default_findings=own, root=Path("x"))
    places = {"n": "train", "l": "val", "t": "test"}
    return SimpleNamespace(columns=columns, places=np.array([places[letter] for letter in parts]))


def test_the_findings_of_a_data_set_are_those_that_each_part_can_teach(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("Edema", "Hernia", "Mass", "Pneumonia")
    labels = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 0, 1, 1], [0, 0, 0, NAN]], dtype=np.float32)
    in_two_parts = labelled(labels, names, parts="nnll")
    for _ in range(2):
        assert read_targets(in_two_parts, config(findings=[])).names == ("Edema", "Mass", "Pneumonia")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "left out: Hernia (train 1/1, val 0/2)" in told
    assert read_targets(in_two_parts, config(findings=[], blank="ignore")).names == ("Edema", "Mass")
    own = labelled(labels, names, own=("Hernia", "Pneumonia"), parts="nnll")
    assert read_targets(own, config(findings=[])).names == ("Pneumonia",)
    assert read_targets(own, config(findings=["all"])).names == names
    assert read_targets(own, config(findings=["Hernia"])).names == ("Hernia",)
    with pytest.raises(UserError, match=r"Hernia \(train 1/1, val 0/2.*try --findings Edema Mass Pneumonia"):
        read_targets(labelled(labels, names, own=("Hernia",), parts="nnll"), config(findings=[]))
    with pytest.raises(UserError, match=r"label more films"):
        read_targets(labelled(labels, names, parts="nnnl"), config(findings=[]))


def test_findings_are_chosen_by_name_and_mistakes_are_said() -> None:
    xrays = labelled(ROWS, ("Cardiomegaly", "Edema"))
    targets = read_targets(xrays, config())
    assert targets.names == ("Edema",)
    np.testing.assert_array_equal(targets.values, [[0], [0], [NAN]])
    with pytest.raises(UserError, match="did you mean 'Edema'"):
        read_targets(xrays, config(findings=["Oedema"]))
    assert read_targets(xrays, config(findings=["all"])).names == ("Cardiomegaly", "Edema")
    with pytest.raises(UserError, match="did you mean 'zeros'"):
        read_targets(xrays, config(uncertain="zero"))


def test_class_weights_are_torchs_with_inverse_shares() -> None:
    targets = Targets(np.array([0, 0, 0, 1, 2, 2]), ("a", "b", "c"))
    logits, batch = torch.randn(4, 3), torch.tensor([0, 3, 4, 5])
    weighted = loss_function(targets, np.arange(6), class_weights=True)(logits, batch)
    labels = torch.tensor([0, 1, 2, 2])
    torch.testing.assert_close(weighted, F.cross_entropy(logits, labels, torch.tensor([6 / 9, 6 / 3, 6 / 6])))
    plain = loss_function(targets, np.arange(6), class_weights=False)(logits, batch)
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels))


def test_unknown_findings_do_not_count() -> None:
    targets = Targets(np.array([[1, NAN], [0, 1], [NAN, 0]], dtype=np.float32), ("a", "b"))
    logits = torch.randn(3, 2, requires_grad=True)
    loss = loss_function(targets, np.arange(3), class_weights=False)(logits, torch.arange(3))
    known = torch.tensor([[0, 0], [1, 0], [1, 1], [2, 1]])
    expected = F.binary_cross_entropy_with_logits(logits[known[:, 0], known[:, 1]], torch.tensor([1.0, 0, 1, 0]))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == logits.grad[2, 0] == 0


def test_what_cannot_be_learnt_is_refused() -> None:
    classes = Targets(np.array([0, 0, 1, 2, 2]), ("COVID", "Normal", "TB"))
    lacking = r"no image of class 'Normal' \(1 in all\), 'TB' \(2 in all\) among the 2 of the train part.*blank, merge"
    with pytest.raises(UserError, match=lacking):
        check_learnable(classes, {"the train part": np.array([0, 1])})
    findings = Targets(np.zeros((3, 1), dtype=np.float32), ("Edema",))
    with pytest.raises(UserError, match="'Edema' has 0 positive and 3 negative"):
        check_learnable(findings, {"the train part": np.arange(3)})
