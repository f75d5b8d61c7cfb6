"""Quantities of maps whose right values are known; the sanity check flags maps that do not depend on the weights."""

import pytest
import torch
from torch import Tensor, nn

from downstream_task.classifier import Classifier
from downstream_task.finished_runs import OpenedData, find_finished
from interpretability.faithfulness import (
    deletion_and_insertion,
    enlarged,
    mass_inside,
    randomised_from_the_head,
    region_scores,
    sanity_check,
    verdict,
)
from interpretability.saliency import saliency_maps
from self_sup_classes.backbones import Backbone
from utils.logging_utils import Run

SIZE = 16
LEFT_HALF = (torch.arange(SIZE) < SIZE // 2).expand(1, SIZE, SIZE)


def test_mass_and_peak_of_even_maps_spots_and_maps_without_evidence() -> None:
    assert region_scores(torch.ones(1, SIZE, SIZE), LEFT_HALF)[:, 0].tolist() == pytest.approx([0.5, 0.5, 1, 0.5])
    spot = torch.full((1, SIZE, SIZE), 0.01)
    spot[0, 3, 2] = 5.0
    inside = (5 + 0.01 * (SIZE * SIZE / 2 - 1)) / (5 + 0.01 * (SIZE * SIZE - 1))
    assert mass_inside(spot, LEFT_HALF).item() == pytest.approx(inside)
    assert [region_scores(one, LEFT_HALF)[3].item() for one in (spot, spot.flip(2))] == [1, 0]
    assert torch.isnan(region_scores(torch.zeros(1, SIZE, SIZE), LEFT_HALF)[1:]).all()


def test_enlarging_keeps_the_place() -> None:
    cells = torch.zeros(1, 4, 4)
    cells[0, 0, 3] = 1
    large = enlarged(cells, SIZE)
    assert large.shape == (1, SIZE, SIZE)
    assert large[0, :4, 12:].sum() > 0.5 * large.sum()


class Sum(nn.Module):
    """Logit 0 is the sum over the left half, logit 1 nothing."""

    def forward(self, x: Tensor) -> Tensor:
        score = x[..., : SIZE // 2].sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


def test_deletion_is_small_and_insertion_large_for_a_map_that_finds_the_evidence() -> None:
    image = torch.zeros(1, 1, SIZE, SIZE)
    image[..., :4, :4] = 1.0
    image -= image.mean()  # so that an even image gives logits of 0
    right, wrong = torch.zeros(2, 1, SIZE, SIZE).unbind(0)
    right[..., :4, :4] = 1
    wrong[..., 8:] = 1
    areas = [
        deletion_and_insertion(Sum(), image, torch.tensor([0]), m, lambda logits: logits.softmax(1))
        for m in (right, wrong)
    ]
    (deleted, inserted), (deleted_wrong, inserted_wrong) = areas
    assert deleted < 0.3 < 0.6 < deleted_wrong
    assert inserted > 0.9 > inserted_wrong


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
    xrays = OpenedData(torch.device("cpu")).of(finished.config)
    images = xrays.batch(torch.from_numpy(xrays.indices("val")[::4])).float() / 255
    net = finished.classifier(torch.device("cpu")).net.eval()
    classes = net(images).argmax(1)
    randomised = [random for _, random in randomised_from_the_head(net, 1)][-1]

    def grad_cam(network: nn.Module) -> Tensor:
        return saliency_maps(network, images, classes)

    def of_a_randomised_network(_: nn.Module) -> Tensor:
        return saliency_maps(randomised, images, classes)

    trusted, words = verdict(sanity_check(net, grad_cam, 32), empty=0.0)
    assert trusted, words
    trusted, words = verdict(sanity_check(net, of_a_randomised_network, 32), empty=0.0)
    assert not trusted and "survive" in words


def test_the_verdict_is_on_the_mean_of_several_random_networks() -> None:
    net = Classifier(Backbone("resnet18", 1), 3).net
    shown, random_networks = torch.rand(2, 8, 8), set()

    def maps(network: nn.Module) -> Tensor:
        stem = network.get_parameter("conv1.weight")
        if stem.equal(net.get_parameter("conv1.weight")):
            return shown
        random_networks.add(stem.sum().item())  # the stem is the last block to become random
        return torch.zeros(2, 8, 8) if len(random_networks) == 1 else shown

    table = sanity_check(net, maps, 8)
    assert len(random_networks) > 1
    assert table["rank_correlation"].iloc[:-1].tolist() == pytest.approx([1] * 6)
    assert table["vanished"].iloc[-1] == pytest.approx(1 / len(random_networks))  # of the first one alone
    trusted, words = verdict(table, empty=0.0)  # the maps that remain are the trained network's
    assert not trusted and "survive" in words


def test_maps_without_evidence_are_not_trusted() -> None:
    net = Classifier(Backbone("resnet18", 1), 3).net  # its head is all zeros
    images, classes = torch.rand(2, 1, 32, 32), torch.tensor([0, 1])
    empty = float((saliency_maps(net, images, classes).sum((1, 2)) == 0).float().mean())
    table = sanity_check(net, lambda network: saliency_maps(network, images, classes), 32)
    most = "correlation 0.10 with those of random ones, 30% of which show evidence"
    for vanished, correlation, share, expected, said in (
        (table["vanished"], table["rank_correlation"], empty, False, "no evidence"),
        (0.7, 0.03, 0.0, True, most),  # the other 30% decide
        (1.0, 0.0, 0.0, False, "undecided"),  # maps of random weights that show nothing prove nothing
        (0.0, float("nan"), 0.0, False, "undecided"),  # constant maps have no rank correlation
    ):
        trusted, words = verdict(table.assign(vanished=vanished, rank_correlation=correlation), share)
        assert trusted is expected and said in words, words
