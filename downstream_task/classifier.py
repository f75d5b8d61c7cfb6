"""A backbone with a head, in stages, of which a prefix may be frozen."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from self_sup_classes.backbones import Backbone, head_of, read_state_dict, set_module
from self_sup_classes.provenance import Provenance
from utils.config import UserError, check_choice
from utils.files import write_atomically

# What is trained, by how many of a network's stages (stem, layer1 ... layer4, fc) are frozen.
FROZEN_STAGES = {"fc": 5, "layer4+fc": 4, "layer3-4+fc": 3, "layer2-4+fc": 2, "layer1-4+fc": 1, "all": 0}

# EfficientNet's nine feature blocks, grouped by resolution as a ResNet's layers are.
_EFFICIENTNET_BLOCKS = [(0, 1), (1, 3), (3, 4), (4, 6), (6, 9)]


class Classifier(nn.Module):
    """[N, C, R, R] -> logits [N, classes]; `net` is torchvision's network with a head of that many outputs.

    trainable  a key of FROZEN_STAGES: the stages before are frozen and run without gradients. Stages are the stem
               (conv1, bn1), layer1 to layer4 and fc (the head and its pooling); EfficientNet's blocks are grouped alike
    """

    def __init__(self, backbone: Backbone, classes: int, trainable: str = "all"):
        super().__init__()
        check_choice("trainable", trainable, list(FROZEN_STAGES))
        self.name, self.head_name, self.net = backbone.name, backbone.head_name, backbone.net
        head = nn.Linear(backbone.num_features, classes)
        nn.init.zeros_(head.weight)  # all classes alike at first, whatever the seed
        nn.init.zeros_(head.bias)
        set_module(self.net, self.head_name, head)
        self.num_frozen = FROZEN_STAGES[trainable]
        for stage in _stages(self.net)[: self.num_frozen]:
            stage.requires_grad_(False)

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        return head_of(self.net)[1]

    def prefix(self, x: Tensor) -> Tensor:
        """Images through the frozen stages, without gradients; images themselves if nothing is frozen."""
        with torch.no_grad():
            return nn.Sequential(*_stages(self.net)[: self.num_frozen])(x)

    def suffix(self, h: Tensor) -> Tensor:
        """What `prefix` gives -> logits."""
        return nn.Sequential(*_stages(self.net)[self.num_frozen :])(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.suffix(self.prefix(x))

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, [N, F]."""
        *stages, head = _stages(self.net)
        return nn.Sequential(*stages, *list(head)[:-1])(x)


def save_classifier(path: Path, classifier: Classifier, provenance: Provenance | None) -> None:
    """Write a plain torchvision state_dict, atomically; it loads with strict=True once the head is replaced."""
    state = OrderedDict(
        (key, value.detach().cpu().contiguous().clone()) for key, value in classifier.net.state_dict().items()
    )
    if provenance is not None:
        provenance.attach(state)
    write_atomically(path, lambda file: torch.save(state, file))


def load_classifier(path: Path, name: str, in_channels: int, class_names: tuple[str, ...]) -> Classifier:
    """What `save_classifier` wrote; UserError if it belongs to another architecture, channel or class count."""
    classifier = Classifier(Backbone(name, in_channels), len(class_names))
    state, expected = read_state_dict(path), classifier.net.state_dict()
    wrong = [key for key in {**expected, **state} if _shape(state, key) != _shape(expected, key)]
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{path} does not fit a {name} with {in_channels} input channel(s) and {len(class_names)} classes "
            f"({', '.join(class_names)}): {len(wrong)} tensors differ, first {key}: found {_shape(state, key)}, "
            f"expected {_shape(expected, key)}."
        )
    classifier.net.load_state_dict(state, strict=True)
    return classifier


def _stages(net: nn.Module) -> list[nn.Sequential]:
    """The network as six stages in a row: stem, four layers, head."""
    if hasattr(net, "layer1"):
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)  # type: ignore[arg-type]  # a ResNet's own
        layers = [net.get_submodule(f"layer{i}") for i in range(1, 5)]
        return [stem, *map(nn.Sequential, layers), nn.Sequential(net.avgpool, nn.Flatten(), net.fc)]  # type: ignore[arg-type,list-item]  # likewise
    blocks = list(net.get_submodule("features").children())
    layers = [nn.Sequential(*blocks[first:end]) for first, end in _EFFICIENTNET_BLOCKS]
    classifier = list(net.get_submodule("classifier").children())
    return [*layers, nn.Sequential(net.get_submodule("avgpool"), nn.Flatten(), *classifier)]


def _shape(tensors: "dict[str, Tensor] | OrderedDict[str, Tensor]", key: str) -> str:
    return str(tuple(tensors[key].shape)) if key in tensors else "nothing"
