"""Geometry against torchvision's on the same parameters, and the draws against what they claim."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from augmentations import geometry as g

SIZE, BILINEAR = 96, v2.InterpolationMode.BILINEAR


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def textured(size: int = SIZE) -> Tensor:
    """[1, 1, size, size] in [0, 1]: low-frequency waves and some noise, no symmetry."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    waves = 0.5 + 0.2 * torch.sin(9 * x + 2 * y) + 0.2 * torch.cos(3 * x - 8 * y + 1)
    return (waves + 0.05 * torch.rand(size, size, generator=generator())).clamp(0, 1)[None, None]


def smooth(size: int = SIZE) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    return (0.5 + 0.2 * torch.sin(6 * x + 2 * y) + 0.2 * torch.cos(2 * x - 5 * y + 1))[None, None]


def look(images: Tensor, homographies: Tensor, size: int = SIZE, interpolation: str = "bilinear") -> Tensor:
    levels = g.rows_by_level(homographies, images.shape[-1], size)
    outside = g.rows_that_leave_the_image(homographies)
    return g.resample(images, homographies.float(), levels, outside, size, interpolation)


def crop_of(left: int, top: int, width: int, height: int, size: int = SIZE) -> Tensor:
    return g.crop_homography(
        numbers((2 * left + width) / size - 1),
        numbers((2 * top + height) / size - 1),
        numbers(width / size),
        numbers(height / size),
    )


def as_levels(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("draw", "reference"), [(g.draw_hflip, tv.hflip), (g.draw_vflip, tv.vflip)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_flips_equal_torchvisions_in_256_levels(draw, reference, interpolation):
    image = torch.randint(0, 256, (1, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator())
    flipped = look(image / 255, draw(1, generator()), interpolation=interpolation)
    assert torch.equal(as_levels(flipped), reference(image))


@pytest.mark.parametrize("box", [(10, 20, 50, 40), (0, 0, 96, 96), (60, 5, 30, 37)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_agrees_with_resized_crop_to_1e_4_inside(box, interpolation):
    left, top, width, height = box
    image, size = textured(), 80
    mode = v2.InterpolationMode(interpolation)
    expected = tv.resized_crop(image, top, left, height, width, [size, size], mode, antialias=False)
    view = look(image, crop_of(*box), size, interpolation)
    # torchvision repeats the crop's border, we look beyond it: two image pixels differ on each side
    margin = 2 * size // min(width, height) + 1
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    assert (view - expected.clamp(0, 1))[inner].abs().max() < 1e-4


START, END = [[0, 0], [SIZE, 0], [SIZE, SIZE], [0, SIZE]], [[5, 2], [90, 6], [93, 91], [1, 89]]
MOVED = torch.tensor(END, dtype=torch.float64)[None] * 2 / SIZE - 1


@pytest.mark.parametrize(
    ("move", "homography"),
    [
        *(
            (lambda image, a=a: tv.rotate(image, a, BILINEAR), g.rotation_homography(numbers(a)))
            for a in (-20, 3.3, 20)
        ),
        (lambda image: tv.perspective(image, START, END, BILINEAR), g.perspective_homography(MOVED)),
    ],
)
def test_rotation_and_perspective_agree_with_torchvisions_to_1e_4(move, homography):
    image = textured()
    inside = move(torch.ones_like(image)) > 0.9999  # all but the darkened edge
    assert inside.float().mean() > 0.7
    assert (look(image, homography) - move(image))[inside].abs().max() < 1e-4


def test_composition_agrees_with_torchvisions_operators_one_after_another():
    """Within 0.01 on a smooth image, away from the edges: the sequence interpolates three times, we once."""
    image = smooth()
    expected = tv.resized_crop(image, 12, 8, 70, 64, [SIZE, SIZE], BILINEAR, antialias=False)
    expected = tv.perspective(tv.rotate(tv.hflip(expected), 15, BILINEAR), START, END, BILINEAR)
    product = crop_of(8, 12, 64, 70) @ g.draw_hflip(1, generator())
    product = product @ g.rotation_homography(numbers(15)) @ g.perspective_homography(MOVED)
    inner = (..., slice(20, -20), slice(20, -20))
    assert (look(image, product) - expected)[inner].abs().max() < 0.01
    assert (look(image, product) - image)[inner].abs().max() > 0.1  # something happened


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_beyond_the_edge_is_black_and_the_edge_itself_not_darkened(interpolation):
    homographies = torch.cat((g.rotation_homography(numbers(20, 0)), g.draw_perspective(30, generator())))
    views = look(torch.ones(32, 1, SIZE, SIZE), homographies, interpolation=interpolation)
    assert ((views == 0) | ((views - 1).abs() < 1e-5)).all()
    assert 0.05 < (views[0] == 0).float().mean() < 0.25  # four corners
    assert (views[1] > 0).all()


def test_rows_that_leave_the_image_are_those_with_a_pixel_outside():
    rng = generator(3)
    homographies = g.draw_crop(300, rng) @ g.draw_perspective(300, rng) @ g.draw_rotation(300, rng)
    pixels_outside = (g.sampling_grid(homographies, 200).abs() > 1).flatten(1).any(1)
    found = torch.zeros(300, dtype=torch.bool)
    found[g.rows_that_leave_the_image(homographies)] = True
    assert 50 < found.sum() < 250
    assert not (pixels_outside & ~found).any()
    assert (found & ~pixels_outside).sum() <= 10  # a corner outside by less than a pixel


def test_a_large_image_does_not_alias_and_a_small_crop_of_it_keeps_its_detail():
    stripes = (torch.arange(512) % 2).float().expand(3, 1, 512, 512).contiguous()
    homographies = torch.cat((crop_of(0, 0, 96, 96), crop_of(38, 38, 10, 10), crop_of(0, 0, 64, 64)))
    views = look(stripes, homographies, 64, "bicubic")
    assert (views[[0, 2]] - 0.5).abs().max() < 0.02  # finer than a view pixel: gray
    assert views[1].std() > 0.2  # 53 image pixels on 64 view pixels: visible
    levels = g.rows_by_level(homographies, 512, 64)
    assert [rows.tolist() for rows in levels] == [[1], [], [2], [0]]


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0)])
def test_crops_have_uniform_area_the_claimed_ratio_and_lie_inside(scale):
    n = 20_000
    homographies = g.draw_crop(n, generator(1), scale=scale)
    width, height = homographies[:, 0, 0], homographies[:, 1, 1]
    area = (width * height).sort().values
    uniform = torch.linspace(scale[0], scale[1], n, dtype=torch.float64)
    assert (area - uniform).abs().max() / (scale[1] - scale[0]) < 1.63 / n**0.5  # Kolmogorov-Smirnov, 1%
    ratio = width / height
    assert ratio.min() >= 3 / 4 - 1e-9
    assert ratio.max() <= 4 / 3 + 1e-9
    assert abs(ratio.log().mean()) < 0.01
    assert (homographies[:, :2, 2].abs() + torch.stack((width, height), 1)).max() <= 1 + 1e-9
    assert homographies[:, :2, 2].mean(0).abs().max() < 0.01


def test_rotation_and_perspective_draws_stay_in_their_ranges():
    n = 5000
    angles = torch.rad2deg(torch.asin(g.draw_rotation(n, generator(2), degrees=20)[:, 1, 0]))
    assert -20 <= angles.min() < -19.9
    assert 19.9 < angles.max() <= 20
    assert abs(angles.mean()) < 0.5
    # where the image's corners come to lie in the view: the inverse homography at the corners
    corners = torch.cat((g.CORNERS, torch.ones(4, 1, dtype=torch.float64)), dim=1)
    moved = corners @ g.draw_perspective(n, generator(2), distortion=0.15).inverse().mT
    inwards = 1 - moved[..., :2] / moved[..., 2:] * g.CORNERS  # [n, 4, 2]
    assert inwards.min() > -1e-9
    assert inwards.max() < 0.15 + 1e-9
    assert (inwards.mean(0) - 0.075).abs().max() < 0.003  # each of the four corners, in x and in y
