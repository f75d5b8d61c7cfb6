"""A classifier as ONNX: any size of picture, and the answers of predict.py."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from augmentations.transform_utils import denormalise, plain_view
from dataset_loader.decoding import decode_square
from downstream_task.classifier import Classifier
from downstream_task.clinic.export import Exported, export, view_weights
from downstream_task.finished_runs import Predictor
from downstream_task.probes import InputFormat
from self_sup_classes.backbones import Backbone

pytestmark = pytest.mark.usefixtures("narrow")

# Tall and wide: as large as is decoded to, larger, and so large that Pillow reduces it first.
SIZES = [(41, 36), (36, 36), (90, 120), (333, 250), (700, 901)]


def predictor_of(channels: int, multilabel: bool) -> Predictor:
    """A classifier of random weights whose answers differ from picture to picture."""
    torch.manual_seed(channels)
    network = Classifier(Backbone("resnet18", channels), 3).eval()
    torch.nn.init.normal_(network.head.weight, std=0.3)
    origin = {"weights": "0123", "synthetic": True}
    return Predictor(network, list("abc"), multilabel, 36, InputFormat(32, channels), 1.7, "x", Path("x"), origin)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth patches and noise, black and white among them: uint8 [H, W]."""
    rng = np.random.default_rng((height, width, seed))
    patches = Image.fromarray(rng.integers(0, 256, (7, 6), dtype=np.uint8)).resize((width, height))
    return (np.asarray(patches) + rng.normal(0, 20, (height, width))).clip(0, 255).astype(np.uint8)


def as_predicted(predictor: Predictor, gray: np.ndarray, folder: Path) -> np.ndarray:
    """What predict.py says about a picture: [C]."""
    Image.fromarray(gray).save(folder / "picture.png")
    return predictor.probabilities(np.array(decode_square(folder / "picture.png", 36))[None, None])[0]


@pytest.mark.parametrize(("size", "seen"), [(36, 32), (32, 32), (48, 32), (49, 32), (150, 40), (60, 64)])
def test_pictures_are_resized_as_the_network_sees_them(size: int, seen: int) -> None:
    pixels = torch.from_numpy(picture(size, size))[None, None]
    weights = view_weights(size, seen)
    resized = (weights @ (pixels / 255) @ weights.T).clamp(0, 1)
    torch.testing.assert_close(resized, denormalise(plain_view(pixels, seen, 1)), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("channels", "multilabel"), [(1, False), (3, False), (3, True)])
def test_whole_pictures_get_predict_s_probabilities(channels: int, multilabel: bool, tmp_path: Path) -> None:
    predictor = predictor_of(channels, multilabel)
    exported = Exported(predictor).eval()
    found = []
    for height, width in SIZES:
        gray = picture(height, width)
        with torch.no_grad():
            found.append(exported(torch.from_numpy(gray)[None, None])[0].numpy())
        few = 1e-4 if min(gray.shape) < 6 * 36 else 1e-2  # Pillow rounds once more where it reduces first
        np.testing.assert_allclose(found[-1], as_predicted(predictor, gray, tmp_path), atol=few)
    assert np.ptp(found, axis=0).min() > 0.05, "these pictures tell nothing apart"


def test_the_graph_its_script_and_its_reference(tmp_path: Path) -> None:
    runtime: Any = pytest.importorskip("onnxruntime")
    predictor = predictor_of(3, True)
    for name, content in export(predictor).items():
        (tmp_path / name).write_bytes(content)
    session = runtime.InferenceSession(tmp_path / "classifier.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == predictor.classes and facts["multilabel"] == "true"
    assert "uint8" in facts["pixels"] and "MONOCHROME2" in facts["pixels"]
    expected = {"version": "2", "temperature": "1.7", "decoded_to": "36", "seen_by_the_network": "32"}
    assert {key: facts[key] for key in expected} == expected
    for height, width in SIZES:
        both = np.stack([picture(height, width, seed) for seed in (0, 1)])
        [p] = session.run(None, {"pixels": both[:, None]})
        np.testing.assert_allclose(p, [as_predicted(predictor, gray, tmp_path) for gray in both], atol=1e-2)
    gray = picture(20, 9)  # which predict.py refuses
    larger = np.array(Image.fromarray(gray).resize((36, 36), Image.Resampling.LANCZOS, box=(0, 5, 9, 14)))
    [small] = session.run(None, {"pixels": gray[None, None]})
    np.testing.assert_allclose(small, predictor.probabilities(larger[None, None]), atol=1e-4)
    with pytest.raises(Exception, match=r"expected: .*uint8"):
        session.run(None, {"pixels": np.zeros((1, 1, 36, 36), np.float32)})
    reference = json.loads((tmp_path / "reference.json").read_text())
    gray = np.asarray(Image.open(tmp_path / "reference.png"))
    np.testing.assert_allclose([*reference.values()], as_predicted(predictor, gray, tmp_path), atol=1e-3)
    wide = Image.fromarray(65535 - gray.astype(np.uint16) * 257)
    wide.save(tmp_path / "wide.tif", tiffinfo={262: 0})  # its zeros are white
    Image.fromarray(np.dstack([gray] * 3 + [gray * 0 + 255])).save(tmp_path / "alpha.png")
    Image.fromarray(np.dstack([picture(333, 250)] * 3)).save(tmp_path / "large.jpg")  # decoded at a smaller size
    kinds = ["reference.png", "alpha.png", "wide.tif", "large.jpg"]
    printed = subprocess.run(
        [sys.executable, "predict_onnx.py", *kinds], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    first, alpha, *decoded = map(json.loads, printed.splitlines())
    assert first == pytest.approx({"file": "reference.png", **reference}, abs=1e-3)
    assert {**alpha, "file": ""} == {**first, "file": ""}
    for found in decoded:
        square = np.array(decode_square(tmp_path / found["file"], 36))
        assert list(found.values())[1:] == pytest.approx(predictor.probabilities(square[None, None])[0], abs=1e-3)
