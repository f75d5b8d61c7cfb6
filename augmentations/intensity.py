"""Pixel operators: float32 images [n, 1, S, S] in [0, 1] to the same, each image with its own parameters.

The functions draw_* below give those parameters, on the CPU in float64: [n, k] numbers for n images.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from augmentations.geometry import Range, uniform


def equalize(images: Tensor) -> Tensor:
    """Equalise the histogram over 256 gray levels; bit-identical to torchvision and PIL on uint8 images."""
    levels = (images * 255).round_().flatten(1).long()  # [n, S * S]
    ones = torch.ones((), dtype=torch.long, device=images.device).expand_as(levels)
    with added_in_any_order():
        histogram = levels.new_zeros(len(levels), 256).scatter_add_(1, levels, ones)
    below = histogram.cumsum(1) - histogram  # [n, 256] pixels darker than each level
    # The brightest level present is left out of the step, as PIL does: all other pixels lie below it.
    step = (below * (histogram > 0)).amax(1, keepdim=True) // 255  # [n, 1]
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))  # too few levels: unchanged
    return (table.float() / 255).gather(1, levels).view_as(images)


@contextmanager
def added_in_any_order() -> Iterator[None]:
    """Let a GPU add in any order inside the block: for whole numbers, whose sum is the same bits in each.

    Deterministic algorithms would sort them first (torch's scatter_add).
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def gaussian_weights(sigma: Tensor, radius: int) -> Tensor:
    """Return [n, radius + 1] weights of a Gaussian kernel from its centre outwards, for sigma [n] in pixels.

    The whole kernel, 2 radius + 1 samples of the density, sums to one (as torchvision's).
    """
    distance = torch.arange(radius + 1, dtype=sigma.dtype, device=sigma.device)
    weights = (-0.5 * (distance / sigma[:, None]) ** 2).exp()
    return weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])


def blur(images: Tensor, weights: Tensor) -> Tensor:
    """Filter with reflected borders by the symmetric, separable kernels `gaussian_weights` [n, radius + 1].

    The images become the channels of one image, each filtered by its own kernel, along x and then along y. A kernel
    wider than reflection allows is cut.
    """
    n, size = len(images), images.shape[-1]
    if weights.shape[1] > size:
        weights = weights[:, :size] / (2 * weights[:, :size].sum(1, keepdim=True) - weights[:, :1])
    radius = weights.shape[1] - 1
    kernels = torch.cat((weights[:, 1:].flip(1), weights), dim=1)[:, None]  # [n, 1, 2 radius + 1]
    padded = F.pad(images.transpose(0, 1), [radius] * 4, mode="reflect")  # [1, n, S + 2 radius, S + 2 radius]
    along_x = F.conv2d(padded, kernels[:, :, None], groups=n)  # [1, n, S + 2 radius, S]
    return F.conv2d(along_x, kernels[..., None], groups=n).transpose(0, 1).clamp_(0, 1)  # [n, 1, S, S]


def gaussian_noise(images: Tensor, strength: Tensor, white: Tensor) -> Tensor:
    """Add white noise [n, 1, S, S], which it overwrites, times `strength` [n, 1] and the image's mean; then clamp."""
    sigma = strength[..., None, None] * images.mean(dim=(1, 2, 3), keepdim=True)  # [n, 1, 1, 1]
    return white.mul_(sigma).add_(images).clamp_(0, 1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply gray values by `factor` [n, 1]."""
    return (images * factor[..., None, None]).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply distances from the image's mean by `factor` [n, 1]; apart from clamping, the mean stays."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean).mul_(factor[..., None, None]).add_(mean)).clamp_(0, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert gray values from `threshold` [n, 1] upwards."""
    return torch.where(images >= threshold[..., None, None], 1 - images, images)


def draw_nothing(n: int, generator: torch.Generator) -> Tensor:
    """Return [n, 0], for operators without parameters."""
    return torch.zeros(n, 0, dtype=torch.float64)


def draw_blur(n: int, generator: torch.Generator, *, sigma: Range = (0.1, 2.0)) -> Tensor:
    """Return [n, radius + 1] weights for a sigma uniform in `sigma` (pixels of the view); radius 3 sigma."""
    return gaussian_weights(uniform(n, generator, sigma), radius=math.ceil(3 * sigma[1]))


def draw_noise(
    n: int, generator: torch.Generator, *, snr: Range = (4.0, 8.0), relative_sigma: Range | None = None
) -> Tensor:
    """Return [n, 1] standard deviations in units of the image's mean: 1 / SNR, or, if given, in `relative_sigma`."""
    if relative_sigma is not None:
        return uniform(n, generator, relative_sigma)[:, None]
    return 1 / uniform(n, generator, snr)[:, None]


def draw_factor(n: int, generator: torch.Generator, *, factor: Range = (0.8, 1.2)) -> Tensor:
    """Return [n, 1] uniform in `factor`."""
    return uniform(n, generator, factor)[:, None]


def draw_jitter(
    n: int, generator: torch.Generator, *, brightness: Range = (0.6, 1.4), contrast: Range = (0.6, 1.4)
) -> Tensor:
    """Return [n, 2] brightness and contrast factors."""
    return torch.stack((uniform(n, generator, brightness), uniform(n, generator, contrast)), dim=1)


def draw_threshold(n: int, generator: torch.Generator, *, threshold: float = 128 / 255) -> Tensor:
    """Return [n, 1], the same for all images."""
    return torch.full((n, 1), threshold, dtype=torch.float64)
