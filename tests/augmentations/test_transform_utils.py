"""Recipes as a user meets them: draws, independence, repeatability, errors, real X-rays."""

import itertools

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from augmentations import transform_utils
from augmentations.recipes import RECIPES
from augmentations.transform_utils import Views, denormalise, normalise, step_generator
from utils.config import UserError
from utils.distributed import Shard


def batch(n: int = 8, size: int = 40, seed: int = 0) -> Tensor:
    """uint8 [n, 1, size, size], each image of its own brightness."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (n, 1, size, size), generator=rng)
    return (pixels + torch.randint(0, 136, (n, 1, 1, 1), generator=rng)).to(torch.uint8)


def with_recipe(monkeypatch: pytest.MonkeyPatch, recipe: list, size: int = 40) -> Views:
    monkeypatch.setitem(RECIPES, "tried", recipe)
    return Views("tried", size)


@pytest.mark.parametrize("size", [32, 40, 100, 24])  # the view's side, larger, much larger, smaller
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_gives_two_sane_views(recipe, size):
    images = batch(size=size)
    views = Views(recipe, 32)
    first, second = views(images, step_generator("test", 0, 0, 0))
    for view in (first, second, views.single(images, step_generator("test", 0, 0, 0))):
        assert view.shape == (8, 1, 32, 32)
        assert view.dtype == torch.float32
        assert torch.isfinite(view).all()
        assert normalise(torch.zeros(1)) - 1e-5 <= view.min() < view.max() <= normalise(torch.ones(1)) + 1e-5
    assert torch.equal(first, second) == (recipe == "none")
    assert torch.equal(images, batch(size=size))  # the store's pixels are not written to


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_views_of_an_image_do_not_depend_on_what_is_rendered_with_it(recipe, monkeypatch):
    """Processes that share a batch, or a batch that passes in parts, give each image the views that it has anyway."""
    images = batch(24, size=64)
    whole = Views(recipe, 32, count=3)(images, step_generator("test", 1, 2, 3), Shard(slice(24, 48), 60))
    monkeypatch.setattr(transform_utils, "IMAGES_AT_ONCE", 5)
    places = [slice(24, 32), slice(32, 40), slice(40, 48)]
    shares = [
        Views(recipe, 32, count=3)(some, step_generator("test", 1, 2, 3), Shard(rows, 60))
        for some, rows in zip(images.split(8), places, strict=True)
    ]
    for view, parts in zip(whole, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), view)


def test_every_argument_of_the_step_generator_matters_and_neighbours_are_unrelated():
    cells = list(itertools.product((0, 73), range(6), range(40)))
    draws = torch.stack([torch.rand(64, generator=step_generator("test", *cell)) for cell in cells])
    assert len({tuple(row.tolist()) for row in draws}) == len(cells)
    correlation = torch.corrcoef(draws) - torch.eye(len(cells))
    assert correlation.abs().max() < 0.65  # 5.5 standard deviations of chance
    assert (draws[:, 0].mean() - 0.5).abs() < 0.05  # first draws of the generators, over all of them
    torch.manual_seed(5)
    assert torch.equal(torch.rand(64, generator=step_generator("test", *cells[7])), draws[7])  # no global state


def test_every_image_draws_its_own_parameters():
    images = batch(1).repeat(16, 1, 1, 1)
    first, second = Views("base", 32)(images, step_generator("test", 0, 0, 0))
    both = torch.cat((first, second)).flatten(1)
    assert (torch.cdist(both, both) + torch.eye(32) * 1e3).min() > 0.5


def test_an_operator_with_a_probability_works_on_the_drawn_rows_alone(monkeypatch):
    images = batch(400, size=20)
    views = with_recipe(monkeypatch, [("equalize", {"p": 0.3})], 20)
    for view in views(images, step_generator("test", 0, 0, 0)):
        levels = (denormalise(view) * 255).round().to(torch.uint8)
        untouched = (levels == images).flatten(1).all(1)
        equalized = (levels == tv.equalize(images)).flatten(1).all(1)
        assert (untouched ^ equalized).all()
        assert abs(equalized.float().mean() - 0.3) < 0.08


def test_geometry_is_applied_in_the_recipes_order(monkeypatch):
    crop = ("crop", {"scale": (0.2, 0.4)})
    cropped = with_recipe(monkeypatch, [crop]).single(batch(), step_generator("test", 0, 0, 0))
    flipped = with_recipe(monkeypatch, [crop, ("hflip", {})]).single(batch(), step_generator("test", 0, 0, 0))
    assert (flipped.flip(-1) - cropped).abs().max() < 1e-4  # the crop, flipped; not another crop


def test_noise_is_new_for_every_view_and_step(monkeypatch):
    views = with_recipe(monkeypatch, [("noise", {})])
    gray = torch.full((1, 1, 40, 40), 128, dtype=torch.uint8)
    drawn = [view for step in range(3) for view in views(gray, step_generator("test", 0, 0, step))]
    correlation = torch.corrcoef(torch.stack(drawn).flatten(1)) - torch.eye(6)
    assert correlation.abs().max() < 0.125  # 5 standard deviations of chance


def test_another_operators_probability_does_not_change_an_operators_draws(monkeypatch):
    images = batch(64)
    alone = with_recipe(monkeypatch, [("blur", {"p": 0}), ("brightness", {"p": 0.5})])
    some = with_recipe(monkeypatch, [("blur", {"p": 0.5}), ("brightness", {"p": 0.5})])
    a, b = (views.single(images, step_generator("test", 0, 0, 0)) for views in (alone, some))
    same = (a == b).flatten(1).all(1)
    assert abs(same.float().mean() - 0.5) < 0.2  # those not blurred are as if nobody was
    assert not torch.equal(a[same], normalise(images[same] / 255))


def test_flips_come_up_half_of_the_time():
    image = torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    image[..., :4, :4] = 255
    first, second = (denormalise(v) for v in Views("supervised", 8)(image, step_generator("test", 0, 0, 0)))
    flipped = torch.stack((first, second))[..., 1, 6].squeeze() > 0.5  # [2, 2000]
    assert (flipped.float().mean(1) - 0.5).abs().max() < 0.04
    assert abs((flipped[0] == flipped[1]).float().mean() - 0.5) < 0.04  # two views, two coins
    vflip = denormalise(Views("base+vflip", 8).single(image, step_generator("test", 0, 0, 0)))
    lower_half_brighter = vflip[:, 0, 4:].sum((1, 2)) > vflip[:, 0, :4].sum((1, 2))
    assert abs(lower_half_brighter.float().mean() - 0.5) < 0.1


def test_none_is_the_image_itself_at_its_own_size_and_a_plain_resize_at_another():
    images = batch(size=32)
    same = Views("none", 32).single(images, step_generator("test", 0, 0, 0))
    assert torch.equal((denormalise(same) * 255).round().to(torch.uint8), images)
    resized = Views("none", 24).single(images, step_generator("test", 0, 0, 0))
    expected = tv.resize(images / 255, [24, 24], tv.InterpolationMode.BICUBIC, antialias=False)
    assert (denormalise(resized) - expected.clamp(0, 1)).abs().max() < 1e-4
    assert torch.equal(resized, Views("none", 24).single(images, step_generator("test", 9, 9, 9)))


def test_the_imagenet_recipe_has_two_different_views():
    """The paper's: the first always blurred, the second rarely, and solarized one time in five."""
    images = batch(600, size=24)
    first, second = Views("imagenet", 24)(images, step_generator("test", 0, 0, 0))
    roughness = [(v[..., 1:] - v[..., :-1]).abs().mean() for v in (first, second)]
    assert roughness[0] < 0.7 * roughness[1]
    assert Views("imagenet", 24).views[0].intensity[1][1] == 1.0


@pytest.mark.parametrize("recipe", ["original", "imagenet"])
def test_more_views_are_further_draws_after_the_same_two(recipe: str) -> None:
    """So two views are what they are however many can be asked for; a pair of recipes alternates."""
    images = batch()
    two, four = (Views(recipe, 24, count)(images, step_generator("test", 0, 0, 0)) for count in (2, 4))
    assert [view.shape for view in four] == [two[0].shape] * 4
    assert torch.equal(two[0], four[0]) and torch.equal(two[1], four[1])
    assert all(not torch.equal(first, second) for first, second in itertools.combinations(four, 2))
    steps = [view.intensity for view in Views(recipe, 24, 4).views]
    assert steps[:2] == steps[2:]


def test_autocast_does_not_touch_the_views():
    outside = Views("imagenet", 32)(batch(), step_generator("test", 0, 0, 0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = Views("imagenet", 32)(batch(), step_generator("test", 0, 0, 0))
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


@pytest.mark.parametrize(
    ("recipe", "found", "nearest"),
    [
        ([("crops", {})], "'crops'", "'crop'"),
        ([("crop", {"scales": (0.2, 1.0)})], "'scales'", "'scale'"),
        (([], [("equalise", {"p": 0.5})]), "'equalise'", "'equalize'"),
        ([("hflip", {"prob": 0.5})], "'prob'", "'p'"),
    ],
)
def test_an_unknown_operator_or_parameter_is_refused_with_the_nearest(monkeypatch, recipe, found, nearest):
    monkeypatch.setitem(RECIPES, "tried", recipe)
    with pytest.raises(UserError, match="does not exist") as error:
        Views("tried", 32)
    assert "'tried'" in str(error.value)
    assert found in str(error.value)
    assert nearest in str(error.value) or "Known: p" in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_gpu_draws_the_same_parameters_as_the_cpu(recipe):
    images = batch(64)
    on_cpu = Views(recipe, 32)(images, step_generator("test", 0, 0, 0))
    on_gpu = Views(recipe, 32)(images.cuda(), step_generator("test", 0, 0, 0))
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        assert gpu.device.type == "cuda"
        assert torch.isfinite(gpu).all()
        # noise differs pixel by pixel, and equalisation turns a rounding into another level
        assert (cpu - gpu.cpu()).flatten(1).mean(1).abs().max() < 0.1
