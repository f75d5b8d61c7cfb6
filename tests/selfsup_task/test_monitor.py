"""A pretraining inside one process: what is measured changes nothing, what is kept, resumed and refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from narrow_networks import narrow_networks
from PIL import Image
from scipy.ndimage import gaussian_filter

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import XRays, open_xrays
from downstream_task.probes import InputFormat, forward_all
from self_sup_classes.initialisation import start_from
from self_sup_classes.provenance import provenance_of
from self_sup_classes.weights import read_state_dict
from selfsup_task import monitor, pretraining
from selfsup_task.monitor import probe
from selfsup_task.pretraining import PretrainConfig, open_run
from selfsup_task.train_barlow_twins import config as DEFAULTS
from selfsup_task.train_barlow_twins import main
from utils.config import RUNS_ROOT, UserError, make_config
from utils.logging_utils import Run

pytestmark = pytest.mark.usefixtures("narrow")

SMALL: dict[str, Any] = {
    **DEFAULTS,
    "dataset": "covid",
    "img_res": 16,
    "store_res": 32,
    "batch_size": 64,
    "num_epochs": 2,
    "projector_dims": [16, 16],
}


class Killed(Exception):
    pass


def killed(*arguments: object, **named: object) -> None:
    raise Killed


def pretrain(values: dict[str, Any]) -> Run:
    config = make_config(PretrainConfig, values)
    main(config)
    return open_run(config)


def metrics(run: Run) -> pd.DataFrame:
    return pd.read_csv(run.folder / "metrics.csv")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return torch.load(run.folder / "resnet18_final_state_dict.pt", weights_only=True)


@pytest.fixture
def config(phantoms: Path, name: str, quick: None) -> dict[str, Any]:
    """A small config, whose run name is this test's alone."""
    return {**SMALL, "data_root": str(phantoms / COVID_ROOT), "run_name": name}


def test_how_often_the_probes_run_does_not_change_what_is_learnt(config: dict[str, Any]) -> None:
    often = pretrain({**config, "run_name": f"{config['run_name']}/often", "probe_every": 1})
    seldom = pretrain({**config, "run_name": f"{config['run_name']}/seldom", "probe_every": 2})
    first, second = weights(often), weights(seldom)
    assert all(torch.equal(first[key], second[key]) for key in first)
    probes = metrics(often)["probe/linear"].tolist(), metrics(seldom)["probe/linear"].tolist()
    assert probes[0][1] > 0 and pd.isna(probes[1][1])
    assert (probes[0][0], probes[0][2]) == (probes[1][0], probes[1][2])


def test_the_last_weights_count_and_the_best_epoch_is_named(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.4, 0.6, 0.5])  # the random network's, which is not an epoch, then each epoch's
    after: list[dict[str, torch.Tensor]] = []

    def probe(self: monitor.Monitor) -> dict[str, float]:
        after.append({key: value.cpu().clone() for key, value in self.model.backbone.net.state_dict().items()})
        return {"probe/linear": next(scores)}

    monkeypatch.setattr(monitor.Monitor, "probe", probe)
    run = pretrain({**config, "num_epochs": 3, "probe_every": 1})
    assert run.summary is not None
    assert (run.summary["epoch_best"], run.summary["probe/linear_best"]) == (2, 0.6)
    assert [path.name for path in run.folder.glob("*.pt")] == ["resnet18_final_state_dict.pt"]
    final = weights(run)
    assert all(torch.equal(final[key], value) for key, value in after[3].items())
    assert not torch.equal(final["conv1.weight"], after[2]["conv1.weight"])


def test_a_pretraining_sees_the_train_part_of_its_fold_alone(config: dict[str, Any]) -> None:
    run = pretrain({**config, "fold": 3, "num_epochs": 1, "warmup_epochs": 0})
    split = pd.read_csv(run.folder / "split.csv")
    assert (split.loc[split["part"] == "test", "fold"] == 3).all()
    xrays = open_xrays(make_config(PretrainConfig, config), torch.device("cpu")).of_fold(3)
    train = xrays.indices("train")
    assert split.loc[split["part"] == "train", "file"].tolist() == xrays.columns.paths[train].tolist()
    provenance = provenance_of(read_state_dict(run.folder / "resnet18_final_state_dict.pt"))
    assert provenance is not None
    assert set(map(bytes, provenance.seen)) == set(map(bytes, xrays.image_ids(train)))
    assert run.summary is not None
    assert (run.summary["images"], run.summary["list_hash_seen"]) == (len(train), provenance.list_hash)


def test_a_length_that_is_not_given_has_steps_enough(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over the 172 X-rays has 3 steps of 48, and an epoch 5."""
    monkeypatch.setattr(pretraining, "EPOCHS", 2)
    monkeypatch.setattr(pretraining, "EPOCH_STEPS", 5)
    run = pretrain({**config, "batch_size": 48, "num_epochs": 0})
    assert run.summary is not None
    assert (run.summary["epochs"], run.summary["steps"]) == (2, 10)
    assert metrics(run)["step"].tolist() == [0, 5, 10]


@pytest.mark.usefixtures("torchvisions")
def test_four_views_are_trained_on_and_shown(config: dict[str, Any]) -> None:
    run = pretrain({**config, "views": 4})
    assert run.summary is not None and run.summary["verdict"]
    rows = metrics(run)
    assert 0 < rows["health/on_diagonal_vs_random"].iloc[-1] < 2
    assert rows["train/on_diagonal"].iloc[-1] < rows["train/on_diagonal"].iloc[1]
    width, height = Image.open(run.folder / "figures" / "views.png").size
    assert width / height == pytest.approx(5 / 6, abs=0.15)  # an X-ray and four views, six rows


def draw_spots(root: Path, images: int) -> None:
    """Draw 64 px images in the COVID layout: a small or large spot in the upper or lower half is the class.

    Where it is from left to right, brightness, contrast and tilt of the light, and the noise vary.
    """
    dice = np.random.default_rng(0)
    down, across = np.mgrid[:64, :64]
    for number in range(images):
        name = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")[number % 4]
        centre = (20, 44)[number % 4 % 2] + dice.uniform(-3, 3), dice.uniform(20, 44)
        radius = (7, 14)[number % 4 // 2] * dice.uniform(0.9, 1.1)
        spot = gaussian_filter((np.hypot(down - centre[0], across - centre[1]) < radius).astype(float), 1.5)
        noise = gaussian_filter(dice.normal(size=spot.shape), 1)
        tilt = dice.uniform(-0.3, 0.3) * (down / 32 - 1) + dice.uniform(-0.3, 0.3) * (across / 32 - 1)
        pixels = (0.4 + tilt + 0.6 * spot + 0.1 * noise) * dice.uniform(0.4, 1) + dice.uniform(0, 0.2)
        folder = root / name / "images"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8)).save(folder / f"{name}-{number // 4 + 1}.png")


def probed(encoder: str, xrays: XRays) -> dict[str, float]:
    """Scores of the probes by 40 labels on all other images, the mean of five draws."""
    backbone = start_from(encoder, "resnet18", 1, 0).backbone
    features, labels = forward_all(backbone, xrays, np.arange(len(xrays)), InputFormat(16, 1)), xrays.columns.labels
    scores = []
    for draw in range(5):
        train, test = np.split(np.random.default_rng(draw).permutation(len(xrays)), [40])
        scores.append(probe(features[train], labels[train], features[test], labels[test]))
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def test_pretraining_lifts_the_probes_above_random_weights(config: dict[str, Any], tmp_path: Path) -> None:
    draw_spots(tmp_path, 400)
    sizes = {"img_res": 16, "store_res": 0, "batch_size": 40, "projector_dims": [256], "num_epochs": 20}
    values = {**config, "data_root": str(tmp_path), **sizes, "warmup_epochs": 0, "probe_every": 20}
    with narrow_networks(4):  # the bounds hold with random_seed 0, 1, 2 and 3
        run = pretrain(values)
        xrays = open_xrays(make_config(PretrainConfig, values), torch.device("cpu"))
        random, pretrained = probed("random", xrays), probed(str(run.folder / "resnet18_final_state_dict.pt"), xrays)
    assert pretrained["probe/linear"] > random["probe/linear"] + 0.04
    assert pretrained["probe/knn"] > random["probe/knn"] + 0.08


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": "xrays"}, "did you mean 'xray'"),
        ({"batch_size": 500}, "batch_size is 500 but there are 17. training images"),
        ({"store_res": 999}, "999"),
        ({"img_res": 64}, "store_res is 32 and img_res 64"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"run_name": "../outside"}, "outside"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_written(
    config: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        pretrain({**config, **changes})
    assert not (RUNS_ROOT / config["run_name"]).exists()


def test_a_run_is_resumed_on_the_same_data_wherever_they_are_and_not_on_others(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config |= {"num_epochs": 1, "warmup_epochs": 0}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pretraining, "fit", killed)
        pretrain(config)
    victim = next((Path(config["data_root"]) / "Normal" / "images").iterdir())
    pixels = victim.read_bytes()
    victim.unlink()
    try:
        with pytest.raises(UserError, match=r"other files \(240 then, 239 now\), labels \(240 then, 239 now; Norm"):
            pretrain(config)
    finally:
        victim.write_bytes(pixels)
    moved = shutil.copytree(config["data_root"], tmp_path / "moved")
    for path in sorted(moved.rglob("images/*.png"))[:30]:
        Image.fromarray(np.asarray(Image.open(path)) // 2 + 20).save(path)
    with pytest.raises(UserError, match=r"was started with other data\.pixels"):
        pretrain({**config, "data_root": str(moved)})
    shutil.copytree(config["data_root"], moved, dirs_exist_ok=True)
    assert pretrain({**config, "data_root": str(moved)}).summary is not None
