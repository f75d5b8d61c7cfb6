"""ResNet-18 with few channels, for tests of what is around a network: its files have 1 MB instead of 45."""

from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

TORCHVISIONS = models.get_model


class NarrowResNet(ResNet):
    """ResNet-18 with an eighth of the channels after the first convolution."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.fc = nn.Linear(64, 1000)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **named: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *arguments, **named)


def get_model(name: str, **arguments: Any) -> nn.Module:
    """torchvision's get_model, of which the networks called resnet18 are narrow."""
    return NarrowResNet() if name == "resnet18" else TORCHVISIONS(name, **arguments)
