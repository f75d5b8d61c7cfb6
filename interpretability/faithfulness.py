"""Numbers for saliency maps: evidence inside lungs or boxes, deletion and insertion, and a sanity check of the maps."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from interpretability.saliency import IMAGES_AT_ONCE, plain_copy
from self_sup_classes.structure import blocks
from utils.seeds import mixed_seed

TIED = 1e-6  # of a map's largest value: what enlarging rounds
CURVE_POINTS = 20  # of the deletion and insertion curves, after the first
MAX_CORRELATION = 0.5  # mean rank correlation with a random network's maps; from there on, maps are not trusted
RANDOM_NETWORKS = 6  # networks with all blocks random that the verdict is based on
MAX_VANISHED = 0.9  # share of their maps that may be empty: Grad-CAM's are in about half of random networks


def enlarged(maps: Tensor, size: int) -> Tensor:
    """Return maps [N, h, w] at [N, size, size], bilinear."""
    return F.interpolate(maps[:, None].float(), (size, size), mode="bilinear", align_corners=False)[:, 0]


# --- lungs and boxes: masks [N, R, R] hold the share of each pixel that the region covers, or True and False ---


def region_scores(maps: Tensor, masks: Tensor) -> Tensor:
    """Return [4, N] of maps and masks [N, R, R]: the mask's share of the area, mass, mass over area, peak.

    mass  the share of the map's sum inside the mask; mass over area is 1 by chance
    peak  the pointing game (Zhang et al. 2016, arXiv 1608.00507, section 4.1): 1 where the map's largest value lies
          inside the mask, without a tolerance. Of several largest values, as at the rim of an enlarged map, the share
          inside counts: an even map scores the mask's share of the area.

    All but the area are NaN for an empty map.
    """
    largest = maps.amax((1, 2), keepdim=True)
    area, mass = masks.float().mean((1, 2)), mass_inside(maps, masks)
    peak = mass_inside((maps >= largest * (1 - TIED)).float(), masks)
    return torch.stack([area, mass, mass / area, torch.where(largest[:, 0, 0] > 0, peak, torch.nan)])


def mass_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Return [N]: the share of each map's sum [N, R, R] that lies inside a mask; NaN for an empty map."""
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))


# --- deletion and insertion ---


@torch.no_grad()
def deletion_and_insertion(
    network: nn.Module, images: Tensor, classes: Tensor, maps: Tensor, probability: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return areas [N], [N] under the class's probability while pixels are removed, or added, in the map's order.

    Petsiuk et al. 2018 (arXiv 1806.07421, section 3.2); a removed pixel has the image's mean. A map that finds what the
    network uses has a small first and a large second area.
    images [N, C, R, R], classes [N], maps [N, R, R]; `probability` turns logits [N, K] into probabilities.
    """
    net, areas = plain_copy(network), []
    for x, c, m in zip(*(t.split(IMAGES_AT_ONCE) for t in (images, classes, maps)), strict=True):
        rank = m.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 for the strongest evidence
        rank = rank.view(len(x), 1, *m.shape[1:])
        empty = x.mean((1, 2, 3), keepdim=True).expand_as(x)
        curves = []
        for step in range(CURVE_POINTS + 1):
            strongest = rank < step * m[0].numel() / CURVE_POINTS
            pair = torch.where(strongest, empty, x), torch.where(strongest, x, empty)
            curves.append(torch.stack([probability(net(one)).gather(1, c[:, None])[:, 0] for one in pair]))
        pair = torch.stack(curves, dim=1)  # [2, CURVE_POINTS + 1, n]
        areas.append(torch.stack([torch.trapezoid(curve, dim=0) / CURVE_POINTS for curve in pair]))
    deletion, insertion = torch.cat(areas, dim=1)
    return deletion, insertion


# --- sanity check (Adebayo et al. 2018, arXiv 1810.03292, section 3.1): do the maps depend on the weights? ---


def randomised_from_the_head(network: nn.Module, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield (block, network) from the head down: copies with random weights in that block and all above it.

    BatchNorm statistics are reset too.
    """
    net = plain_copy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed("random layers", seed))
        for name in reversed(blocks(net)):
            layers = [layer for layer in net.get_submodule(name).modules() if hasattr(layer, "reset_parameters")]
            for layer in layers:
                layer.reset_parameters()  # type: ignore[operator]  # a method, where it exists
            if layers:
                yield name, plain_copy(net)


def sanity_check(network: nn.Module, maps_of: Callable[[nn.Module], Tensor], size: int) -> pd.DataFrame:
    """Return how similar maps stay when all blocks from the head down to `randomised` get random weights.

    Columns randomised, vanished (share of the maps that become empty), rank_correlation (Spearman): means over the
    images whose original map is not empty; a vanished map has a rank correlation of 0.
    The last row, all blocks random, is the mean over RANDOM_NETWORKS networks: a single one may happen to give none.
    maps_of  network -> maps [N, h, w]; compared at `size` pixels per side
    """
    original = enlarged(maps_of(network), size).cpu().numpy()

    def similarity(net: nn.Module) -> np.ndarray:
        found = enlarged(maps_of(net), size).cpu().numpy()
        pairs = [(a, b) for a, b in zip(original, found, strict=True) if a.any()]
        scores = [(not b.any(), _rank_correlation(a, b)) for a, b in pairs]
        return np.mean(scores, axis=0) if scores else np.full(2, np.nan)

    rows = {name: similarity(net) for name, net in randomised_from_the_head(network, seed=0)}
    last = list(rows)[-1]
    others = [[*randomised_from_the_head(network, seed)][-1][1] for seed in range(1, RANDOM_NETWORKS)]
    rows[last] = np.mean([rows[last], *map(similarity, others)], axis=0)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["vanished", "rank_correlation"])
    return table.rename_axis("randomised").reset_index()


def verdict(table: pd.DataFrame, empty: float) -> tuple[bool, str]:
    """Return whether the maps of a `sanity_check` can be trusted, and why; `empty` is the share of empty maps."""
    vanished = float(table["vanished"].iloc[-1])
    if empty > 0.5:
        return False, f"not to be trusted: {empty:.0%} of the maps show no evidence at all"
    if vanished > MAX_VANISHED:
        return False, "undecided: with random weights hardly any map shows evidence"
    left = float(table["rank_correlation"].iloc[-1]) / (1 - vanished)  # of those that are not empty
    if np.isnan(left):
        return False, "undecided: no map can be compared with those of random weights"
    if left >= MAX_CORRELATION:
        return False, f"not to be trusted: maps survive random weights (rank correlation {left:.2f})"
    compared = f"rank correlation {left:.2f} with those of random ones, {1 - vanished:.0%} of which show evidence"
    return True, f"passes: maps change with the weights ({compared})"


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    return 0.0 if constant else float(spearmanr(a.ravel(), b.ravel())[0])  # type: ignore[arg-type]  # a number
