"""Features of other models as arms: tables of vectors, and our own features written as one."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_config import data_config
from finetuning_config import finetuning_config

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import open_xrays
from downstream_task import finetuning
from downstream_task.features import embed, read_features
from downstream_task.finetuning import LastFeatures
from self_sup_classes.backbones import save_backbone
from self_sup_classes.initialisation import random_backbone
from self_sup_classes.provenance import NOTHING_SEEN
from utils.config import UserError
from utils.logging_utils import Run

pytestmark = pytest.mark.usefixtures("narrow")


def linear(phantoms: Path, folder: Path, name: str, encoder: str, **changes: Any) -> pd.DataFrame:
    own = {"img_res": 32, "store_res": 32, "method": "linear", "num_labels": 60, "run_name": name, "allow_seen": True}
    config = finetuning_config(data_root=str(phantoms / COVID_ROOT), encoder=encoder, **own, **changes)
    run = finetuning.finetune(config, run=Run(name, config, "fine-tuning", folder))
    run.unlock()
    return pd.read_csv(run.folder / "predictions.csv")


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_features_of_a_table_are_the_linear_arm_of_the_same_network(
    phantoms: Path, tmp_path: Path, suffix: str
) -> None:
    save_backbone(tmp_path / "encoder.pt", random_backbone("resnet18", 1, 3), NOTHING_SEEN)
    config = data_config(dataset="covid", data_root=str(phantoms / COVID_ROOT))
    table = embed(str(tmp_path / "encoder.pt"), config, "resnet18").sample(frac=1, random_state=0)
    path = tmp_path / f"features.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    else:
        values = table.drop(columns="file").to_numpy()
        np.savez(path, files=table["file"].to_numpy(str), features=values)
    ours = linear(phantoms, tmp_path, "ours", str(tmp_path / "encoder.pt"), fold=3)
    theirs = linear(phantoms, tmp_path, "theirs", f"features:{path}", fold=3)
    pd.testing.assert_frame_equal(ours, theirs, atol=1e-6, rtol=0)
    assert not list((tmp_path / "theirs").glob("*.pt"))


def test_a_network_that_does_not_exist_is_refused_before_the_xrays_are_opened(tmp_path: Path) -> None:
    config = data_config(dataset="folder", data_root=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"backbone is 'resnet-18', .* did you mean 'resnet18'"):
        embed("random", config, "resnet-18")
    with pytest.raises(UserError, match="in_channels is 2; an X-ray has 1, a network for colour images 3"):
        embed("random", config, "resnet18", in_channels=2)


def test_tables_that_do_not_fit_are_refused_with_a_reason(phantoms: Path, tmp_path: Path) -> None:
    xrays = open_xrays(data_config(dataset="covid", data_root=str(phantoms / COVID_ROOT)), torch.device("cpu"))
    files = xrays.columns.paths.astype(str)

    def write(**columns: Any) -> str:
        pd.DataFrame(columns).to_csv(tmp_path / "f.csv", index=False)
        return f"features:{tmp_path / 'f.csv'}"

    some = read_features(write(file=files[1:], a=np.arange(len(files) - 1)), xrays)
    np.testing.assert_array_equal(some.rows(np.array([1, 2])), [[0], [1]])
    with pytest.raises(UserError, match=f"for 1 images, such as '{files[0]}'"):
        some.rows(np.array([0, 1]))
    with pytest.raises(UserError, match="for 2 images"):
        read_features(write(file=files[:2], a=[np.inf, np.nan]), xrays).rows(np.array([0, 1]))
    for columns, words in (
        ({"file": ["a", "a"], "a": [1, 2]}, "one vector"),
        ({"file": ["a"]}, "one vector"),
        ({"name": ["a"], "a": [1]}, "no table of features"),
        ({"file": ["a"], "a": ["x"]}, "no table of features"),
    ):
        with pytest.raises(UserError, match=words):
            read_features(write(**columns), xrays)
    with pytest.raises(UserError, match="no table of features"):
        read_features(f"features:{tmp_path / 'absent.csv'}", xrays)
    with pytest.raises(UserError, match="can only be probed"):
        finetuning_config(encoder=write(file=files, a=files))


def test_features_are_the_same_bits_whatever_was_asked_before(phantoms: Path) -> None:
    """A comparison that is resumed, or shared by processes, asks in another order, in batches of other sizes."""
    config = finetuning_config(data_root=str(phantoms / COVID_ROOT), img_res=32, store_res=32)
    xrays = open_xrays(config, torch.device("cpu"))
    first, then = LastFeatures()(config, xrays), LastFeatures()(config, xrays)
    then.rows(np.array([3, 130, 131]))
    np.testing.assert_array_equal(first.rows(np.arange(132)), then.rows(np.arange(132)))
