"""Do the maps depend on what the network has learnt? Cascading randomisation of its weights.

Adebayo et al. 2018, "Sanity checks for saliency maps" (arXiv 1810.03292, section 3.1).
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from interpretability.faithfulness import enlarged, structural_similarity
from interpretability.saliency import blocks, plain_copy

SURVIVES = 0.5  # mean rank correlation with the randomised network's maps from which on a method is not to be trusted
RANDOM_NETWORKS = 3  # whose maps, all blocks random, the verdict is about

MapFunction = Callable[[nn.Module], Tensor]


def randomised_from_the_head(network: nn.Module, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """(block, network) from the head down: copies in which that block and all above it have fresh random weights.

    BatchNorm's statistics start anew too.
    """
    net = plain_copy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in reversed(blocks(net)):
            changed = False
            for module in net.get_submodule(name).modules():
                if isinstance(reset := getattr(module, "reset_parameters", None), Callable):
                    reset()
                    changed = True
            if changed:
                yield name, plain_copy(net)


def sanity_check(network: nn.Module, maps_of: MapFunction, size: int) -> pd.DataFrame:
    """How alike maps stay when all blocks from the head down to `randomised` get random weights.

    Columns randomised, vanished (share of the maps that show nothing then), rank_correlation (Spearman), ssim (of maps
    scaled to 0..1): means over the images whose map shows anything; a map that vanished is alike by 0. The last row,
    where all is random, is the mean over RANDOM_NETWORKS of them, since one alone may happen to show nothing.
    maps_of  network -> maps [N, h, w]; compared at `size` pixels a side
    """
    original = _scaled(maps_of(network), size)

    def alike(net: nn.Module) -> np.ndarray:
        maps = _scaled(maps_of(net), size)
        shown = [(a, b) for a, b in zip(original, maps, strict=True) if a.any()]
        scores = [(not b.any(), _rank_correlation(a, b), structural_similarity(a, b)) for a, b in shown]
        return np.mean(scores, axis=0) if scores else np.full(3, np.nan)

    rows = {name: alike(net) for name, net in randomised_from_the_head(network, seed=0)}
    last = list(rows)[-1]
    others = (_all_random(network, seed) for seed in range(1, RANDOM_NETWORKS))
    rows[last] = np.mean([rows[last], *map(alike, others)], axis=0)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["vanished", "rank_correlation", "ssim"])
    return table.rename_axis("randomised").reset_index()


def _all_random(network: nn.Module, seed: int) -> nn.Module:
    for _, net in randomised_from_the_head(network, seed):
        network = net
    return network


def verdict(table: pd.DataFrame, empty: float) -> tuple[bool, str]:
    """Whether the maps of a `sanity_check` may be trusted, and why; `empty` is the share without any evidence."""
    vanished = float(table["vanished"].iloc[-1])
    if empty > 0.5:
        return False, f"not to be trusted: {empty:.0%} of the maps show no evidence at all"
    if vanished > 0.5:
        return False, "undecided: with random weights most maps show no evidence at all"
    left = float(table["rank_correlation"].iloc[-1]) / (1 - vanished)  # of those that show any
    if left >= SURVIVES:
        return False, f"not to be trusted: maps survive random weights (rank correlation {left:.2f})"
    return True, f"passes: maps change with the weights (rank correlation {left:.2f} with those of random ones)"


def _scaled(maps: Tensor, size: int) -> np.ndarray:
    """[N, size, size] with a largest value of 1, or all 0."""
    large = enlarged(maps, size)
    return (large / large.amax((1, 2), keepdim=True).clamp(min=1e-30)).cpu().numpy()


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    ranks = np.stack([rankdata(values.ravel()) for values in (a, b)])
    return float(np.corrcoef(ranks)[0, 1])  # Spearman's
