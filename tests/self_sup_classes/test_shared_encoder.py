"""The encoder that comes with this repo: it is what its card says, and gives the features that its picture had."""

import json

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from self_sup_classes.initialisation import SHARED_FOLDER, SHARED_WEIGHTS, start_from

if not (SHARED_FOLDER / SHARED_WEIGHTS).exists():
    pytest.skip("this repo comes without an encoder so far", allow_module_level=True)

CONFIG = json.loads((SHARED_FOLDER / "config.json").read_text())


def test_it_is_timms_network_in_half_precision_and_gives_the_reference() -> None:
    weights = safetensors.torch.load_file(SHARED_FOLDER / SHARED_WEIGHTS)
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float16}
    assert CONFIG["library"] == "timm"
    network = timm.create_model(CONFIG["architecture"], num_classes=0, **CONFIG["model_args"])
    network.load_state_dict(weights, strict=True)
    scale = CONFIG["pretrained_cfg"]
    with Image.open(SHARED_FOLDER / "reference.png") as film:
        gray = torch.from_numpy(np.asarray(film, dtype=np.float32) / 255)
    image = ((gray - scale["mean"][0]) / scale["std"][0])[None, None]  # [1, 1, R, R]
    expected = torch.tensor(json.loads((SHARED_FOLDER / "reference.json").read_text())["features"])
    with torch.no_grad():
        found = network.eval()(image)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.max().item())


def test_it_has_seen_nih_images_alone() -> None:
    """Their terms allow to share what was trained on them; the terms of the start are stated."""
    assert set(CONFIG["terms"]) == {"nih", "start"} and all(CONFIG["terms"].values())
    card = (SHARED_FOLDER / "README.md").read_text()
    start = start_from("shared", f"timm/{CONFIG['architecture']}", CONFIG["model_args"]["in_chans"], seed=0)
    assert start.provenance is not None and start.provenance.split_hash in card
    assert 0 < len(start.provenance.seen) <= int(card.partition(" X-rays,")[0].split()[-1].replace(",", ""))
