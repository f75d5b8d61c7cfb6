"""A folder to share: its weights load elsewhere, know what they have seen, and its terms are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from self_sup_classes.backbones import save_backbone
from self_sup_classes.initialisation import random_backbone, start_from
from self_sup_classes.provenance import Provenance
from utils.files import write_json

CONFIG = {"backbone": "resnet18", "in_channels": 1, "dataset": "phantom", "also": [], "start": "random", "img_res": 64}
CONFIG |= {"recipe": "short", "views": 2, "batch_size": 64, "lr": 1e-3, "barlow_lambda": 5e-3}
SEEN = np.random.default_rng(0).integers(0, 256, (5, 49), dtype=np.uint8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a finished pretraining that are read."""
    folder = tmp_path / "runs" / "films"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "summary.json", {"images": 1200, "steps": 30})
    facts = {"data": {"split_hash": "abc", "images_by_part": {"train": 5}}, "commit": "", "versions": {"torch": "2"}}
    write_json(folder / "environment.json", {"kind": "pretraining", **facts})
    backbone = random_backbone("resnet18", 1, seed=1)
    save_backbone(folder / "resnet18_final_state_dict.pt", backbone, Provenance("abc", SEEN))
    return folder


def share(script: Any, run: Path, tmp_path: Path, *flags: str) -> Any:
    return script("selfsup_task/share_weights.py", "--run", str(run), "--output", str(tmp_path / "shared"), *flags)


def test_the_weights_give_the_reference_elsewhere_and_know_what_they_have_seen(
    script: Any, run: Path, tmp_path: Path
) -> None:
    done = share(script, run, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "shared" / "films"
    model = resnet18()
    model.conv1, model.fc = nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.Identity()  # type: ignore[assignment]
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"), strict=True)
    reference = json.loads((folder / "reference.json").read_text())
    scale = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    size = scale["input_size"][1:]
    with Image.open(folder / "reference.png") as film:
        gray = np.asarray(film.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    with torch.no_grad():
        found = model.eval()(((torch.from_numpy(gray) - scale["mean"][0]) / scale["std"][0])[None, None])[0]
    expected = torch.tensor(reference["features"])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.max().item())
    start = start_from(str(folder / "model.safetensors"), "resnet18", 1, seed=0)
    assert start.provenance is not None and not start.note
    assert start.provenance.list_hash == Provenance("abc", SEEN).list_hash
    card = (folder / "README.md").read_text()
    assert "1,200 X-rays" in card and "synthetic X-rays, drawn by this software (MIT)" in card
    assert (folder / "model.safetensors").stat().st_size < 23e6


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({"dataset": "covid"}, "covid"),
        ({"also": ["chexpert:/data", "/films"]}, "chexpert and folder"),
        ({"start": "imagenet:weights.pth"}, "start"),
        ({"start": "runs/pretrain/other/resnet18_final_state_dict.pt"}, "start"),
    ],
)
def test_terms_that_nobody_has_stated_are_asked_for(
    script: Any, run: Path, tmp_path: Path, changes: dict[str, Any], unknown: str
) -> None:
    write_json(run / "config.json", {**CONFIG, **changes})
    done = share(script, run, tmp_path)
    assert done.returncode == 1 and f"whether weights from {unknown} may be shared is not known" in done.stderr
    assert not (tmp_path / "shared").exists()
    stated = [f"{name}: as its owner allows" for name in unknown.split(" and ")]
    done = share(script, run, tmp_path, "--terms", *stated)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "shared" / "films" / "README.md").read_text()
    assert all(f"| {name} | as its owner allows |" in card for name in unknown.split(" and "))


def test_an_unfinished_run_is_not_shared(script: Any, run: Path, tmp_path: Path) -> None:
    (run / "summary.json").unlink()
    done = share(script, run, tmp_path)
    assert done.returncode == 1 and "is not a finished pretraining" in done.stderr
