"""The sanity check: maps that do not hang on the weights are flagged."""

import pytest
import torch
from torch import Tensor, nn

from downstream_task.classifier import Classifier
from downstream_task.finished_runs import OpenedData, find_finished
from interpretability.saliency import saliency_maps
from interpretability.sanity import randomised_from_the_head, sanity_check, verdict
from self_sup_classes.backbones import Backbone
from utils.logging_utils import Run


def test_weights_become_random_from_the_head_down() -> None:
    net = Classifier(Backbone("resnet18", 1), 3).net
    before = {key: value.clone() for key, value in net.state_dict().items()}
    order = []
    for name, random in randomised_from_the_head(net, 0):
        order.append(name)
        changed = {key.split(".")[0] for key, value in random.state_dict().items() if not value.equal(before[key])}
        assert changed <= set(order)
    assert order == ["fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
    assert all(before[key].equal(value) for key, value in net.state_dict().items())


def test_a_trained_network_passes_and_maps_of_a_randomised_one_fail(plain: Run) -> None:
    finished = find_finished(str(plain.folder))[0]
    xrays = OpenedData(torch.device("cpu")).of(finished)
    images = xrays.batch(torch.from_numpy(xrays.indices("val")[:12])).float() / 255
    net = finished.classifier(torch.device("cpu")).net.eval()
    classes = net(images).argmax(1)
    randomised = [random for _, random in randomised_from_the_head(net, 1)][-1]

    def grad_cam(network: nn.Module) -> Tensor:
        return saliency_maps(network, images, classes)

    def of_a_randomised_network(_: nn.Module) -> Tensor:
        return saliency_maps(randomised, images, classes)

    trusted, words = verdict(sanity_check(net, grad_cam, 48), empty=0.0)
    assert trusted, words
    trusted, words = verdict(sanity_check(net, of_a_randomised_network, 48), empty=0.0)
    assert not trusted
    assert "survive" in words


def test_what_all_random_weights_give_is_the_mean_over_three_networks() -> None:
    shown, seen = torch.rand(2, 8, 8), []

    def maps(net: nn.Module) -> Tensor:
        seen.append(net.get_parameter("conv1.weight").detach().clone())
        return torch.zeros(2, 8, 8) if len(seen) == 8 else shown  # the first that is all random shows nothing

    table = sanity_check(Classifier(Backbone("resnet18", 1), 3).net, maps, 8)
    assert list(table["randomised"]) == ["fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
    assert table["vanished"].tolist() == pytest.approx([0] * 6 + [1 / 3])
    assert table["rank_correlation"].tolist() == pytest.approx([1] * 6 + [2 / 3])
    assert len(seen) == 10
    assert len({weight.sum().item() for weight in seen[7:]} - {seen[0].sum().item()}) == 3  # three others, all random
    trusted, words = verdict(table, empty=0.0)  # all that show anything survive
    assert not trusted
    assert "1.00" in words


def test_maps_without_evidence_are_not_trusted() -> None:
    net = Classifier(Backbone("resnet18", 1), 3).net  # its head is all zeros
    images = torch.rand(2, 1, 32, 32)
    maps = saliency_maps(net, images, torch.tensor([0, 1]))
    empty = float((maps.sum((1, 2)) == 0).float().mean())
    table = sanity_check(net, lambda network: saliency_maps(network, images, torch.tensor([0, 1])), 32)
    trusted, words = verdict(table, empty)
    assert not trusted
    assert "no evidence" in words
    vanished = table.assign(vanished=1.0, rank_correlation=0.0)
    trusted, words = verdict(vanished, empty=0.0)  # maps of random weights that show nothing prove nothing
    assert not trusted
    assert "undecided" in words
