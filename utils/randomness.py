"""Randomness without hidden state: seeds and orders as functions of (seed, epoch, step)."""

import numpy as np


def mixed_seed(*keys: int) -> int:
    """One well-mixed seed from several numbers (seed, epoch, step, ...): a function of them alone."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def fixed_order(indices: np.ndarray) -> np.ndarray:
    """A permutation of `indices` that is always the same: what takes the first of it takes a random sample."""
    return np.random.default_rng(0).permutation(indices)


def epoch_order(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The images of one epoch in their order, a permutation of `indices` that depends on (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(indices)


def endless_order(indices: np.ndarray, seed: int, first: int, count: int) -> np.ndarray:
    """Places `first` to `first + count` of the orders of epoch 0, 1, 2, ... in a row."""
    passes = range(first // len(indices), -(-(first + count) // len(indices)))
    row = np.concatenate([epoch_order(indices, seed, number) for number in passes])
    start = first - passes.start * len(indices)
    return row[start : start + count]
