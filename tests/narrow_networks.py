"""ResNet-18 with few channels, for tests of what is around a network: its files have 1 MB instead of 45."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

GET_MODEL = models.get_model


class NarrowResNet(ResNet):
    """ResNet-18 with an eighth of the channels after the first convolution."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.fc = nn.Linear(64, 1000)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **named: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *arguments, **named)


@contextmanager
def narrow_networks() -> Iterator[None]:
    """The networks called resnet18 are narrow."""

    def get_model(name: str, **arguments: Any) -> nn.Module:
        return NarrowResNet() if name == "resnet18" else GET_MODEL(name, **arguments)

    with mock.patch.object(models, "get_model", get_model):
        yield
