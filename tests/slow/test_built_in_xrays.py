"""The built-in synthetic X-rays at their full number: near-duplicates are those that are planted, and no others."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from data_config import data_config

from dataset_loader.readers.folder_dataset import TABLE
from dataset_loader.xrays import open_xrays


@pytest.mark.parametrize("dataset", ["phantom", "phantom_marker"])
def test_near_duplicates_are_the_planted_ones(tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = data_config(dataset=dataset, data_root=str(tmp_path), store_res=36, img_res=32)
    xrays = open_xrays(config, torch.device("cpu"), [])
    table = pd.read_csv(xrays.columns.root / TABLE, keep_default_na=False)
    copies = table[table["copy_of"] != ""]
    planted = {frozenset(pair) for pair in zip(copies["file"], copies["copy_of"], strict=True)}
    (also,) = xrays.also
    found = pd.concat([xrays.duplicates, also.left_out])
    assert {frozenset(pair) for pair in zip(found["file"], found["other"], strict=True)} == planted
    assert (len(xrays), len(also), also.num_left_out) == (2400, 3600, 36)
    assert [len(xrays.indices(part)) for part in ("train", "val", "test")] == [1201, 602, 597]  # datasets/README.md
    assert "warning" not in capsys.readouterr().err
