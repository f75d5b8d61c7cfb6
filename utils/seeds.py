"""Seeds and orders of images, functions of (purpose, seed, epoch, step): without hidden state, runs resume exactly."""

import hashlib

import numpy as np


def mixed_seed(purpose: str, *keys: int) -> int:
    """Return a seed from 0 to 2^63 - 1 for numbers (seed, epoch, step, ...) and what is drawn with it.

    Each place that draws has its own `purpose`, so no two share a stream, whatever their numbers: a hash keeps apart
    what numpy's SeedSequence takes for one, such as (0,) and (0, 0).
    """
    written = repr((purpose, *map(int, keys))).encode()
    return int.from_bytes(hashlib.sha256(written).digest()[:8], "little") >> 1


def fixed_order(purpose: str, indices: np.ndarray) -> np.ndarray:
    """Return a permutation of `indices` that is always the same for a purpose; its first n are a random sample."""
    return np.random.default_rng(mixed_seed(purpose)).permutation(indices)


def epoch_order(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the images of one epoch in their order: a permutation of `indices` that depends on (seed, epoch)."""
    return np.random.default_rng(mixed_seed("order of an epoch", seed, epoch)).permutation(indices)


def endless_order(indices: np.ndarray, seed: int, first: int, count: int) -> np.ndarray:
    """Return positions `first` to `first + count` of the orders of epochs 0, 1, 2, ... one after the other."""
    epochs = range(first // len(indices), -(-(first + count) // len(indices)))
    row = np.concatenate([epoch_order(indices, seed, number) for number in epochs])
    start = first - epochs.start * len(indices)
    return row[start : start + count]
