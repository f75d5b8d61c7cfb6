"""A folder to share: its weights load elsewhere, know what they have seen, and its terms are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import nn
from torchvision.models import resnet18

from self_sup_classes import initialisation
from self_sup_classes.backbones import save_backbone, weights_file
from self_sup_classes.initialisation import random_backbone, seen_by, start_from, weights_hashes
from self_sup_classes.provenance import Provenance
from utils.config import UserError
from utils.files import content_hash, write_json
from utils.report.runs import find_runs

CONFIG = {"backbone": "resnet18", "in_channels": 1, "dataset": "phantom", "also": [], "start": "random", "img_res": 64}
CONFIG |= {"recipe": "short", "views": 2, "batch_size": 64, "lr": 1e-3, "barlow_lambda": 5e-3, "run_name": ""}
SEEN = np.random.default_rng(0).integers(0, 256, (5, 49), dtype=np.uint8)


def finished(folder: Path, **changes: Any) -> Path:
    """Write the files of a finished pretraining that are read."""
    config = {**CONFIG, **changes}
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "summary.json", {"images": 1200, "steps": 30})
    facts = {"data": {"split_hash": "abc", "images_by_part": {"train": 5}}, "commit": "", "versions": {"torch": "2"}}
    write_json(folder / "environment.json", {"kind": "pretraining", **facts})
    backbone = random_backbone(config["backbone"], 1, seed=1)
    save_backbone(folder / weights_file(config["backbone"]), backbone, Provenance("abc", SEEN))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished(tmp_path / "runs" / "films")


def share(script: Any, run: Path, tmp_path: Path, *flags: str) -> Any:
    return script("selfsup_task/share_weights.py", "--run", str(run), "--output", str(tmp_path / "shared"), *flags)


def assert_gives_the_reference(network: nn.Module, image: torch.Tensor, folder: Path) -> None:
    expected = torch.tensor(json.loads((folder / "reference.json").read_text())["features"])
    with torch.no_grad():
        found = network.eval()(image[None])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.max().item())


def test_the_weights_give_the_reference_elsewhere_and_know_what_they_have_seen(
    script: Any, run: Path, tmp_path: Path
) -> None:
    done = share(script, run, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "shared"
    model = resnet18()
    model.conv1, model.fc = nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.Identity()  # type: ignore[assignment]
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"), strict=True)
    scale = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    with Image.open(folder / "reference.png") as film:
        gray = torch.from_numpy(np.asarray(film, dtype=np.float32) / 255)
    assert list(gray[None].shape) == scale["input_size"]
    assert_gives_the_reference(model, ((gray - scale["mean"][0]) / scale["std"][0])[None], folder)
    start = start_from(str(folder / "model.safetensors"), "resnet18", 1, seed=0)
    assert start.provenance is not None and not start.note
    assert find_runs([folder], [], Path("none")) == ([], []), "a report passes over it: it is no run"
    assert start.provenance.list_hash == Provenance("abc", SEEN).list_hash
    card = (folder / "README.md").read_text()
    assert "1,200 X-rays" in card and "synthetic X-rays, drawn by this software (MIT)" in card
    assert (folder / "model.safetensors").stat().st_size < 23e6


def test_timm_opens_the_folder_by_itself(script: Any, tmp_path: Path) -> None:
    """Network, channels, weights, size and input scale are in it, as in a repository of a model hub."""
    run = finished(tmp_path / "films", backbone="timm/test_efficientnet", img_res=40)
    assert share(script, run, tmp_path).returncode == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'shared'}", pretrained=True)
    prepare: Any = create_transform(**resolve_model_data_config(model))
    with Image.open(tmp_path / "shared" / "reference.png") as film:
        assert_gives_the_reference(model, prepare(film), tmp_path / "shared")


def test_the_card_has_scores_and_no_file_has_a_path_of_the_machine(script: Any, tmp_path: Path) -> None:
    secret = f"{tmp_path}/secret"
    changes = {"data_root": secret, "also": [f"nih:{secret}"], "exclude": [secret], "start": f"imagenet:{secret}.pth"}
    run, scores = finished(tmp_path / "films", **changes), tmp_path / "test" / "nih"
    stated = "--terms", "start: Apache 2.0", "--scores", str(scores)
    done = share(script, run, tmp_path, *stated)
    assert done.returncode == 1 and "has no scores of test images" in done.stderr
    curve = {"way": "linear", "headline": True, "mean": 0.7, "low": 0.65, "high": 0.75}
    rows = [{"arm": arm, "labels": labels, **curve} for arm in ("random", "films") for labels in (187, 20)]
    write_json(scores / "all" / "summary.json", {"metric": "auroc"})
    pd.DataFrame(rows).to_csv(scores / "all" / "curves.csv")
    done = share(script, run, tmp_path, *stated)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "| films | linear | 20 | 0.700 [0.650, 0.750] |\n| films | linear | 187 |" in card
    assert "AUROC" in card and "start imagenet." in card and "| start | Apache 2.0 |" in card
    for file in (tmp_path / "shared").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file


def test_a_folder_of_something_else_is_left_alone(script: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "README.md").write_text("mine")
    (tmp_path / "shared" / "setup.py").touch()
    done = share(script, run, tmp_path)
    assert done.returncode == 1 and "holds other files, such as setup.py" in done.stderr
    assert (tmp_path / "shared" / "README.md").read_text() == "mine"


def test_the_folder_is_the_start_that_is_called_shared(
    script: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initialisation, "SHARED_FOLDER", tmp_path / "shared")
    with pytest.raises(UserError, match="where there is none; start from imagenet or a file of weights"):
        start_from("shared", "resnet18", 1, seed=0)
    assert weights_hashes(["shared"]) == {}
    assert share(script, run, tmp_path).returncode == 0
    start, original = start_from("shared", "resnet18", 1, seed=0), random_backbone("resnet18", 1, seed=1)
    for found, expected in zip(start.backbone.parameters(), original.parameters(), strict=True):
        assert torch.equal(found, expected.half().float())
    for provenance in (start.provenance, seen_by("shared")):
        assert provenance is not None and provenance.list_hash == Provenance("abc", SEEN).list_hash
    file = tmp_path / "shared" / "model.safetensors"
    assert weights_hashes(["shared"]) == {"shared": content_hash(file)}
    with pytest.raises(UserError, match=r"shared is a resnet18 with 1 .* not a resnet50 with 1; give --backbone "):
        start_from("shared", "resnet50", 1, seed=0)
    with pytest.raises(UserError, match="not a resnet18 with 3; give --backbone resnet18 --in-channels 1"):
        start_from("shared", "resnet18", 3, seed=0)

    further = finished(tmp_path / "further", start="shared", dataset="nih")
    card = script("selfsup_task/share_weights.py", "--run", str(further), "--output", str(tmp_path / "next"))
    assert card.returncode == 0, card.stderr
    assert "| start | phantom: synthetic X-rays, drawn by" in (tmp_path / "next" / "README.md").read_text()


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
    card = (tmp_path / "shared" / "README.md").read_text()
    assert all(f"| {name} | as its owner allows |" in card for name in unknown.split(" and "))


def test_an_unfinished_run_is_not_shared(script: Any, run: Path, tmp_path: Path) -> None:
    (run / "summary.json").unlink()
    done = share(script, run, tmp_path)
    assert done.returncode == 1 and "is not a finished pretraining" in done.stderr
