"""ResNet-18 with few channels, for tests of what is around a network: a file of an eighth has 1 MB instead of 45."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

TORCHVISIONS = models.get_model


class NarrowResNet(ResNet):
    """ResNet-18 with 1 / `divisor` of the channels after the first convolution."""

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.fc = nn.Linear(512 // divisor, 1000)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **named: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // self.divisor, *arguments, **named)


@contextmanager
def narrow_networks(divisor: int) -> Iterator[None]:
    """Within it, the networks called resnet18 have 1 / `divisor` of the channels."""

    def get_model(name: str, **arguments: Any) -> nn.Module:
        return NarrowResNet(divisor) if name == "resnet18" else TORCHVISIONS(name, **arguments)

    with mock.patch.object(models, "get_model", get_model):
        yield
