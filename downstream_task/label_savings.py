"""How many labels one arm needs for what another reaches with few."""

from collections.abc import Sequence

import numpy as np

# One point of a curve: labels, scores [K] over draws, and scores [R, K] on resampled images.
Point = tuple[int, np.ndarray, np.ndarray]


def labels_needed(resampled: np.ndarray, scores: np.ndarray, curve: Sequence[Point], seed: int = 0) -> dict[str, float]:
    """The labels at which `curve` reaches an arm's mean score: reference_needs, with a 95% interval (_low, _high).

    scores [K] are the arm's over its draws, resampled [R, K] on the images that the curve's resamples have too. The
    interval is the percentile one over images and draws together; of three draws it is rather too narrow. Beyond the
    curve's last point: inf (more labels than were tried); below its first: 0 (fewer than were tried).
    """
    curve = sorted(curve, key=lambda point: point[0])
    labels = np.array([point[0] for point in curve])
    now = _crossing(labels, np.array([point[1].mean() for point in curve]), scores.mean())
    generator = np.random.default_rng(seed)
    crossings = []
    for r in range(len(resampled)):
        draws = generator.integers(0, len(scores), len(scores))
        levels = np.array([point[2][r, draws].mean() for point in curve])
        crossings.append(_crossing(labels, levels, resampled[r, draws].mean()))
    low, high = np.quantile(crossings, (0.025, 0.975), method="nearest") if len(scores) > 1 else (np.nan, np.nan)
    return {"reference_needs": now, "reference_needs_low": low, "reference_needs_high": high}


def _crossing(labels: np.ndarray, levels: np.ndarray, target: float) -> float:
    """Where the curve, made to rise by its running maximum, reaches the target, interpolated over log labels."""
    levels = np.maximum.accumulate(levels)
    if target > levels[-1]:
        return float("inf")
    if target < levels[0]:
        return 0.0
    after = max(1, int(np.searchsorted(levels, target)))
    if len(levels) == 1 or levels[after] == levels[after - 1]:
        return float(labels[after - 1])
    share = (target - levels[after - 1]) / (levels[after] - levels[after - 1])
    return float(np.exp((1 - share) * np.log(labels[after - 1]) + share * np.log(labels[after])))
