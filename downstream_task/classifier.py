"""A backbone with a head, in stages, of which a prefix may be frozen."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from self_sup_classes.backbones import Backbone, head_of, set_module
from self_sup_classes.weights import choose, load_strictly, read_state_dict
from utils.config import UserError, check_choice
from utils.distributed import note_once
from utils.optimisation import is_frozen

# What is trained, by how many of a network's stages (stem, layer1 ... layer4, fc) are frozen.
FROZEN_STAGES = {"fc": 5, "layer4+fc": 4, "layer3-4+fc": 3, "layer2-4+fc": 2, "layer1-4+fc": 1, "all": 0}

# EfficientNet's nine feature blocks, grouped by resolution as a ResNet's layers are.
_EFFICIENTNET_BLOCKS = [(0, 1), (1, 3), (3, 4), (4, 6), (6, 9)]


class Classifier(nn.Module):
    """[N, C, R, R] -> logits [N, classes]; `net` is torchvision's network with a head of that many outputs.

    trainable   a key of FROZEN_STAGES: the stages before it are frozen and run without gradients. Stages are the stem
                (conv1, bn1), layer1 to layer4 and fc (the head and its pooling); EfficientNet's blocks, in groups
    batch_norm  "train": normalise by the batch while training, "eval": always by the running statistics
    """

    def __init__(self, backbone: Backbone, classes: int, trainable: str = "all", batch_norm: str = "train"):
        super().__init__()
        check_choice("trainable", trainable, list(FROZEN_STAGES))
        self.name, self.head_name, self.net = backbone.name, backbone.head_name, backbone.net
        head = nn.Linear(backbone.num_features, classes)
        nn.init.zeros_(head.weight)  # all classes equal at first, whatever the seed
        nn.init.zeros_(head.bias)
        set_module(self.net, self.head_name, head)
        self.num_frozen, self.batch_norm = FROZEN_STAGES[trainable], batch_norm
        for stage in _stages(self.net)[: self.num_frozen]:
            stage.requires_grad_(False)

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
        return head_of(self.net)[1]

    def set_head(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Set the last layer's weight [classes, F] and bias [classes]."""
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))

    def prefix(self, x: Tensor) -> Tensor:
        """Return what the frozen stages make of images, without gradients; the images if nothing is frozen."""
        with torch.no_grad():
            return nn.Sequential(*_stages(self.net)[: self.num_frozen])(x)

    def suffix(self, h: Tensor) -> Tensor:
        """Return the logits of what `prefix` returned."""
        return nn.Sequential(*_stages(self.net)[self.num_frozen :])(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.suffix(self.prefix(x))

    def features(self, x: Tensor) -> Tensor:
        """Return what the head sees, [N, F]."""
        *stages, head = _stages(self.net)
        return nn.Sequential(*stages, *list(head)[:-1])(x)


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
    found = choose(classifier.net, read_state_dict(path), classifier.head_name)
    weight = found.weights.get(f"{classifier.head_name}.weight")
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


def _stages(net: nn.Module) -> list[nn.Sequential]:
    """Return the network as six stages in a row: stem, four layers, head."""
    if hasattr(net, "layer1"):
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)  # type: ignore[arg-type]  # a ResNet's own
        layers = [net.get_submodule(f"layer{i}") for i in range(1, 5)]
        return [stem, *map(nn.Sequential, layers), nn.Sequential(net.avgpool, nn.Flatten(), net.fc)]  # type: ignore[arg-type,list-item]  # a ResNet's own
    blocks = list(net.get_submodule("features").children())
    layers = [nn.Sequential(*blocks[first:end]) for first, end in _EFFICIENTNET_BLOCKS]
    classifier = list(net.get_submodule("classifier").children())
    return [*layers, nn.Sequential(net.get_submodule("avgpool"), nn.Flatten(), *classifier)]
