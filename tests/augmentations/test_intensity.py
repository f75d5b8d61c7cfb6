"""Pixel operators against torchvision's on the same parameters, and their strength on X-ray-like images."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from augmentations import intensity

SIZE = 64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chests(n: int = 6) -> Tensor:
    """[n, 1, 64, 64] in (0.15, 0.85): bright body, two dark lungs, fine texture, each of its own exposure."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    lungs = torch.exp(-(((x.abs() - 0.45) / 0.25) ** 2) - (y / 0.6) ** 2)
    exposure = torch.linspace(0.5, 0.7, n)[:, None, None, None]
    texture = 0.05 * torch.rand(n, 1, SIZE, SIZE, generator=generator())
    return exposure - 0.3 * lungs + 0.1 * y + texture


def levels_of(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def test_equalize_equals_torchvisions_to_the_bit():
    images = [
        torch.randint(0, 256, (SIZE, SIZE), dtype=torch.uint8, generator=generator()),
        torch.full((SIZE, SIZE), 91, dtype=torch.uint8),  # one level: unchanged
        torch.zeros(SIZE, SIZE, dtype=torch.uint8),
        torch.randint(30, 33, (SIZE, SIZE), dtype=torch.uint8, generator=generator()),  # three levels
        torch.eye(SIZE).to(torch.uint8) * 255,  # too few bright pixels for a step
        torch.randint(0, 256, (SIZE, SIZE), generator=generator()).pow(2).div(255).to(torch.uint8),
        *levels_of(chests())[:, 0],
    ]
    batch = torch.stack(images)[:, None]
    result = intensity.equalize(batch / 255)
    assert torch.equal(result, tv.equalize(batch) / 255)


def test_blur_agrees_with_torchvisions_to_1e_5_borders_included():
    images, sigmas = chests(), torch.tensor([0.1, 0.4, 0.9, 1.3, 1.7, 2.0])
    blurred = intensity.blur(images, intensity.gaussian_weights(sigmas, radius=6))
    for image, sigma, result in zip(images, sigmas, blurred, strict=True):
        expected = tv.gaussian_blur(image, kernel_size=[13, 13], sigma=[sigma.item()])
        assert (result - expected).abs().max() < 1e-5


def test_the_drawn_kernel_holds_three_sigma_and_sums_to_one():
    weights = intensity.draw_blur(1000, generator(), sigma=(0.1, 2.0))
    assert weights.shape == (1000, 7)
    assert torch.allclose(2 * weights.sum(1) - weights[:, 0], torch.ones(1000, dtype=torch.float64))
    # sigma from the ratio of the first two weights, where it is large enough to be known
    sigma = (0.5 / (weights[:, 0] / weights[:, 1].clamp(min=1e-30)).log()).sqrt()
    assert 1.99 < sigma.max() <= 2.0
    assert abs((sigma > 1.05).float().mean() - 0.5) < 0.05


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.0, 1.2, 1.4])
def test_brightness_and_contrast_agree_with_torchvisions_to_1e_6(factor):
    images = chests()
    factors = torch.full((len(images), 1), factor)
    brighter, contrasted = intensity.brightness(images, factors), intensity.contrast(images, factors)
    for image, bright, contrast in zip(images, brighter, contrasted, strict=True):
        assert (bright - tv.adjust_brightness(image, factor)).abs().max() < 1e-6
        assert (contrast - tv.adjust_contrast(image, factor)).abs().max() < 1e-6


def test_solarize_equals_torchvisions():
    images = chests()
    result = intensity.solarize(images, torch.full((len(images), 1), 128 / 255))
    assert torch.equal(result, tv.solarize(images, 128 / 255))
    assert not torch.equal(result, images)


def test_noise_has_the_specified_signal_to_noise_ratio_per_image():
    """The original project drew sigma = mean x U(.06, .1), an SNR of 10 to 17; the paper means 4 to 8."""
    images = chests(3).repeat_interleave(8, dim=0)  # many pixels for a sharp estimate
    snr = torch.tensor([8.0, 6.0, 5.0]).repeat_interleave(8)
    noise = (
        intensity.gaussian_noise(images * 0.9, (1 / snr)[:, None], torch.randn(images.shape, generator=generator()))
        - images * 0.9
    )
    mean = (images * 0.9).mean(dim=(1, 2, 3))
    assert torch.allclose(noise.std(dim=(1, 2, 3)), mean / snr, rtol=0.05)
    assert noise.mean().abs() < 1e-3
    assert abs(torch.corrcoef(noise[:2].flatten(1))[0, 1]) < 0.05  # two images, two noises
    assert abs((noise[..., 1:] * noise[..., :-1]).mean() / noise.var()) < 0.02  # white


def test_noise_draws_are_in_the_units_that_the_recipe_names():
    share = intensity.draw_noise(4000, generator())
    assert 1 / 8 <= share.min() < 0.126
    assert 0.249 < share.max() <= 1 / 4
    assert abs((1 / share).mean() - 6) < 0.1  # the SNR is uniform, not sigma
    weak = intensity.draw_noise(4000, generator(), relative_sigma=(0.06, 0.1))
    assert 0.06 <= weak.min() < 0.061
    assert 0.099 < weak.max() <= 0.1
