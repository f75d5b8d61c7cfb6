"""Weights as people keep them: whatever is around the tensors, the network gets them, and no code in a file runs."""

import argparse
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from downstream_task.classifier import Classifier, load_classifier
from self_sup_classes.backbones import Backbone, library_network
from self_sup_classes.initialisation import start_from
from self_sup_classes.weights import read_state_dict
from utils.config import UserError
from utils.distributed import note_once

pytestmark = pytest.mark.usefixtures("narrow")

CLASSES = ["a", "b", "c"]
Save = Callable[[dict[str, Tensor], Path], object]


@pytest.fixture(autouse=True)
def says_all_again() -> Iterator[None]:
    note_once.cache_clear()
    yield


def trained(name: str = "resnet18") -> Classifier:
    """A classifier of one channel and three classes whose tensors all differ from a fresh one's."""
    torch.manual_seed(1)
    classifier = Classifier(Backbone(name, 1), len(CLASSES))
    for tensor in classifier.net.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 1)
    return classifier


def named(state: dict[str, Tensor], before: str) -> dict[str, Tensor]:
    return {f"{before}{name}": value for name, value in state.items()}


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + 1 for name, value in state.items()}


def in_a_row(state: dict[str, Tensor]) -> dict[str, Tensor]:
    places = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    return {f"{places.index(name.partition('.')[0])}.{name.partition('.')[2]}": state[name] for name in state}


def save(content: Callable[[dict[str, Tensor]], Any], **how: Any) -> Save:
    return lambda state, path: torch.save(content(state), path, **how)


def save_network(state: dict[str, Tensor], path: Path, parallel: bool = False) -> None:
    net = library_network("resnet18", 1)
    net.fc = nn.Linear(64, len(CLASSES))
    net.load_state_dict(state)
    torch.save(nn.DataParallel(net) if parallel else net, path)


KEPT: dict[str, Save] = {
    "clf.pth": save(lambda state: state),
    "legacy.pt": save(lambda state: state, _use_new_zipfile_serialization=False),
    "torch.safetensors": save(lambda state: state),
    "safe.bin": lambda state, path: safetensors.torch.save_file(state, path),
    "half.pt": save(lambda state: {name: value.half() for name, value in state.items()}),
    "lightning.ckpt": save(
        lambda state: {
            "epoch": 3,
            "state_dict": named(state, "model."),
            "hyper_parameters": argparse.Namespace(lr=1e-3, data=Path("x"), scores=np.ones(3), counts=defaultdict(int)),
        }
    ),
    "original_project.pt": save(
        lambda state: {**named(state, "backbone.net."), "projector.layers.0.weight": torch.zeros(512, 512)}
    ),
    "deep.pt": save(lambda state: {"model": {"module": {"encoder": named(state, "backbone.net.")}}}),
    "moco.pth.tar": save(
        lambda state: {
            "state_dict": {
                "module.queue": torch.ones(2, 5),
                **named(other(state), "module.encoder_k."),
                **named(state, "module.encoder_q."),
            }
        }
    ),
    "dino.pth": save(lambda state: {"teacher": named(other(state), "backbone."), "student": named(state, "backbone.")}),
    "ema.pt": save(lambda state: {"state_dict_ema": other(state), "state_dict": state}),
    "lightly.ckpt": save(lambda state: {"state_dict": named(in_a_row(state), "backbone.")}),
    "vissl.torch": save(
        lambda state: {"classy_state_dict": {"base_model": {"model": {"trunk": named(state, "_feature_blocks.")}}}}
    ),
    "dropout.pt": save(lambda state: {name.replace("fc.", "fc.1."): value for name, value in state.items()}),
    "network.pt": save_network,
    "parallel.pt": lambda state, path: save_network(state, path, parallel=True),
}


@pytest.mark.parametrize("name", list(KEPT))
def test_a_network_comes_back_from_wherever_it_is_kept(tmp_path: Path, name: str) -> None:
    classifier = trained()
    KEPT[name](classifier.net.state_dict(), tmp_path / name)
    close = 1e-3 if name == "half.pt" else 0
    again = load_classifier(tmp_path / name, "resnet18", 1, CLASSES).net.state_dict()
    torch.testing.assert_close(dict(again), dict(classifier.net.state_dict()), rtol=close, atol=close)
    assert all(value.dtype in (torch.float32, torch.int64) for value in again.values())
    start = start_from(str(tmp_path / name), "resnet18", 1, seed=0)
    backbone = start.backbone.net.state_dict()
    torch.testing.assert_close(dict(backbone), {name: again[name] for name in backbone}, rtol=close, atol=close)
    assert start.provenance is None
    assert "2 of " in start.note and start.note.replace("backbone.9", "fc").count("fc") == 1


def test_what_is_taken_and_left_out_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KEPT["moco.pth.tar"](trained().net.state_dict(), tmp_path / "moco.pth.tar")
    note, again = (start_from(str(tmp_path / "moco.pth.tar"), "resnet18", 1, seed=0).note for _ in range(2))
    assert note == again
    assert capsys.readouterr().err == f"note: {note}\n"
    assert "the tensors of state_dict.module.encoder_q are taken" in note
    assert "left out 1 of state_dict.module.queue, 128 of state_dict.module.encoder_k" in note
    assert "2 of state_dict.module.encoder_q.fc" in note
    torch.save({"state_dict": {}, "x": argparse.Namespace(), **trained().net.state_dict()}, tmp_path / "objects.pt")
    read_state_dict(tmp_path / "objects.pt")
    assert "only its tensors are read, not its pickled argparse.Namespace" in capsys.readouterr().err


class Trap:
    """What an attacker puts into a pickle."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("new", [True, False])
def test_no_code_in_a_file_runs(tmp_path: Path, new: bool) -> None:
    state = trained().net.state_dict()
    evil = {"state_dict": state, "hyper_parameters": Trap(tmp_path / "trapped")}
    torch.save(evil, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=new)
    start_from(str(tmp_path / "evil.ckpt"), "resnet18", 1, seed=0)
    assert not (tmp_path / "trapped").exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "trapped").exists()  # so would torch without care


def test_an_encoder_does_without_a_head_or_projector_but_a_classifier_does_not(tmp_path: Path) -> None:
    state = trained().net.state_dict()
    projector = {"projector.0.weight": torch.ones(8, 64), "projector.1.running_mean": torch.zeros(8)}
    torch.save({**state, **projector}, tmp_path / "both.pt")
    assert start_from(str(tmp_path / "both.pt"), "resnet18", 1, 0).note.endswith("left out 2 of fc, 2 of projector")
    load_classifier(tmp_path / "both.pt", "resnet18", 1, CLASSES)
    with pytest.raises(UserError, match="it has 3 outputs, but there are 2 classes, a, b"):
        load_classifier(tmp_path / "both.pt", "resnet18", 1, CLASSES[:2])
    torch.save({name: value for name, value in state.items() if name[:2] != "fc"}, tmp_path / "headless.pt")
    assert not start_from(str(tmp_path / "headless.pt"), "resnet18", 1, 0).note
    with pytest.raises(UserError, match=r"fc.weight: found nothing, expected \(3, 64\)"):
        load_classifier(tmp_path / "headless.pt", "resnet18", 1, CLASSES)
    layers = {"fc.0.weight": torch.ones(5, 64), "fc.0.bias": torch.ones(5), "fc.2.weight": torch.ones(3, 5)}
    torch.save({**state, **layers}, tmp_path / "layers.pt")
    with pytest.raises(UserError, match=r"fc.0.weight: found \(5, 64\), expected nothing"):
        load_classifier(tmp_path / "layers.pt", "resnet18", 1, CLASSES)


def test_a_deeper_network_is_not_cut_to_fit(tmp_path: Path) -> None:
    extra = {"layer1.2.conv1.weight": torch.ones(8, 8, 3, 3)}
    torch.save({"state_dict": named({**trained().net.state_dict(), **extra}, "model.")}, tmp_path / "deeper.pt")
    with pytest.raises(UserError, match=r"layer1.2.conv1.weight: found \(8, 8, 3, 3\), expected nothing"):
        start_from(str(tmp_path / "deeper.pt"), "resnet18", 1, 0)


def test_counters_may_be_absent_as_torch_allows(tmp_path: Path) -> None:
    state = {name: value for name, value in trained().net.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pt")
    again = load_classifier(tmp_path / "old.pt", "resnet18", 1, CLASSES).net.state_dict()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    del state["bn1.running_mean"]
    torch.save(state, tmp_path / "older.pt")
    with pytest.raises(UserError, match=r"1 of 128 tensors differ, first bn1.running_mean: found nothing"):
        load_classifier(tmp_path / "older.pt", "resnet18", 1, CLASSES)


def test_timms_efficientnets_have_torchvisions_weights_by_other_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("efficientnet_b0", in_chans=1, num_classes=len(CLASSES)).eval()
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))  # each BatchNorm its own, so that no two can be confused
    torch.save(theirs.state_dict(), tmp_path / "timm.pt")
    ours = load_classifier(tmp_path / "timm.pt", "efficientnet_b0", 1, CLASSES).eval()
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights", "not a state_dict that torch can read"),
        (b"<!DOCTYPE html><html>Sign in", "a web page: the download did not work"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file, as Keras writes"),
        (b"", "not a state_dict that torch can read"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_state_dict(tmp_path / "absent.pt")
    for content, found in (([1, 2], "a list"), ({"epoch": 3, "lr": 0.1}, "a dict of epoch, lr"), ({}, "an empty dict")):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(UserError, match=f"does not hold a state_dict: expected tensors by name, found {found}"):
            read_state_dict(tmp_path / "odd.pt")
    torch.save({"a": torch.ones(2), 0: torch.ones(3)}, tmp_path / "names.pt")
    with pytest.raises(UserError, match=r"does not fit a resnet18 .*: found a, 0, expected conv1.weight, bn1.weight"):
        start_from(str(tmp_path / "names.pt"), "resnet18", 1, 0)
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(UserError, match="TorchScript"):
        read_state_dict(tmp_path / "script.pt")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = trained().net.state_dict()
    state["bn1.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"not finite, first in bn1\.bias"):
        start_from(str(tmp_path / "nan.pt"), "resnet18", 1, 0)


# What torchvision's files of ImageNet weights (IMAGENET1K_V1) hold: how many tensors, and whether BatchNorm's counters
# are among them. The ResNets are of 2017, before torch had counters: whoever compares names finds all of
# num_batches_tracked missing, from bn1 to layer4 (OceanPang/Libra_R-CNN#4, yu-changqian/TorchSeg#45). The EfficientNets
# were converted from timm's in 2021, with counters. The sizes of the files in torchvision's documentation agree: those
# of torch.save with these tensors differ by less than 0.02 MB, and those of EfficientNets without counters by more.
FILES = {
    "resnet18": ("resnet18-f37072fd.pth", 102, False),
    "resnet50": ("resnet50-0676ba61.pth", 267, False),
    "efficientnet_b0": ("efficientnet_b0_rwightman-7f5810bc.pth", 360, True),
}


@pytest.mark.usefixtures("torchvisions")
@pytest.mark.parametrize("name", list(FILES))
def test_torchvisions_imagenet_files_load(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda *arguments, **named: None)  # quick: all is overwritten
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda self: None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # the file is there
    file, count, counters = FILES[name]
    plain, path = models.get_model(name), tmp_path / "hub" / "checkpoints" / file
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    tensors = OrderedDict(  # one random number for each, so that files are small
        (key, torch.rand(()).to(value.dtype).expand(value.shape))
        for key, value in plain.state_dict().items()
        if counters or not key.endswith("num_batches_tracked")
    )
    assert len(tensors) == count
    torch.save(tensors, path)
    plain.load_state_dict(torch.load(path, weights_only=True), strict=True)  # torch takes it
    expected = {
        key: value for key, value in plain.state_dict().items() if key.split(".")[0] not in ("fc", "classifier")
    }
    for encoder in ("imagenet", f"imagenet:{path}"):
        backbone = start_from(encoder, name, 3, seed=0).backbone
        found, [(conv, norm)] = backbone.net.state_dict(), backbone.structure.first_convs
        assert found.keys() == expected.keys()
        scaled = {f"{conv}.weight", f"{norm}.running_mean"}  # see test_imagenet.py
        assert scaled == {key for key, value in expected.items() if not torch.equal(found[key], value)}


def test_what_is_downloaded_is_compared_with_the_hash_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = SimpleNamespace()

    def download(url: str, path: str, hash_prefix: str) -> None:
        asked.url, asked.hash = url, hash_prefix
        torch.save(models.get_model("resnet18").state_dict(), path)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    start_from("imagenet", "resnet18", 1, seed=0)
    assert (asked.url, asked.hash) == ("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")
