"""Numbers for saliency maps: is the evidence inside the lungs, and does the class hang on it?"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interpretability.saliency import IMAGES_AT_ONCE, plain_copy

CURVE_POINTS = 20  # of the deletion and insertion curves, after the first


def enlarged(maps: Tensor, size: int) -> Tensor:
    """Maps [N, h, w] at [N, size, size], bilinear."""
    return F.interpolate(maps[:, None].float(), (size, size), mode="bilinear", align_corners=False)[:, 0]


def mass_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """[N]: share of each map's mass [N, R, R] that lies inside a mask, bool [N, R, R]; NaN for an empty map.

    By chance it is the mask's share of the area, `area_share`.
    """
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))


def area_share(masks: Tensor) -> Tensor:
    """[N]: share of the image that a mask, bool [N, R, R], covers."""
    return masks.float().mean((1, 2))


def peak_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """[N] of 0, 1, NaN for an empty map: the pointing game (Zhang et al. 2016, arXiv 1608.00507, section 4.1)."""
    peaks = maps.flatten(1).argmax(1, keepdim=True)
    hit = masks.flatten(1).gather(1, peaks)[:, 0].float()
    return torch.where(maps.sum((1, 2)) > 0, hit, torch.nan)


def deletion_and_insertion(
    network: nn.Module, images: Tensor, classes: Tensor, maps: Tensor, probability: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Areas [N], [N] under the class's probability while pixels go, or come, in the order of the map.

    Petsiuk et al. 2018 (arXiv 1806.07421, section 3.2), with each image's mean for what is not there. A map that finds
    what the network uses has a small first and a large second one.
    images [N, C, R, R], classes [N], maps [N, R, R]; `probability` turns logits [N, K] into probabilities.
    """
    net = plain_copy(network)
    areas = [
        _areas(net, x, c, m, probability)
        for x, c, m in zip(*(t.split(IMAGES_AT_ONCE) for t in (images, classes, maps)), strict=True)
    ]
    deletion, insertion = (torch.cat(parts) for parts in zip(*areas, strict=True))
    return deletion, insertion


@torch.no_grad()
def _areas(
    net: nn.Module, images: Tensor, classes: Tensor, maps: Tensor, probability: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    n, pixels = len(images), maps[0].numel()
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(pixels, device=order.device).expand_as(order))
    rank = rank.view(n, 1, *maps.shape[1:])  # 0 for the strongest evidence
    empty = images.mean((1, 2, 3), keepdim=True).expand_as(images)
    curves = []
    for step in range(CURVE_POINTS + 1):
        strongest = rank < step * pixels / CURVE_POINTS
        pair = torch.where(strongest, empty, images), torch.where(strongest, images, empty)
        curves.append([probability(net(x)).gather(1, classes[:, None])[:, 0] for x in pair])
    deletion, insertion = (torch.stack(curve) for curve in zip(*curves, strict=True))
    return torch.trapezoid(deletion, dim=0) / CURVE_POINTS, torch.trapezoid(insertion, dim=0) / CURVE_POINTS


def structural_similarity(a: np.ndarray, b: np.ndarray, window: int = 7) -> float:
    """Mean SSIM of two maps [H, W] in 0..1 (Wang et al. 2004, IEEE TIP 13, equation 13; an even window)."""
    window = min(window, (min(a.shape) - 1) | 1)
    x, y = (torch.from_numpy(m.astype(np.float64))[None, None] for m in (a, b))

    def local(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, window, stride=1)

    mean_x, mean_y = local(x), local(y)
    unbiased = window**2 / (window**2 - 1)
    var_x, var_y = ((local(v * v) - m * m) * unbiased for v, m in ((x, mean_x), (y, mean_y)))
    covariance = (local(x * y) - mean_x * mean_y) * unbiased
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())
