"""A backbone with a head, in stages, of which a prefix may be frozen."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from self_sup_classes.backbones import Backbone
from self_sup_classes.weights import choose, load_strictly, read_state_dict
from utils.config import UserError, one_of
from utils.distributed import note_once
from utils.freezing import is_frozen

# What is trained, by how many of a network's stages (stem, layer1 ... layer4, fc) are frozen.
FROZEN_STAGES = {"fc": 5, "layer4+fc": 4, "layer3-4+fc": 3, "layer2-4+fc": 2, "layer1-4+fc": 1, "all": 0}
Trainable = Annotated[str, one_of(FROZEN_STAGES)]


class Classifier(nn.Module):
    """[N, C, R, R] -> logits [N, classes]; `net` is the library's network with a head of that many outputs.

    trainable   a key of FROZEN_STAGES: the stages before it are frozen and run without gradients. Stages are the stem
                (a ResNet's conv1, bn1), layer1 to layer4 and fc: what follows the last map. Those of other networks
                are found by the resolution of their maps (Structure.stages)
    batch_norm  "train": normalise by the batch while training, "eval": always by the running statistics
    """

    def __init__(self, backbone: Backbone, classes: int, trainable: str = "all", batch_norm: str = "train"):
        super().__init__()
        self.name, self.structure, self.net = backbone.name, backbone.structure, backbone.net
        head = nn.Linear(backbone.num_features, classes)
        nn.init.zeros_(head.weight)  # all classes equal at first, whatever the seed
        nn.init.zeros_(head.bias)
        self.net.set_submodule(self.structure.head, head)
        self.num_frozen, self.batch_norm = FROZEN_STAGES[trainable], batch_norm
        for part in self.frozen_parts():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode; BatchNorm keeps its running statistics where `batch_norm` is "eval"."""
        super().train(mode)
        if self.batch_norm == "eval":
            for part in self.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()
        return self

    @property
    def head(self) -> nn.Linear:
        """Return the last layer."""
        head = self.net.get_submodule(self.structure.head)
        assert isinstance(head, nn.Linear)
        return head

    def frozen_parts(self) -> list[nn.Module]:
        """Return the modules of the frozen stages, from the image on."""
        return [self.net.get_submodule(name) for stage in self.structure.stages[: self.num_frozen] for name in stage]

    def set_head(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Set the last layer's weight [classes, F] and bias [classes]."""
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))

    def prefix(self, x: Tensor) -> Tensor:
        """Return what the frozen stages make of images, without gradients; the images if nothing is frozen."""
        with torch.no_grad():
            for part in self.frozen_parts():
                x = part(x)
        return x

    def suffix(self, h: Tensor) -> Tensor:
        """Return the logits of what `prefix` returned, where the stages are in a row: the frozen ones are skipped."""
        parts = self.frozen_parts()
        for part in parts:
            part.forward = _identity  # before that of its class
        try:
            return self.net(h)
        finally:
            for part in parts:
                del part.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def features(self, x: Tensor) -> Tensor:
        """Return what the head sees, [N, F]."""
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda head, given: seen.append(given[0]))
        try:
            self.net(x)
        finally:
            hook.remove()
        return seen[0]


def _identity(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def restate_batch_norm(classifier: Classifier, views: Iterable[Tensor]) -> None:
    """Set the running statistics of trained BatchNorm layers to their means over batches of images [B, C, R, R].

    Everything else is in eval mode meanwhile, and afterwards.
    """
    classifier.eval()
    layers = [part for part in classifier.modules() if isinstance(part, nn.BatchNorm2d) and not is_frozen(part)]
    momentum = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    for y in views:
        classifier.features(y)
    for layer, before in zip(layers, momentum, strict=True):
        layer.momentum = before
    classifier.eval()


def load_classifier(path: Path, name: str, in_channels: int, class_names: Sequence[str]) -> Classifier:
    """Return the classifier of a file of weights; UserError if its architecture, channels or classes are others."""
    classifier = Classifier(Backbone(name, in_channels), len(class_names))
    found = choose(classifier.net, read_state_dict(path), classifier.structure.head, has_head=True)
    weight = found.weights.get(f"{classifier.structure.head}.weight")
    if weight is not None and len(weight) != len(class_names):
        raise UserError(
            f"{path} does not fit: it has {len(weight):,} outputs, but there are {len(class_names)} classes, "
            f"{', '.join(class_names)}. Name each of its outputs; an encoder has no classes yet, so fine-tune it first."
        )
    description = f"{name} with {in_channels} input channel(s) and the classes {', '.join(class_names)}"
    load_strictly(classifier.net, found.weights, str(path), description)
    if note := found.note(str(path)):
        note_once(note)
    return classifier
