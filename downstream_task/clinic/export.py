"""A classifier as an ONNX file that takes whole X-rays, with a script that uses it and a picture to try it on."""

import importlib.util
import io
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from augmentations.geometry import rows_by_level
from augmentations.transform_utils import GRAY_MEAN, GRAY_STD
from dataset_loader.phantoms.dataset import draw
from dataset_loader.phantoms.plans import plan_classes
from downstream_task.classifier import Classifier
from downstream_task.finished_runs import Predictor
from downstream_task.targets import probabilities_of
from self_sup_classes.backbones import Backbone
from utils.config import UserError

NEEDED = ("onnx", "onnxscript")
SCRIPT = Path(__file__).with_name("predict_onnx.py")
VERSION = 2  # of what the graph takes; before, it was the central square in float32
LOBES = 3  # of the Lanczos kernel, by which X-rays are decoded
GAP = 3  # a picture is first reduced to this many times the wanted side, as Pillow's reducing_gap does
PIXELS = (
    "uint8 [B, 1, H, W]: upright gray X-rays of any size, 0 black to 255 white (bones bright, as in MONOCHROME2); the "
    "graph takes the square in the middle, resizes and normalises it"
)


class Exported(nn.Module):
    """Whole gray X-rays uint8 [B, 1, H, W] -> probabilities [B, C], as predict.py computes them.

    The central square becomes S x S as Pillow decodes it, rounded after the rows and after the columns, then R x R as
    `plain_view` shows it to the network: all by weights of rows and of columns. Where Pillow reduces a picture first,
    it rounds once more: gray values may differ by 3 of 255, else by 1 in a few thousand pixels.
    """

    resize: Tensor

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.size, self.channels = predictor.stored, predictor.seen.in_channels
        plain = Backbone(predictor.network.name, self.channels)
        self.net = Classifier(plain, len(predictor.classes)).net.eval()
        self.net.load_state_dict(predictor.network.net.state_dict())
        self.temperature, self.multilabel = predictor.temperature, predictor.multilabel
        self.register_buffer("resize", view_weights(self.size, predictor.seen.size))  # [R, S]

    def forward(self, pixels: Tensor) -> Tensor:
        image = pixels.float()
        rows, columns = torch.ones_like(image[0, 0, :, 0]).cumsum(0), torch.ones_like(image[0, 0, 0]).cumsum(0)
        side = torch.minimum(rows[-1], columns[-1])
        image = _rounded(image @ decoding_weights(columns, side, self.size).T)  # [B, 1, H, S]
        image = _rounded(decoding_weights(rows, side, self.size) @ image)  # [B, 1, S, S]
        gray = (self.resize @ (image / 255) @ self.resize.T).clamp(0, 1)  # [B, 1, R, R]
        logits = self.net(((gray - GRAY_MEAN) / GRAY_STD).expand(-1, self.channels, -1, -1))
        return probabilities_of(logits / self.temperature, self.multilabel)


def _rounded(image: Tensor) -> Tensor:
    return (image + 0.5).floor().clamp(0, 255)


def decoding_weights(places: Tensor, side: Tensor, size: int) -> Tensor:
    """Return the weights [S, L] of L pixels in a row, `places` 1 to L, by which Pillow resizes the middle to S pixels.

    `side` is how many pixels the middle has. The kernel is Lanczos', widened where the picture becomes smaller; where
    that is 2 * GAP times or more, blocks of pixels are averaged first.
    """
    length, pixel = places[-1], places - 1
    start, scale = ((length - side) / 2).floor(), side / size
    reach = LOBES * scale.clamp(min=1) - scale / 2  # of the kernel, beyond the middle
    first, last = (start - reach).floor().clamp(min=0), torch.minimum((start + side + reach).ceil(), length)
    block = (scale / GAP).floor().clamp(min=1)  # pixels
    number = ((pixel - first) / block).floor()  # [L], of the block that a pixel is in
    count = torch.minimum(block, last - first - number * block)  # [L] pixels in it: the last one may have fewer
    inside = (pixel >= first) & (pixel < last)
    wanted = torch.arange(size, dtype=torch.float32)[:, None] + 0.5  # [S, 1]
    centre = ((start - first) + wanted * scale) / block  # in blocks
    x = (number + 0.5 - centre) / (scale / block).clamp(min=1)  # [S, L]
    weights = torch.where(inside & (x.abs() < LOBES), torch.sinc(x) * torch.sinc(x / LOBES) / count, 0)
    return weights / weights.sum(1, keepdim=True)


def view_weights(size: int, seen: int) -> Tensor:
    """Return the weights [R, S] of rows, and of columns, by which `plain_view` resizes S x S to R x R pixels."""
    same = torch.eye(size)
    if size == seen:
        return same
    levels = rows_by_level(torch.eye(3, dtype=torch.float64)[None], size, seen)
    level = next(level for level, rows in enumerate(levels) if len(rows))
    smaller = F.interpolate(same[None, None], size=(math.ceil(size / 2**level), size), mode="area")  # [1, 1, T, S]
    down, along = ((torch.arange(n) + 0.5) * (2 / n) - 1 for n in (seen, size))
    grid = torch.stack(torch.meshgrid(down, along, indexing="ij")[::-1], dim=-1)  # [R, S, 2]: x, y
    return F.grid_sample(smaller, grid[None], mode="bicubic", padding_mode="border", align_corners=False)[0, 0]


def export(predictor: Predictor) -> dict[str, bytes]:
    """Return files by name: classifier.onnx, predict_onnx.py, which uses it, and reference.png with its probabilities.

    It computes in float32, whatever the precision of the run. What it takes and gives is in its metadata.
    Raises UserError if the packages for it are not installed.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f'writing ONNX needs {", ".join(missing)}; run: python -m pip install -e ".[onnx]"')
    exported = Exported(predictor).cpu().eval()
    height, width = 2 * predictor.stored, 3 * predictor.stored // 2
    picture = draw(plan_classes(4, 0, 0, False)[:1], (height, width))[0][0]  # [H, W]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    with torch.no_grad():
        [probabilities] = exported(torch.from_numpy(picture)[None, None]).double().numpy()
    reference = dict(zip(predictor.classes, np.round(probabilities, 4).tolist(), strict=True))
    return {
        "classifier.onnx": _graph(exported, predictor),
        SCRIPT.name: SCRIPT.read_bytes(),
        "reference.png": file.getvalue(),
        "reference.json": json.dumps(reference, indent=2, ensure_ascii=False).encode(),
    }


def _graph(exported: Exported, predictor: Predictor) -> bytes:
    import onnx

    program = torch.onnx.export(
        exported,
        (torch.zeros(2, 1, 40, 48, dtype=torch.uint8),),
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes={"pixels": {0: "batch", 2: "height", 3: "width"}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    facts = {
        "version": VERSION,
        "pixels": PIXELS,
        "probabilities": f"float32 [B, {len(predictor.classes)}], "
        + ("each from 0 to 1" if predictor.multilabel else "which sum to 1"),
        "classes": json.dumps(predictor.classes),
        "multilabel": json.dumps(predictor.multilabel),
        "temperature": predictor.temperature,
        "decoded_to": predictor.stored,
        "seen_by_the_network": predictor.seen.size,
        "trained_as": predictor.name,
        **predictor.origin,
    }
    onnx.helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    return model.SerializeToString()
