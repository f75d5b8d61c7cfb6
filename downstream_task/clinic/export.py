"""A classifier as an ONNX file, with its preprocessing and temperature inside."""

import importlib.util
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from augmentations.transform_utils import GRAY_MEAN, GRAY_STD, plain_view
from downstream_task.classifier import Classifier
from downstream_task.clinic.predictor import Predictor
from downstream_task.targets import probabilities_of
from self_sup_classes.backbones import Backbone
from utils.config import UserError
from utils.files import write_atomically

NEEDED = ("onnx", "onnxscript")


class Exported(nn.Module):
    """Gray values float32 [B, 1, S, S] in 0..255 -> probabilities [B, C].

    `plain_view`, by which the network sees an X-ray, resizes rows and columns by the same weights A [R, S], clamps to
    the range of gray values, and normalises. A is found by showing it one brighter row at a time.
    """

    resize: Tensor

    def __init__(self, predictor: Predictor):
        super().__init__()
        size, seen = predictor.sizes
        plain = Backbone(predictor.network.name, predictor.in_channels, fast_small_convolutions=False)
        self.net, self.channels = Classifier(plain, len(predictor.classes)).net.eval(), predictor.in_channels
        self.net.load_state_dict(predictor.network.net.state_dict())
        self.temperature, self.multilabel = predictor.temperature, predictor.multilabel
        gray = torch.full((size, 1, size, size), 100, dtype=torch.uint8)
        brighter = gray.clone()
        brighter[torch.arange(size), 0, torch.arange(size)] = 200  # row k of image k; no weight takes it out of 0..255
        change = plain_view(brighter, seen, 1) - plain_view(gray, seen, 1)  # [S, 1, R, R]
        self.register_buffer("resize", change[:, 0, :, 0].T.contiguous() * (GRAY_STD * 255 / 100))  # [R, S]

    def forward(self, pixels: Tensor) -> Tensor:
        gray = (self.resize @ (pixels / 255) @ self.resize.T).clamp(0, 1)  # [B, 1, R, R]
        logits = self.net(((gray - GRAY_MEAN) / GRAY_STD).expand(-1, self.channels, -1, -1))
        return probabilities_of(logits / self.temperature, self.multilabel)


def write_onnx(predictor: Predictor, path: Path) -> None:
    """Write a classifier as ONNX, from `pixels` float32 [B, 1, S, S], the X-ray's central square in 0..255.

    The output is `probabilities` [B, C]. Classes and sizes are in the file's metadata.
    It computes in float32, whatever the precision of the run.
    Raises UserError if the packages for it are not installed.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f'writing ONNX needs {", ".join(missing)}; run: python -m pip install -e ".[onnx]"')
    import onnx

    size, seen = predictor.sizes
    example = (torch.zeros(2, 1, size, size),)
    program = torch.onnx.export(
        Exported(predictor).cpu().eval(),
        example,
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    facts = {"classes": json.dumps(predictor.classes), "pixels_per_side": size, "seen_by_the_network": seen}
    onnx.helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    write_atomically(path, lambda file: file.write(model.SerializeToString()))
