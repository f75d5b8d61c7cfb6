"""Classifiers: each row of frozen parts trains exactly its parameters, and saved weights are plain torchvision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from downstream_task.classifier import FROZEN_STAGES, Classifier, load_classifier
from self_sup_classes.backbones import Backbone, save_state_dict
from self_sup_classes.provenance import Provenance, provenance_of
from utils.config import UserError

# Written out, so that a row that is off by one block is seen.
TRAINED = {
    "fc": {"fc"},
    "layer4+fc": {"layer4", "fc"},
    "layer3-4+fc": {"layer3", "layer4", "fc"},
    "layer2-4+fc": {"layer2", "layer3", "layer4", "fc"},
    "layer1-4+fc": {"layer1", "layer2", "layer3", "layer4", "fc"},
    "all": {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"},
}


@pytest.mark.parametrize("trainable", list(FROZEN_STAGES))
def test_each_row_trains_exactly_its_parameters(trainable: str) -> None:
    classifier = Classifier(Backbone("resnet18", 1), 4, trainable)
    for name, parameter in classifier.net.named_parameters():
        assert parameter.requires_grad == (name.split(".")[0] in TRAINED[trainable]), name


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b0"])
def test_stages_in_a_row_are_torchvisions_network(name: str) -> None:
    classifier = Classifier(Backbone(name, 1), 3, "layer3-4+fc").eval()
    nn.init.normal_(classifier.head.weight)
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(classifier(x), classifier.net(x))
    torch.testing.assert_close(classifier.suffix(classifier.prefix(x)), classifier.net(x))
    torch.testing.assert_close(classifier.head(classifier.features(x)), classifier.net(x))
    assert not classifier.prefix(x).requires_grad


def test_weights_load_into_plain_torchvision_and_come_back(tmp_path: Path) -> None:
    classifier = Classifier(Backbone("resnet18", 1), 4)
    save_state_dict(
        tmp_path / "weights.pt",
        classifier.net.state_dict(),
        Provenance("abc", np.arange(3 * 49, dtype=np.uint8).reshape(3, 49)),
    )
    plain = models.resnet18(num_classes=4)
    plain.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    plain.load_state_dict(state, strict=True)
    provenance = provenance_of(state)
    assert provenance is not None
    assert provenance.seen[:, 0].tolist() == [0, 49, 98]
    names = ("a", "b", "c", "d")
    again = load_classifier(tmp_path / "weights.pt", "resnet18", 1, names)
    for mine, other in zip(classifier.net.state_dict().values(), again.net.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(UserError, match="has 4 outputs, but there are 3 classes"):
        load_classifier(tmp_path / "weights.pt", "resnet18", 1, names[:3])
    with pytest.raises(UserError, match="does not fit a resnet34"):
        load_classifier(tmp_path / "weights.pt", "resnet34", 1, names)
