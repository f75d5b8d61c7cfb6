"""Comparisons: arms side by side on phantoms, the test part, choices that never read it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import XRays, open_xrays
from downstream_task import compare_networks
from downstream_task.compare_networks import best_by, named_arms, usable_arms
from downstream_task.train_models_with_frozen_parts import FrozenPartsConfig
from downstream_task.train_models_with_frozen_parts import config as FROZEN_DEFAULTS
from downstream_task.train_models_with_frozen_parts import main as train_main
from downstream_task.trained_vs_no_trained_compare import CompareConfig, compare, main
from downstream_task.trained_vs_no_trained_compare import config as DEFAULTS
from self_sup_classes.backbones import Backbone, save_backbone
from self_sup_classes.provenance import NOTHING_SEEN, provenance_of
from self_sup_classes.weights import read_state_dict
from selfsup_task.train_barlow_twins import config as PRETRAINING
from utils.config import RUNS_ROOT, UserError, make_config
from utils.files import read_json, write_json
from utils.logging_utils import Run
from utils.metrics import fit_temperature

pytestmark = pytest.mark.usefixtures("narrow")

COMPARE = "downstream_task/trained_vs_no_trained_compare.py"
TEST = "downstream_task/confusion_matrix.py"
FROZEN = "downstream_task/train_models_with_frozen_parts.py"
SMALL = {
    "img_res": 32,
    "store_res": 32,
    "min_steps": 2,
    "evaluate_every": 2,
    "passes": 0,
    "batch_size": 8,
    "threads": 1,
    "jobs": 1,
}


@pytest.fixture
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A name under runs/ that no other test has; its folders are deleted afterwards."""
    name = f"ci/{tmp_path.parent.name}-{tmp_path.name}"
    for root in (RUNS_ROOT, RUNS_ROOT / "test"):
        request.addfinalizer(lambda root=root: shutil.rmtree(root / name, ignore_errors=True))
    return name


def small(phantoms: Path, name: str, **changes: Any) -> CompareConfig:
    data = {"dataset": "covid", "data_root": str(phantoms / COVID_ROOT), "run_name": name}
    arms = {"encoders": ["random"], "draws": 1, "fractions": [0.2], "menu": ["linear", "zeros"]}
    return make_config(CompareConfig, {**DEFAULTS, **SMALL, **data, **arms, **changes})


def as_flags(config: dict[str, Any]) -> list[str]:
    values = {key: value if isinstance(value, list) else [value] for key, value in config.items()}
    return [word for key, words in values.items() for word in (f"--{key.replace('_', '-')}", *map(str, words))]


def compared(config: CompareConfig) -> Run:
    run = Run(config.run_name, config, "comparison")
    compare(config, run)
    return run


def test_defaults_name_the_encoder_of_the_default_pretraining() -> None:
    name = PRETRAINING["run_name"].replace("{dataset}", PRETRAINING["dataset"])
    expected = f"runs/{name}/{PRETRAINING['backbone']}_final_state_dict.pt"
    for defaults in (DEFAULTS, FROZEN_DEFAULTS):
        assert expected in [one.replace("{dataset}", PRETRAINING["dataset"]) for one in defaults["encoders"]]


def test_scripts_from_labels_to_the_test_part(phantoms: Path, script: Any, name: str) -> None:
    flags = {"dataset": "covid", "data_root": phantoms / COVID_ROOT, **SMALL}
    flags |= {"encoders": "random", "draws": 2, "run_name": f"{name}/compare", "fractions": [0.1, 0.5]}
    flags |= {"menu": ["linear", "probe", "zeros"], "menu_draws": 1}
    done = script(COMPARE, *as_flags(flags))
    assert done.returncode == 0, done.stderr
    again = script(COMPARE, *as_flags(flags))
    assert again.stdout == done.stdout
    folder = RUNS_ROOT / name / "compare"
    summary = pd.read_csv(folder / "summary.csv")
    assert len(summary) == 2 * (2 + 3), "for each fraction two probes, the menu on draw 0, its best on draw 1"
    check_choices(summary)
    for figure in ("label_efficiency", "convergence"):
        assert (folder / "figures" / f"{figure}.png").exists()
    curves = pd.read_csv(folder / "curves.csv")
    assert (np.diff(curves[["low", "mean", "high"]].to_numpy(), axis=1) >= 0).all()
    one = str(summary["trial"].iloc[0])
    split = pd.read_csv(folder / one / "split.csv")
    assert set(split["part"]) == {"train", "val", "test"}

    whole = script(TEST, "--runs", f"runs/{name}/compare", "--threads", "1")
    assert whole.returncode == 0, whole.stderr
    assert "Label efficiency on the test part (synthetic)" in whole.stdout
    assert sum(one in line for line in whole.stdout.splitlines()) == 1, "one row per run"
    tested = {path.parent.name for path in (RUNS_ROOT / "test" / name / "compare").glob("*/scores.csv")}
    assert tested == set(summary["trial"][summary["chosen"]])
    result = RUNS_ROOT / "test" / name / "compare" / one
    predictions = pd.read_csv(result / "predictions.csv")
    assert set(predictions["file"]) == set(split["file"][split["part"] == "test"])
    scores = pd.read_csv(result / "scores.csv").set_index("score")
    accuracy = (predictions.filter(like="p ").to_numpy().argmax(1) == pd.Categorical(predictions["label"]).codes).mean()
    assert scores.loc["accuracy", "value"] == pytest.approx(accuracy)
    assert (result / "figures" / "confusion_matrix.png").exists()

    val = pd.read_csv(folder / one / "predictions_val.csv")
    logits, labels = np.log(val.filter(like="p ").to_numpy()), pd.Categorical(val["label"]).codes.astype(int)
    tested = json.loads((result / "summary.json").read_text())
    assert tested["temperature"] == pytest.approx(fit_temperature(logits, labels), rel=1e-6)

    summary_file = folder / one / "summary.json"
    write_json(summary_file, {**(read_json(summary_file) or {}), "split_hash": "0"})
    shutil.rmtree(result)
    changed = script(TEST, "--runs", f"runs/{name}/compare/{one}", "--threads", "1")
    assert changed.returncode == 1
    assert "files came or went" in changed.stderr


def check_choices(summary: Any) -> None:
    """The fine-tuning of each fraction is the best on draw 0, the best method that of the best mean over draws."""
    for _, rows in summary.groupby("fraction"):
        tuned = rows[rows["method"] == "finetune"]
        first = tuned[tuned["draw"] == 0]
        best = first["setting"][first["score"].idxmax()]
        assert set(tuned["setting"][tuned["chosen"]]) == {best}
        assert set(tuned["setting"][tuned["draw"] == 1]) == {best}
        means = rows[rows["chosen"]].groupby("method", sort=False)["score"].mean()
        assert set(rows["method"][rows["best"]]) == {means.idxmax()}


def test_frozen_parts_script(phantoms: Path, script: Any, name: str) -> None:
    flags = {"dataset": "covid", "data_root": phantoms / COVID_ROOT, **SMALL, "draws": 1, "encoders": "random"}
    flags |= {"parts": ["fc", "all"], "label_fraction": 0.2, "run_name": name}
    done = script(FROZEN, *as_flags(flags))
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(RUNS_ROOT / name / "table.csv")["trainable"]) == ["fc", "all"]


def test_mistakes_are_one_sentence(phantoms: Path, script: Any, name: str) -> None:
    fresh = ["--dataset", "covid", "--data-root", str(phantoms / COVID_ROOT), "--run-name", name]
    fresh += ["--img-res", "32", "--store-res", "32", "--encoders", "random"]
    absent = script(COMPARE, *fresh, "runs/none/x_state_dict.pt")
    assert absent.returncode == 1
    assert absent.stderr.strip().splitlines()[-1].startswith("error: there is no file")
    twice = script(COMPARE, *fresh, "--fractions", "0.1", "0.1")
    assert "with a value more than once" in twice.stderr
    nothing = script(TEST, "--runs", f"runs/{name}/nothing")
    assert nothing.returncode == 1
    assert "there is no run" in nothing.stderr


def garbled(xrays: XRays) -> XRays:
    """The same X-rays with other labels and pixels in the test part."""
    test, labels, pixels = xrays.indices("test"), xrays.columns.labels.copy(), np.array(xrays.store.array)
    labels[test] = (labels[test] + 1) % 4
    pixels[test] = np.random.default_rng(0).integers(0, 256, pixels[test].shape)
    columns = dataclasses.replace(xrays.columns, labels=labels)
    return dataclasses.replace(xrays, columns=columns, store=dataclasses.replace(xrays.store, array=pixels))


def test_a_comparison_never_reads_the_test_part(phantoms: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = compared(small(phantoms, f"{name}/left"))
    monkeypatch.setattr(compare_networks, "open_xrays", lambda *args: garbled(open_xrays(*args)))
    right = compared(small(phantoms, f"{name}/right"))
    trials = pd.read_csv(left.folder / "summary.csv")["trial"]
    for file in ["curves.csv", *(f"{trial}/predictions_val.csv" for trial in trials)]:
        assert (left.folder / file).read_bytes() == (right.folder / file).read_bytes(), file
    for trial in trials:
        weights = [read_state_dict(run.folder / trial / "resnet18_best_state_dict.pt") for run in (left, right)]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_all_arms_get_the_same_labels(phantoms: Path, name: str, tmp_path: Path) -> None:
    save_backbone(tmp_path / "encoder.pt", Backbone("resnet18", 1), NOTHING_SEEN)
    encoders = ["random", str(tmp_path / "encoder.pt")]
    run = compared(small(phantoms, name, encoders=encoders, draws=2, menu=["linear"]))
    table = pd.read_csv(run.folder / "summary.csv")
    seen = {}
    for row in table.to_dict("records"):
        provenance = provenance_of(read_state_dict(run.folder / row["trial"] / "resnet18_best_state_dict.pt"))
        assert provenance is not None
        seen[row["arm"], row["draw"]] = provenance.seen.tolist()
    assert seen["random", 0] == seen["pretrained", 0] != seen["random", 1]
    assert seen["random", 1] == seen["pretrained", 1]


@pytest.mark.parametrize("script_main", [main, train_main])
def test_arms_that_fail_are_named_at_the_end_and_tried_again(
    phantoms: Path,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script_main: Any,
) -> None:
    """The others are compared; ImageNet's weights cannot be had, and a trial of another encoder stops."""
    save_backbone(tmp_path / "encoder.pt", Backbone("resnet18", 1), NOTHING_SEEN)
    encoders = ["random", "imagenet", str(tmp_path / "encoder.pt")]
    config = small(phantoms, name, encoders=encoders, draws=2, menu=["linear"])
    if script_main is train_main:
        shared = {key: value for key, value in vars(config).items() if key in FROZEN_DEFAULTS}
        config = make_config(FrozenPartsConfig, {**FROZEN_DEFAULTS, **shared, "parts": ["fc"], "label_fraction": 0.2})
    broken, started, finetune = {"imagenet", encoders[2]}, [], compare_networks.finetune

    def start(encoder: str, *rest: Any) -> Any:
        if encoder in broken and encoder == "imagenet":
            raise UserError("no network")
        return start_from(encoder if encoder != "imagenet" else "random", *rest)

    def train(one: Any, *rest: Any, **named: Any) -> Any:
        started.append(one.run_name)
        if one.encoder in broken and one.label_draw == 1:
            raise UserError("its outputs are not finite")
        return finetune(one, *rest, **named)

    start_from = compare_networks.start_from
    monkeypatch.setattr(compare_networks, "start_from", start)
    monkeypatch.setattr("downstream_task.finetuning.start_from", start)
    monkeypatch.setattr(compare_networks, "finetune", train)
    with pytest.raises(UserError, match="imagenet, pretrained left out for the reason above"):
        script_main(config)
    shown = capsys.readouterr().out.strip().splitlines()
    assert shown[-2] == "left out: imagenet: no network"
    assert re.fullmatch(r"left out: pretrained: pretrained_\S+_d1 \(its outputs are not finite\)", shown[-1])
    folder = RUNS_ROOT / name
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["arms"]) == ["random"] and list(summary["left_out"]) == ["imagenet", "pretrained"]
    assert set(pd.read_csv(folder / "summary.csv")["arm"]) == {"random"}

    broken.clear()
    started.clear()
    script_main(config)
    assert "left out" not in capsys.readouterr().out
    assert {one.split("/")[-1].partition("_")[0] for one in started} == {"imagenet", "pretrained"}
    assert list(json.loads((folder / "summary.json").read_text())["arms"]) == ["random", "imagenet", "pretrained"]
    started.clear()
    script_main(config)
    assert not started


def test_without_any_usable_arm_there_is_nothing_to_compare(
    phantoms: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise UserError("no network")

    monkeypatch.setattr(compare_networks, "start_from", refuse)
    config = small(phantoms, name, encoders=["imagenet"])
    with pytest.raises(UserError, match="nothing that can be run"):
        usable_arms(config, named_arms(config.encoders), open_xrays(config, torch.device("cpu")))


def test_arms_are_named_after_their_runs_and_never_twice() -> None:
    def names(*encoders: str) -> list[str]:
        return [arm.name for arm in named_arms(encoders)]

    encoders = ["random", "imagenet:weights/x.pth", "runs/pretrain/covid/resnet18_best_state_dict.pt"]
    assert names(*encoders) == ["random", "imagenet", "pretrained"]
    assert names(*encoders, "a/chexpert/r_best_state_dict.pt") == ["random", "imagenet", "covid", "chexpert"]
    with pytest.raises(UserError, match="both named 'covid'"):
        names("a/covid/r_best_state_dict.pt", "b/covid/r_best_state_dict.pt")


def test_each_cell_takes_the_best_mean_score() -> None:
    rows = [
        ("a", 0.1, "x", 0.5),
        ("a", 0.1, "x", 0.7),
        ("a", 0.1, "y", 0.65),
        ("a", 1.0, "y", 0.8),
        ("a", 1.0, "x", 0.8),
    ]
    table = pd.DataFrame(rows, columns=["arm", "fraction", "setting", "score"])
    assert best_by(table, "setting") == {("a", 0.1): "y", ("a", 1.0): "y"}
