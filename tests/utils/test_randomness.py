"""Orders are functions of (seed, epoch): wherever an endless row of passes is cut, it is the same row."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from utils.randomness import endless_order, epoch_order


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 3))
def test_an_endless_row_is_whole_passes_wherever_it_is_cut(images: int, cut: int, seed: int) -> None:
    indices = np.arange(10, 10 + images)
    passes = np.concatenate([epoch_order(indices, seed, epoch) for epoch in range(120)])
    pieces = [endless_order(indices, seed, first, cut) for first in range(0, 3 * cut, cut)]
    assert np.concatenate(pieces).tolist() == passes[: 3 * cut].tolist()
