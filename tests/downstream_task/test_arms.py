"""Arms of several pretrainings, and encoders that were trained on from other weights."""

import shutil
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import open_xrays
from downstream_task.compare_networks import named_arms
from downstream_task.predictions import read_predictions
from downstream_task.trained_vs_no_trained_compare import CompareConfig, main
from downstream_task.trained_vs_no_trained_compare import config as COMPARISON
from self_sup_classes.backbones import save_backbone
from self_sup_classes.initialisation import random_backbone
from self_sup_classes.provenance import NOTHING_SEEN, Provenance, provenance_of
from selfsup_task.pretraining import PretrainConfig, build_model, provenance
from selfsup_task.train_barlow_twins import config as PRETRAINING
from utils.config import RUNS_ROOT, UserError, make_config
from utils.files import write_json

pytestmark = pytest.mark.usefixtures("narrow", "few_resamples", "no_figures")


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
    everywhere = replace(arm, fits=dict.fromkeys(range(5), (0, 1, 2)))
    assert [everywhere.encoder(draw) for draw in range(4)] == [arm.encoders[k] for k in (0, 1, 2, 0)]
    assert [random.encoder(7), random.start(7)] == ["random", 7]
    two_each = replace(named_arms([pattern, "x"])[0], encoders=("a", "b", "c", "d"), fits={0: (0, 1), 3: (2, 3)})
    assert [two_each.start(draw) for draw in range(6)] == [0, 2, 1, 3, 0, 2], "whatever the number of folds"
    absolute = named_arms(
        [str(RUNS_ROOT / tmp_path.name / "s[01]" / "resnet18_final_state_dict.pt"), "a/b/c_state_dict.pt"]
    )
    assert absolute[0].name.endswith("-s01") and len(absolute[0].encoders) == 2
    (RUNS_ROOT / tmp_path.name / "other").mkdir()
    save_encoders(RUNS_ROOT / tmp_path.name / "other", 2)
    recipes = [pattern, pattern.replace("/s*", "/other/s*")]
    assert [one.name for one in named_arms(recipes)] == [f"{tmp_path.name}-s", "other-s"]
    with pytest.raises(UserError, match=rf"no file matches .* below {RUNS_ROOT} .*train_barlow_twins.py"):
        named_arms(["runs/nothing*/resnet18_final_state_dict.pt"])


@pytest.fixture(scope="module")
def of_folds(
    narrow: None, few_resamples: None, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CompareConfig, Path]:
    """Five encoders, of which number k has seen all that fold k trains on, and a comparison of them that has run."""
    folder = RUNS_ROOT / tmp_path_factory.mktemp("arms").name
    data = {"dataset": "covid", "data_root": str(phantoms / COVID_ROOT), "img_res": 32, "threads": 1, "jobs": 1}
    own = {"num_labels": [40], "draws": 5, "folds": [0, 1, 2, 3, 4], "ways": ["linear"]}
    pattern = f"runs/{folder.name}/s*/resnet18_final_state_dict.pt"
    own |= {"encoders": ["random", pattern], "run_name": f"{folder.name}/compare"}
    config = make_config(CompareConfig, {**COMPARISON, **data, **own})
    xrays = open_xrays(config, torch.device("cpu"))
    for k in range(5):
        fold, backbone = xrays.of_fold(k), random_backbone("resnet18", 1, 100 + k)
        (folder / f"s{k}").mkdir(parents=True)
        saw = Provenance(fold.split_hash, fold.image_ids(fold.indices("train")))
        save_backbone(folder / f"s{k}" / "resnet18_final_state_dict.pt", backbone, saw)
    main(config)
    return config, folder


def test_each_fold_gets_the_pretraining_that_has_not_seen_its_test_part(of_folds: tuple[CompareConfig, Path]) -> None:
    compared = of_folds[1] / "compare"
    table = pd.read_csv(compared / "summary.csv").query("arm == 'pretrained'")
    assert [Path(encoder).parent.name for encoder in table["encoder"]] == [f"s{k}" for k in range(5)]
    assert table["start"].tolist() == table["fold"].tolist() == [0, 1, 2, 3, 4]
    predictions = [read_predictions(compared / trial / "predictions.csv") for trial in table["trial"]]
    tested = [set(one.query("part == 'test'")["file"]) for one in predictions]
    assert sum(map(len, tested)) == len(set.union(*tested)) == 216, "each image outside validation is tested once"


def test_an_arm_of_unknown_origin_leaves_each_fold_its_pretraining(of_folds: tuple[CompareConfig, Path]) -> None:
    """It needs allow_seen, under which any encoder may be taken for any fold."""
    config, folder = of_folds
    (folder / "unknown").mkdir()
    save_backbone(folder / "unknown" / "resnet18_final_state_dict.pt", random_backbone("resnet18", 1, 9), None)
    unknown = str(folder / "unknown" / "resnet18_final_state_dict.pt")
    changes = {"allow_seen": True, "folds": [3, 0, 1, 2, 4], "run_name": f"{folder.name}/with_unknown"}
    main(replace(config, encoders=[*config.encoders, unknown], **changes))
    table = pd.read_csv(folder / "with_unknown" / "summary.csv")
    ours = table[table["encoder"].str.contains("/s[0-4]/")]
    assert ours["start"].tolist() == ours["fold"].tolist() == [3, 0, 1, 2, 4]
    assert set(table.loc[table["transductive"], "encoder"]) == {unknown}


def test_an_arm_without_an_encoder_for_a_fold_is_refused(
    of_folds: tuple[CompareConfig, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = of_folds
    one = str(folder / "s2" / "resnet18_final_state_dict.pt")
    with pytest.raises(UserError, match=r"fits fold 0, 1, 3, 4\. .* --folds 2\. Of fold 0: .* on 4\d of the 68"):
        main(replace(config, encoders=["random", one], run_name=f"{folder.name}/refused"))
    assert not (folder / "refused").exists()
    main(replace(config, encoders=["random", one], folds=[2], draws=3, run_name=f"{folder.name}/one"))
    capsys.readouterr()
    main(replace(config, folds=[1, 3], draws=4, run_name=f"{folder.name}/two"))
    assert "not used, because they have seen test images of the folds [1, 3]: " in capsys.readouterr().err


def test_tables_from_elsewhere_join_as_arms_and_their_fit_is_checked(
    of_folds: tuple[CompareConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = of_folds
    shutil.copytree(folder / "compare", tmp_path / "theirs")
    entries = ["random", f"predictions:{tmp_path / 'theirs'}"]
    joined = replace(config, encoders=entries, run_name=f"{folder.name}/joined")
    main(joined)
    curves = [pd.read_csv(folder / name / "curves.csv").set_index("arm") for name in ("compare", "joined")]
    assert set(curves[1].index) == {"random", "theirs-random", "pretrained"}
    for arm, theirs in (("random", "random"), ("theirs-random", "random"), ("pretrained", "pretrained")):
        pd.testing.assert_series_equal(curves[1].loc[arm], curves[0].loc[theirs], check_names=False)
    capsys.readouterr()
    main(joined)
    assert "theirs-random" in capsys.readouterr().out
    alone = replace(config, encoders=entries[1:], run_name=f"{folder.name}/alone")
    main(alone)  # tables without a training of its own
    of_tables = pd.read_csv(folder / "alone" / "curves.csv").set_index("arm")
    pd.testing.assert_frame_equal(of_tables.sort_index(), curves[0].sort_index())
    file = next((tmp_path / "theirs").glob("pretrained*_d3/predictions.csv"))
    table = read_predictions(file)
    table["p COVID"] *= 0.5
    table.to_csv(file, index=False)
    with pytest.raises(UserError, match="was made from other data"):
        main(joined)
    table.iloc[1:].to_csv(file, index=False)
    with pytest.raises(UserError, match="other images, parts or labels"):
        main(replace(joined, run_name=f"{folder.name}/again"))


def test_tables_of_one_name_do_not_replace_each_other(of_folds: tuple[CompareConfig, Path], tmp_path: Path) -> None:
    """Of other programs: nobody knows what their networks have seen. They are checked before anything is trained."""
    config, folder = of_folds
    own = (folder / "compare").glob("random*/predictions.csv")
    tables = {path.parent.name: read_predictions(path) for path in own}
    for place, shift in (("a/theirs", 0), ("b/theirs", 1), ("c/theirs", 2)):
        for trial, table in tables.items():
            (tmp_path / place / trial).mkdir(parents=True)
            names = [name for name in map(str, table) if name.startswith("p ")]
            moved = table.assign(**dict(zip(names, np.roll(table[names], shift, axis=1).T, strict=True)))
            moved.to_csv(tmp_path / place / trial / "predictions.csv", index=False)
            if place == "c/theirs":
                write_json(tmp_path / place / trial / "summary.json", {"accuracy": 0.9})  # the other program's own
    entries = ["random", *(f"predictions:{tmp_path / place}" for place in ("a/theirs", "b/theirs", "c"))]
    joined = replace(config, encoders=entries, run_name=f"{folder.name}/of_one_name")
    main(joined)
    table = pd.read_csv(folder / "of_one_name" / "summary.csv")
    assert table["trial"].is_unique
    assert list(dict.fromkeys(table["arm"])) == ["random", "theirs-random", "theirs-random-2", "c-random"]
    assert set(table.loc[table["transductive"], "arm"]) == {"theirs-random", "theirs-random-2", "c-random"}
    curves: Any = pd.read_csv(folder / "of_one_name" / "curves.csv").set_index("arm")["mean"]
    assert curves["theirs-random"] == curves["random"] and curves.nunique() == 3

    file = next((tmp_path / "a").rglob("*_d3/predictions.csv"))
    good = read_predictions(file)
    (file.parent / "copy").mkdir()
    good.to_csv(file.parent / "copy" / "predictions.csv", index=False)
    with pytest.raises(UserError, match="two tables of one head"):
        main(replace(joined, run_name=f"{folder.name}/twice"))
    assert not (folder / "twice").exists()
    (file.parent / "copy" / "predictions.csv").unlink()
    for bad in (good.assign(**{"p COVID": np.nan}), good.assign(**{"p COVID": 1.5})):
        bad.to_csv(file, index=False)
        with pytest.raises(UserError, match="probabilities from 0 to 1"):
            main(replace(joined, run_name=f"{folder.name}/bad"))
    for bad in (good.assign(arm="../../x"), good.assign(labels="all"), good.assign(draw=0.5)):
        bad.to_csv(file, index=False)
        with pytest.raises(UserError, match="must be of one head"):
            main(replace(joined, run_name=f"{folder.name}/bad"))


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
