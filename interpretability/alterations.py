"""X-rays with a part taken away, at the store's size."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from utils.randomness import mixed_seed

BORDER = 0.1  # of the image's side
GRID = 8  # patches a side that an image is shuffled in
AS_IS, NO_LUNGS, ONLY_LUNGS, ONLY_BORDER, SHUFFLED = (
    "as is",
    "lungs blacked out",
    "only the lungs",
    "only the border",
    "patches shuffled",
)

Alteration = Callable[[Tensor, Tensor, np.ndarray], Tensor]


def without_lungs(images: Tensor, masks: Tensor, indices: np.ndarray) -> Tensor:
    """uint8 [B, 1, S, S] with black where masks, bool [B, S, S], say lung."""
    return images.masked_fill(masks[:, None], 0)


def only_lungs(images: Tensor, masks: Tensor, indices: np.ndarray) -> Tensor:
    """Black all round the lungs."""
    return images.masked_fill(~masks[:, None], 0)


def only_border(images: Tensor, masks: Tensor, indices: np.ndarray) -> Tensor:
    """Black but for a border of BORDER of the side."""
    kept, size = images.clone(), images.shape[-1]
    width = max(1, round(BORDER * size))
    kept[..., width : size - width, width : size - width] = 0
    return kept


def shuffled(images: Tensor, masks: Tensor, indices: np.ndarray) -> Tensor:
    """GRID x GRID patches in an order that is each image's own; what does not divide is cut off at the far sides."""
    n, patch = len(images), images.shape[-1] // GRID
    side = patch * GRID
    patches = images[..., :side, :side].reshape(n, GRID, patch, GRID, patch).transpose(2, 3).flatten(1, 2)
    for row, index in enumerate(indices):
        order = np.random.default_rng(mixed_seed(0, int(index))).permutation(GRID * GRID)
        patches[row] = patches[row, torch.from_numpy(order).to(images.device)]
    whole = images.clone()
    whole[..., :side, :side] = patches.view(n, 1, GRID, GRID, patch, patch).transpose(3, 4).reshape(n, 1, side, side)
    return whole


ALTERATIONS: dict[str, Alteration] = {
    AS_IS: lambda images, masks, indices: images,
    NO_LUNGS: without_lungs,
    ONLY_LUNGS: only_lungs,
    ONLY_BORDER: only_border,
    SHUFFLED: shuffled,
}
NEEDS_MASKS = (NO_LUNGS, ONLY_LUNGS)
