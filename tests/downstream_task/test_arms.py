"""Arms of several pretrainings, and encoders that were trained on from other weights."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import open_xrays
from downstream_task.compare_networks import named_arms
from self_sup_classes.backbones import save_backbone
from self_sup_classes.initialisation import random_backbone
from self_sup_classes.provenance import NOTHING_SEEN, Provenance, provenance_of
from selfsup_task.pretraining import PretrainConfig, build_model, provenance
from selfsup_task.train_barlow_twins import config as PRETRAINING
from utils.config import RUNS_ROOT, UserError, make_config

pytestmark = pytest.mark.usefixtures("narrow")


def save_encoders(folder: Path, seeds: int) -> None:
    for seed in range(seeds):
        backbone = random_backbone("resnet18", 1, seed)
        (folder / f"s{seed}").mkdir(parents=True)
        save_backbone(folder / f"s{seed}" / "resnet18_final_state_dict.pt", backbone, NOTHING_SEEN)


def test_the_draws_take_the_pretrainings_of_a_pattern_in_turn(tmp_path: Path) -> None:
    save_encoders(RUNS_ROOT / tmp_path.name, 3)
    pattern = f"runs/{tmp_path.name}/s*/resnet18_final_state_dict.pt"
    random, arm = named_arms(["random", pattern])
    assert (random.name, random.encoders) == ("random", ("random",))
    assert arm.name == "pretrained"
    assert arm.encoders == tuple(pattern.replace("s*", f"s{seed}") for seed in range(3))
    assert [arm.encoder(draw) for draw in range(4)] == [arm.encoders[k] for k in (0, 1, 2, 0)]
    absolute = named_arms(
        [str(RUNS_ROOT / tmp_path.name / "s[01]" / "resnet18_final_state_dict.pt"), "a/b/c_state_dict.pt"]
    )
    assert absolute[0].name.endswith("-s01") and len(absolute[0].encoders) == 2
    (RUNS_ROOT / tmp_path.name / "other").mkdir()
    save_encoders(RUNS_ROOT / tmp_path.name / "other", 2)
    recipes = [pattern, pattern.replace("/s*", "/other/s*")]
    assert [one.name for one in named_arms(recipes)] == [f"{tmp_path.name}-s", "other-s"]
    with pytest.raises(UserError, match="no file matches"):
        named_arms(["runs/nothing*/resnet18_final_state_dict.pt"])


def test_a_comparison_says_that_its_intervals_include_pretrainings(phantoms: Path, tmp_path: Path, script: Any) -> None:
    save_encoders(RUNS_ROOT / tmp_path.name, 2)
    name = f"{tmp_path.name}/compare"
    done = script(
        "downstream_task/trained_vs_no_trained_compare.py",
        *("--dataset", "covid", "--data-root", str(phantoms / COVID_ROOT), "--img-res", "32", "--threads", "1"),
        *("--menu", "linear", "--fractions", "0.2", "--draws", "3", "--run-name", name),
        *("--encoders", "random", f"runs/{tmp_path.name}/s*/resnet18_final_state_dict.pt"),
    )
    assert done.returncode == 0, done.stderr
    assert "and new pretrainings (of 2)" in done.stdout
    table = pd.read_csv(RUNS_ROOT / name / "summary.csv").query("arm == 'pretrained'")
    assert [Path(encoder).parent.name for encoder in table["encoder"]] == ["s0", "s1", "s0"]
    summary = json.loads((RUNS_ROOT / name / "summary.json").read_text())
    assert summary["pretrainings"] == 2 and len(summary["arms"]["pretrained"]) == 2


def test_a_pretraining_starts_from_given_weights_and_remembers_what_they_saw(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "resnet18_final_state_dict.pt"
    values = {**PRETRAINING, "dataset": "covid", "data_root": str(phantoms / COVID_ROOT), "start": str(start)}
    config = make_config(PretrainConfig, values)
    xrays = open_xrays(config, torch.device("cpu"))
    before, train = random_backbone("resnet18", 1, 7), xrays.indices("train")
    others = np.array([[1] * 49, [2] * 49], dtype=np.uint8)
    save_backbone(start, before, Provenance(xrays.split_hash, others))
    found = build_model(config).backbone.net.state_dict()
    wanted = {key: value for key, value in before.net.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    joined, _ = provenance(config, xrays, train)
    assert joined is not None
    wanted = np.concatenate([others, xrays.image_ids(train)])
    assert set(map(bytes, joined.seen)) == set(map(bytes, wanted))
    assert "warning" not in capsys.readouterr().err
    save_backbone(start, before, Provenance(xrays.split_hash, xrays.image_ids(xrays.indices("test"))))
    provenance(config, xrays, train)
    assert "a comparison will refuse the new encoder" in capsys.readouterr().err
    save_backbone(start, before, None)
    assert provenance_of(OrderedDict()) is None and provenance(config, xrays, train)[0] is None
