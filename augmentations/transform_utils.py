"""Views: the recipes of recipes.py, drawn and rendered for whole batches on the images' device."""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from augmentations import geometry, intensity
from augmentations.recipes import RECIPES, Recipe
from utils.config import check_choice, one_of
from utils.distributed import Shard
from utils.seeds import mixed_seed

# ImageNet's channel means and standard deviations, averaged over the channels: every network sees the same
# input, whether it starts from random, Barlow Twins or ImageNet weights (summed over their channels).
GRAY_MEAN, GRAY_STD = 0.449, 0.226
# Images that pass through the operators together: what these need in between, but for noise, which is drawn for all,
# does not grow with the batch.
IMAGES_AT_ONCE = 256
RecipeName = Annotated[str, one_of(RECIPES)]


@dataclass(frozen=True)
class Operator:
    """What a name in a recipe stands for.

    draw   (n, generator, **parameters) -> homographies [n, 3, 3] or values [n, k], on the CPU
    apply  (images, values) -> images; None for the geometric operators
    noisy  whether apply takes white noise besides, as large as the images
    """

    draw: Callable[..., Tensor]
    apply: Callable[..., Tensor] | None = None
    noisy: bool = False


OPERATORS = {
    "crop": Operator(geometry.draw_crop),
    "hflip": Operator(geometry.draw_hflip),
    "vflip": Operator(geometry.draw_vflip),
    "rotation": Operator(geometry.draw_rotation),
    "perspective": Operator(geometry.draw_perspective),
    "equalize": Operator(intensity.draw_nothing, lambda x, values: intensity.equalize(x)),
    "blur": Operator(intensity.draw_blur, intensity.blur),
    "noise": Operator(intensity.draw_noise, intensity.gaussian_noise, noisy=True),
    "brightness": Operator(intensity.draw_factor, intensity.brightness),
    "contrast": Operator(intensity.draw_factor, intensity.contrast),
    "jitter": Operator(
        intensity.draw_jitter,
        lambda x, values: intensity.contrast(intensity.brightness(x, values[:, :1]), values[:, 1:]),
    ),
    "solarize": Operator(intensity.draw_threshold, intensity.solarize),
}


def normalise(images: Tensor) -> Tensor:
    """[0, 1] to about zero mean and unit variance."""
    return (images - GRAY_MEAN).div_(GRAY_STD)


def denormalise(views: Tensor) -> Tensor:
    """The inverse of `normalise`, clamped to [0, 1], for pictures."""
    return (views * GRAY_STD).add_(GRAY_MEAN).clamp_(0, 1)


def step_generator(purpose: str, seed: int, epoch: int, step: int) -> torch.Generator:
    """A generator seeded by its arguments alone, well mixed: a resumed run draws the same, and no other purpose."""
    return torch.Generator().manual_seed(mixed_seed(purpose, seed, epoch, step))


def move_at_once(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors (float32, or integers below 2^24) on `device`, by one copy that does not wait for it."""
    if device.type == "cpu":
        return tensors
    flat = torch.cat([tensor.flatten().float() for tensor in tensors])
    if device.type == "cuda":
        flat = flat.pin_memory()
    pieces = flat.to(device, non_blocking=device.type == "cuda").split([tensor.numel() for tensor in tensors])
    return [piece.view(old.shape).to(old.dtype) for piece, old in zip(pieces, tensors, strict=True)]


class View:
    """One recipe as a function from images to random views.

    All geometric operators come first, as one resampling, then the others in the recipe's order. So what a
    rotation or perspective brings in beside a crop is the image, as far as it reaches, and black only beyond.
    """

    def __init__(self, name: str, recipe: Recipe, out_size: int):
        check_recipe(name, recipe)
        self.out_size = out_size
        self.geometry: list[tuple[Operator, float, dict[str, Any]]] = []
        self.intensity: list[tuple[Operator, float, dict[str, Any]]] = []
        for operator, given in recipe:
            parameters = dict(given)
            step = (OPERATORS[operator], parameters.pop("p", 1.0), parameters)
            (self.geometry if step[0].apply is None else self.intensity).append(step)

    def __call__(self, images: Tensor, generator: torch.Generator, shard: Shard | None = None) -> Tensor:
        """Images [B, 1, S, S] in [0, 1] to normalised views [B, 1, R, R]."""
        size, shard = images.shape[-1], shard or Shard(slice(None), len(images))
        homographies = self.draw_geometry(shard.total, generator)[shard.rows]
        levels = geometry.rows_by_level(homographies, size, self.out_size)
        outside = geometry.rows_that_leave_the_image(homographies)
        drawn, shards = self.draw_intensity(generator, shard)
        noise_seed = int(torch.randint(2**62, (), generator=generator))
        tensors = [homographies.float(), outside, *levels, *(tensor for pair in drawn for tensor in pair)]
        homographies, outside, *rest = move_at_once(tensors, images.device)
        levels, drawn = rest[: len(levels)], rest[len(levels) :]
        if self.geometry or size != self.out_size:
            # torch has no bicubic sampling on Apple's GPUs
            interpolation = "bilinear" if images.device.type == "mps" else "bicubic"
            views = geometry.resample(images, homographies, levels, outside, self.out_size, interpolation)
        else:
            views = images.clone()
        noise = torch.Generator(images.device).manual_seed(noise_seed)
        return normalise(self.apply_intensity(views, drawn[::2], drawn[1::2], noise, shards))

    def draw_geometry(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, 3, 3] float64: the product of the geometric operators; the identity where one was not drawn."""
        product = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
        for operator, p, parameters in self.geometry:
            chosen = torch.rand(n, generator=generator) < p
            homographies = operator.draw(n, generator, **parameters)
            product = torch.where(chosen[:, None, None], product @ homographies, product)
        return product

    def draw_intensity(
        self, generator: torch.Generator, shard: Shard
    ) -> tuple[list[tuple[Tensor, Tensor]], list[Shard]]:
        """For each operator the rows drawn of `shard` and their values [rows, k]; and which of all drawn rows they are.

        Values are drawn for all images, so that no image's draw depends on another's.
        """
        drawn, shards = [], []
        for operator, p, parameters in self.intensity:
            chosen = torch.rand(shard.total, generator=generator) < p
            values = operator.draw(shard.total, generator, **parameters).float()
            rows = chosen[shard.rows].nonzero().flatten()
            drawn.append((rows, values[shard.rows][rows]))
            before = int(chosen[: shard.rows.start or 0].sum())
            shards.append(Shard(slice(before, before + len(rows)), int(chosen.sum())))
        return drawn, shards

    def apply_intensity(
        self, views: Tensor, rows: list[Tensor], values: list[Tensor], noise: torch.Generator, shards: list[Shard]
    ) -> Tensor:
        """Each operator on its rows of views [B, 1, R, R], which it may write into."""
        for (operator, _, _), chosen, drawn, shard in zip(self.intensity, rows, values, shards, strict=True):
            if operator.apply is None or not len(chosen):
                continue
            given = [drawn]
            if operator.noisy:  # drawn for all images, so that none depends on how they are shared out
                white = torch.randn(shard.total, *views.shape[1:], generator=noise, device=views.device)
                given.append(white[shard.rows])
            if len(chosen) == len(views):
                views = operator.apply(views, *given)
            else:
                views[chosen] = operator.apply(views[chosen], *given)
        return views


def check_recipe(name: str, recipe: Recipe) -> None:
    """Raise UserError, naming the nearest one, if an operator or a parameter of it does not exist."""
    for operator, given in recipe:
        check_choice(f"recipe {name!r}: operator", operator, [*OPERATORS])
        signature = inspect.signature(OPERATORS[operator].draw)
        known = ["p", *(p.name for p in signature.parameters.values() if p.kind == p.KEYWORD_ONLY)]
        for parameter in given:
            check_choice(f"recipe {name!r}: parameter of {operator!r}", parameter, known)


def operator_views(recipe: str, out_size: int) -> dict[str, View]:
    """Each operator of a recipe alone, as a view, applied to every image.

    `blur` and `blur 2` where the recipe, or its second view, has it with other parameters too.
    """
    data = RECIPES[recipe]
    alone: list[tuple[str, dict[str, Any]]] = []
    for name, given in itertools.chain(*data) if isinstance(data, tuple) else data:
        always = (name, {**given, "p": 1.0})
        if always not in alone:
            alone.append(always)
    views = {}
    for n, (name, given) in enumerate(alone):
        times = [earlier for earlier, _ in alone[: n + 1]].count(name)
        views[name if times == 1 else f"{name} {times}"] = View(recipe, [(name, given)], out_size)
    return views


def plain_view(images: Tensor, out_size: int, in_channels: int) -> Tensor:
    """uint8 [B, 1, S, S] as a network of `in_channels` is shown it without augmentation: float32 [B, C, R, R]."""
    return Views("none", out_size).single(images, step_generator("plain view", 0, 0, 0)).expand(-1, in_channels, -1, -1)


class Views:
    """Random views of each image, by the recipe of a name in recipes.py; two, as in the paper, or `count` of them.

    A recipe that differs between the views, a pair, alternates: first, second, first, ...

    out_size  side R of the views, in pixels; images of up to about 1.5 R are sampled directly, larger ones
              through halved copies, so that they do not alias
    Raises UserError, naming the nearest one, if an operator or a parameter of the recipe does not exist.
    """

    def __init__(self, recipe: str, out_size: int, count: int = 2):
        data = RECIPES[recipe]
        recipes = data if isinstance(data, tuple) else (data, data)
        self.views = [View(recipe, recipes[n % 2], out_size) for n in range(count)]

    def __call__(self, images: Tensor, generator: torch.Generator, shard: Shard | None = None) -> list[Tensor]:
        """uint8 [B, 1, S, S] to `count` normalised float32 [B, 1, R, R], with independent draws.

        generator  on the CPU, whatever the images' device: parameters are drawn there, the same for all devices
        shard      which images of a larger batch they are, whose draws they get; without it they are the whole batch
        """
        return self.render(images, generator, self.views, shard)

    def of_pairs(
        self, images: Tensor, others: Tensor, generator: torch.Generator, shard: Shard | None = None
    ) -> list[Tensor]:
        """The same, but each second view is of the image in `others` [B, 1, S, S] at its place."""
        first = self.render(images, generator, self.views[::2], shard)
        return first + self.render(others, generator, self.views[1::2], shard)

    def single(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 [B, 1, S, S] to one normalised float32 view [B, 1, R, R]; of several the recipe's first."""
        return self.render(images, generator, self.views[:1])[0]

    @staticmethod
    @torch.no_grad()
    def render(
        images: Tensor, generator: torch.Generator, views: list[View], shard: Shard | None = None
    ) -> list[Tensor]:
        """The images through each of `views`, in float32 whatever autocast says around it."""
        first, total = (shard.rows.start or 0, shard.total) if shard else (0, len(images))
        before, chunks = generator.get_state(), []
        with torch.autocast(images.device.type, enabled=False):
            for chunk in images.split(IMAGES_AT_ONCE):
                generator.set_state(before)  # each chunk has its own rows of the same draws
                source, rows = chunk.float().div_(255), slice(first, first + len(chunk))
                chunks.append([view(source, generator, Shard(rows, total)) for view in views])
                first += len(chunk)
        return chunks[0] if len(chunks) == 1 else [torch.cat(of_view) for of_view in zip(*chunks, strict=True)]
