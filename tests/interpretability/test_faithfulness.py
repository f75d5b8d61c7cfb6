"""Quantities of maps whose right values are known."""

import pytest
import torch
from torch import Tensor, nn

from interpretability.faithfulness import area_share, deletion_and_insertion, enlarged, mass_inside, peak_inside

SIZE = 16
LEFT_HALF = (torch.arange(SIZE) < SIZE // 2).expand(1, SIZE, SIZE)


def test_mass_and_peak_of_even_maps_spots_and_maps_without_evidence() -> None:
    assert mass_inside(torch.ones(1, SIZE, SIZE), LEFT_HALF).item() == pytest.approx(0.5)
    assert area_share(LEFT_HALF).item() == pytest.approx(0.5)
    spot = torch.full((1, SIZE, SIZE), 0.01)
    spot[0, 3, 2] = 5.0
    inside = (5 + 0.01 * (SIZE * SIZE / 2 - 1)) / (5 + 0.01 * (SIZE * SIZE - 1))
    assert mass_inside(spot, LEFT_HALF).item() == pytest.approx(inside)
    assert [peak_inside(one, LEFT_HALF).item() for one in (spot, spot.flip(2))] == [1, 0]
    empty = torch.zeros(1, SIZE, SIZE)
    assert torch.isnan(torch.stack([mass_inside(empty, LEFT_HALF), peak_inside(empty, LEFT_HALF)])).all()


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
