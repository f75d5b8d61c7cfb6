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
from finetuning_config import finetuning_config

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import XRays, open_xrays
from downstream_task import compare_networks
from downstream_task.compare_networks import check_subsets, named_arms
from downstream_task.finetuning import FinetuneConfig
from downstream_task.targets import read_targets
from downstream_task.train_models_with_frozen_parts import config as FROZEN_DEFAULTS
from downstream_task.train_models_with_frozen_parts import real_xrays as FROZEN_REAL
from downstream_task.trained_vs_no_trained_compare import (
    HEADLINE,
    CompareConfig,
    compare,
    headline_of,
    main,
    ways_of,
)
from downstream_task.trained_vs_no_trained_compare import config as DEFAULTS
from downstream_task.trained_vs_no_trained_compare import real_xrays as REAL
from self_sup_classes.backbones import Backbone, save_backbone, weights_file
from self_sup_classes.provenance import NOTHING_SEEN, provenance_of
from self_sup_classes.weights import read_state_dict
from selfsup_task.train_barlow_twins import config as PRETRAINING
from selfsup_task.train_barlow_twins import real_xrays as PRETRAINING_REAL
from utils.config import RUNS_ROOT, UserError, as_dict, make_config, open_config
from utils.logging_utils import Run
from utils.report.runs import find_runs

pytestmark = pytest.mark.usefixtures("narrow", "few_resamples")

COMPARE = "downstream_task/trained_vs_no_trained_compare.py"
TEST = "downstream_task/confusion_matrix.py"
FROZEN = "downstream_task/train_models_with_frozen_parts.py"
WEIGHTS = "resnet18_final_state_dict.pt"
SMALL = {
    "img_res": 32,
    "store_res": 32,
    "backbone": "resnet18",
    "min_steps": 2,
    "epochs": 0,
    "batch_size": 8,
    "threads": 1,
    "jobs": 1,
}


def small(phantoms: Path, name: str, **changes: Any) -> CompareConfig:
    data = {"dataset": "covid", "data_root": str(phantoms / COVID_ROOT), "run_name": name}
    arms = {"encoders": ["random"], "draws": 1, "num_labels": [40], "ways": ["linear", "zeros"]}
    arms |= {"folds": [0]}
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
    for real in (REAL, FROZEN_REAL):
        assert real["backbone"] == PRETRAINING_REAL["backbone"]
        assert weights_file(real["backbone"]) == real["encoders"][-1].rpartition("/")[2]


def test_scripts_from_labels_to_the_test_part(phantoms: Path, script: Any, name: str) -> None:
    flags = {"dataset": "covid", "data_root": phantoms / COVID_ROOT, **SMALL}
    flags |= {"encoders": "random", "draws": 2, "run_name": f"{name}/compare", "num_labels": [20, "all"]}
    flags |= {"ways": ["linear", "zeros"], "folds": [0, 3], "features_res": 24}
    done = script(COMPARE, *as_flags(flags))
    assert done.returncode == 0, done.stderr
    for way, size in (("linear", 24), ("zeros", 32)):  # the way linear has its own
        trained = json.loads((RUNS_ROOT / name / "compare" / f"random_{way}_n20_d0" / "config.json").read_text())
        assert (trained["img_res"], trained["store_res"]) == (size, 32)
    again = script(COMPARE, *as_flags(flags))
    assert again.stdout == done.stdout
    folder = RUNS_ROOT / name / "compare"
    summary: Any = pd.read_csv(folder / "summary.csv")
    assert summary["fold"].tolist() == [0] * 4 + [3] * 4, "two ways with two numbers of labels in each"
    split: Any = pd.read_csv(folder / "split.csv")
    most = int(min((split["fold"] != fold).sum() for fold in (0, 3))) - 24
    assert set(summary["labels"]) == {20, most}, "the same numbers in every fold"
    headline = {20: "linear", most: "zeros"}  # 5 and 43 labels for each class
    assert [headline[row.labels] == row.way for row in summary.itertuples()] == summary["headline"].tolist()
    kept = {path.parent.name for path in folder.glob("*/*.pt")}
    assert kept == {"random_linear_n20_d0", f"random_zeros_n{most}_d0"}
    assert {path.parent.name for path in folder.glob("*/split.csv")} == kept, "beside that of the comparison"
    for figure in ("label_efficiency", "convergence"):
        assert (folder / "figures" / f"{figure}.png").exists()
    curves: Any = pd.read_csv(folder / "curves.csv")
    assert len(curves) == 4 and (curves["draws"] == 2).all() and (curves["folds"] == 2).all()

    whole = script(TEST, "--runs", f"runs/{name}/compare")
    assert whole.returncode == 0, whole.stderr
    assert "Label efficiency on the test part (synthetic)" in whole.stdout
    tested = RUNS_ROOT / "test" / name / "compare"
    assert {path.parent.name for path in tested.glob("*/scores.csv")} == {name.removesuffix("_d0") for name in kept}
    scores, of_folds = pd.read_csv(tested / "random_linear_n20" / "scores.csv").set_index("score"), []
    for draw in (0, 1):  # of the folds 0 and 3
        table = pd.read_csv(folder / f"random_linear_n20_d{draw}" / "predictions.csv").query("part == 'test'")
        of_folds.append((table.filter(like="p ").to_numpy().argmax(1) == pd.Categorical(table["label"]).codes).mean())
    assert scores.loc["accuracy", "value"] == pytest.approx(np.mean(of_folds))


def test_labels_are_nested_and_the_same_for_all_arms_and_ways(phantoms: Path, name: str, tmp_path: Path) -> None:
    save_backbone(tmp_path / "encoder.pt", Backbone("resnet18", 1), NOTHING_SEEN)
    encoders = ["random", str(tmp_path / "encoder.pt")]
    changes = {"encoders": encoders, "draws": 2, "num_labels": [20, 21, 60], "keep_weights": True}
    run = compared(small(phantoms, name, **changes))
    seen: dict[tuple[int, int], list[set[bytes]]] = {}
    for row in pd.read_csv(run.folder / "summary.csv").to_dict("records"):
        provenance = provenance_of(read_state_dict(run.folder / row["trial"] / WEIGHTS))
        assert provenance is not None
        seen.setdefault((row["draw"], row["labels"]), []).append(set(map(bytes, provenance.seen)))
    for draw in (0, 1):
        nested = [seen[draw, labels][0] for labels in (20, 21, 60)]
        assert list(map(len, nested)) == [20, 21, 60] and nested[0] < nested[1] < nested[2]
    assert all(len(ours) == 4 and all(one == ours[0] for one in ours) for ours in seen.values())
    assert seen[0, 20][0] != seen[1, 20][0]


def test_the_mean_of_spread_and_zeros_is_a_curve_and_joins_another_comparison(
    phantoms: Path, name: str, script: Any
) -> None:
    run = compared(small(phantoms, f"{name}/both", ways=["linear", "spread", "zeros"], draws=2))
    said = {
        way: pd.read_csv(run.folder / f"random_{way}_n40_d1" / "predictions.csv").filter(like="p ")
        for way in ("spread", "zeros", "mean")
    }
    np.testing.assert_allclose(said["mean"], (said["spread"] + said["zeros"]) / 2, rtol=1e-12)
    curves: Any = pd.read_csv(run.folder / "curves.csv")
    assert curves["way"].tolist() == ["linear", "spread", "zeros", "mean"]
    assert curves["headline"].tolist() == [True, False, False, False]
    assert not find_runs([run.folder], [], Path("none"))[1], "a report passes over the means, which are no runs"
    joined = compared(small(phantoms, f"{name}/joined", encoders=[f"predictions:{run.folder}"], draws=2))
    again: Any = pd.read_csv(joined.folder / "curves.csv")
    left, right = (table.sort_values("way", ignore_index=True) for table in (again, curves))
    pd.testing.assert_frame_equal(left, right)
    mean, theirs = run.folder / "random_mean_n40_d0", joined.folder / "random_zeros_n40_d0"
    for head in (mean, theirs):
        done = script(TEST, "--runs", str(head))
        assert done.returncode == 0 and "test part (synthetic)" in done.stdout, done.stderr
    trained = " ".join(f"runs/{name}/both/random_{way}_n40_d0" for way in ("spread", "zeros"))
    predict = "downstream_task/predict.py"
    for head, said in {mean: f"name these instead, {trained}, ", theirs: "holds predictions alone"}.items():
        refused = script(predict, "--classifier", str(head), "--images", str(phantoms / COVID_ROOT / "Normal"))
        assert refused.returncode == 1 and said in refused.stderr
    for folder in run.folder.glob("*_mean_*"):
        shutil.rmtree(folder)
    for folder in run.folder.glob("*_zeros_*"):
        (folder / "summary.json").unlink()  # nobody knows any more what these have seen
    unknown = compared(small(phantoms, f"{name}/unknown", encoders=[f"predictions:{run.folder}"], draws=2))
    seen: Any = pd.read_csv(unknown.folder / "curves.csv").set_index("way")["transductive"]
    assert seen.to_dict() == {"linear": False, "spread": False, "zeros": True, "mean": True}


def test_features_of_the_way_linear_keep_their_size_after_another_way(phantoms: Path, name: str) -> None:
    ways = [["linear"], ["zeros", "linear"]]
    runs = [compared(small(phantoms, f"{name}/{len(one)}", features_res=24, ways=one)) for one in ways]
    alone, after = ((run.folder / "random_linear_n40_d0" / "predictions.csv").read_text() for run in runs)
    assert alone == after


def test_frozen_parts_script(phantoms: Path, script: Any, name: str) -> None:
    flags = {"dataset": "covid", "data_root": phantoms / COVID_ROOT, **SMALL, "draws": 1, "encoders": "random"}
    flags |= {"parts": ["fc", "all"], "num_labels": 40, "run_name": name}
    done = script(FROZEN, *as_flags(flags))
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(RUNS_ROOT / name / "table.csv")["trainable"]) == ["fc", "all"]
    for entry in ("predictions:runs/x", "features:x.csv"):
        refused = script(FROZEN, *as_flags({**flags, "encoders": ["random", entry], "run_name": f"{name}/x"}))
        assert refused.returncode == 1 and f"encoders holds '{entry}', a table" in refused.stderr


def test_mistakes_are_one_sentence(phantoms: Path, script: Any, name: str) -> None:
    fresh = ["--dataset", "covid", "--data-root", str(phantoms / COVID_ROOT), "--run-name", name]
    fresh += ["--backbone", "resnet18", "--img-res", "32", "--features-res", "0", "--store-res", "32"]
    fresh += ["--encoders", "random"]
    absent = script(COMPARE, *fresh, "runs/none/x_state_dict.pt")
    assert absent.returncode == 1
    assert absent.stderr.strip().splitlines()[-1].startswith("error: there is no file")
    for flags, words in {
        "--num-labels 20 2000": "num_labels holds 2000, which is 2000 labels; expected different numbers from 1 to 172",
        "--num-labels 0.5 86 --folds 0 --draws 3": "num_labels holds 0.5, which is 86 labels",
        "--num-labels 2": "2 labels are asked for; there are",
        "--ways as_is --num-labels all": "random has no head for these classes; put linear into ways",
    }.items():
        refused = script(COMPARE, *fresh, "--jobs", "1", *flags.split())
        assert refused.returncode == 1 and words in refused.stderr.strip().splitlines()[-1], refused.stderr
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
    ways = ["linear", "spread", "zeros"]
    left = compared(small(phantoms, f"{name}/left", ways=ways))
    monkeypatch.setattr(compare_networks, "open_xrays", lambda *args, **named: garbled(open_xrays(*args, **named)))
    monkeypatch.setattr(compare_networks, "FEW_IMAGES", 10_000)
    right = compared(small(phantoms, f"{name}/right", ways=ways))
    assert right.summary and "validation images cannot choose between arms" in right.summary["report"][-1]
    assert (left.folder / "curves.csv").read_bytes() == (right.folder / "curves.csv").read_bytes()
    for trial in pd.read_csv(left.folder / "summary.csv")["trial"]:
        a, b = (pd.read_csv(run.folder / trial / "predictions.csv") for run in (left, right))
        pd.testing.assert_frame_equal(a.query("part == 'val'"), b.query("part == 'val'"))
        assert not a.query("part == 'test'").equals(b.query("part == 'test'"))


def test_arms_that_fail_are_named_at_the_end_and_tried_again(
    phantoms: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are compared; ImageNet's weights cannot be had, and a trial of another encoder stops."""
    save_backbone(tmp_path / "encoder.pt", Backbone("resnet18", 1), NOTHING_SEEN)
    encoders = ["random", "imagenet", str(tmp_path / "encoder.pt")]
    config = small(phantoms, name, encoders=encoders, draws=2, ways=["linear"])
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
        main(config)
    shown = capsys.readouterr().out.strip().splitlines()
    assert shown[-2] == "left out: imagenet: no network"
    assert re.fullmatch(r"left out: pretrained: pretrained_\S+_d1 \(its outputs are not finite\)", shown[-1])
    folder = RUNS_ROOT / name
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["arms"]) == ["random"] and list(summary["left_out"]) == ["imagenet", "pretrained"]
    assert set(pd.read_csv(folder / "summary.csv")["arm"]) == {"random"}

    broken.clear()
    started.clear()
    main(config)
    assert "left out" not in capsys.readouterr().out
    assert {one.split("/")[-1].partition("_")[0] for one in started} == {"imagenet", "pretrained"}
    assert list(json.loads((folder / "summary.json").read_text())["arms"]) == ["random", "imagenet", "pretrained"]
    started.clear()
    main(config)
    assert not started


def test_a_fold_without_a_class_to_be_tested_on_is_refused(phantoms: Path, name: str) -> None:
    """Its score would be over the other classes, and by chance another one than that of the folds beside it."""
    config = small(phantoms, name)
    xrays = open_xrays(config, torch.device("cpu"))
    targets = read_targets(xrays, config)
    check_subsets([40], 5, range(5), targets, xrays, 0)
    lost = (xrays.places == "2") & (xrays.columns.labels == 0)
    fewer = dataclasses.replace(xrays, places=np.where(lost, "train", xrays.places))
    check_subsets([40], 2, [0, 1], targets, fewer, 0)
    with pytest.raises(UserError, match=r"no image of class .COVID. .* among the 3. of the test part of fold 2\."):
        check_subsets([40], 5, range(5), targets, fewer, 0)


def test_arms_are_named_after_their_runs_and_never_twice() -> None:
    def names(*encoders: str) -> list[str]:
        return [arm.name for arm in named_arms(encoders)]

    encoders = ["random", "imagenet:weights/x.pth", "runs/pretrain/covid/resnet18_final_state_dict.pt"]
    assert names(*encoders) == ["random", "imagenet", "pretrained"]
    assert names(*encoders, "shared") == ["random", "imagenet", "pretrained", "shared"]
    assert [arm.kind for arm in named_arms([*encoders, "shared"])] == ["random", "imagenet", "pretrained", "pretrained"]
    assert names("a/films/model.safetensors", "b/nih/model.safetensors") == ["films", "nih"]
    assert names("features:dino.csv", "features:tables/rad.npz") == ["dino", "rad"]
    assert names(*encoders, "a/chexpert/r_best_state_dict.pt") == ["random", "imagenet", "covid", "chexpert"]
    with pytest.raises(UserError, match="both named 'covid'"):
        names("a/covid/r_best_state_dict.pt", "b/covid/r_best_state_dict.pt")


def test_the_headline_way_is_fixed_by_labels_for_each_class() -> None:
    ways = ["linear", "spread", "probe", "zeros"]
    for kind, by_labels in HEADLINE.items():
        for least, way in by_labels.items():
            assert headline_of(kind, 4 * least, 4, ways) == way
    assert headline_of("random", 20, 4, ["linear", "zeros"]) == "linear"  # the first, where that way is not asked for


def test_each_arm_is_trained_in_the_ways_that_it_has_a_head_or_a_network_for() -> None:
    arms = named_arms(["random", "features:dino.csv", "a/films/r_final_state_dict.pt"])
    assert [ways_of(arm, ["as_is", "linear", "zeros"]) for arm in arms] == [
        ["linear", "zeros"],
        ["linear"],
        ["as_is", "linear", "zeros"],
    ]


def test_runs_of_the_old_protocol_still_open_where_their_weights_are_used() -> None:
    """A fine-tuning of before folds lacks their keys; predict.py and maps take it all the same."""
    old = {"fraction": 0.1, "label_fraction": 0.1, "patience": 8, "evaluate_every": 25, "passes": 5, "test_share": 0.1}
    new = ("fold", "arm", "way", "start", "num_labels", "epochs", "keep_weights")
    kept = {key: value for key, value in as_dict(finetuning_config()).items() if key not in new}
    opened = open_config(FinetuneConfig, {**kept, **old, "choose_by": "validation", "version": 2})
    assert (opened.fold, opened.num_labels, opened.encoder) == (0, 0, "random")
