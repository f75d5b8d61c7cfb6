"""X-rays with a part removed, at the store's size: functions of (images, masks, indices).

images   uint8 [B, 1, S, S]
masks    lungs, bool [B, S, S]; used by NEEDS_MASKS only
indices  [B], the X-rays' numbers in their data set
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from utils.seeds import mixed_seed

BORDER = 0.1  # of the image's side
GRID = 8  # patches per side of a shuffled image
AS_IS, NO_LUNGS, ONLY_LUNGS = "as is", "lungs blacked out", "only the lungs"
ONLY_BORDER, SHUFFLED = "only the border", "patches shuffled"


def only_border(images: Tensor, masks: Tensor, indices: np.ndarray) -> Tensor:
    """Black out all but a border of BORDER of the side."""
    kept, size = images.clone(), images.shape[-1]
    width = max(1, round(BORDER * size))
    kept[..., width : size - width, width : size - width] = 0
    return kept


def shuffled(images: Tensor, masks: Tensor, indices: np.ndarray) -> Tensor:
    """Shuffle GRID x GRID patches, each image in its own order; a remainder at the right and bottom stays."""
    n, patch = len(images), images.shape[-1] // GRID
    side = patch * GRID
    patches = images[..., :side, :side].reshape(n, GRID, patch, GRID, patch).transpose(2, 3).flatten(1, 2)
    for row, index in enumerate(indices):
        order = np.random.default_rng(mixed_seed("shuffled patches", int(index))).permutation(GRID * GRID)
        patches[row] = patches[row, torch.from_numpy(order).to(images.device)]
    whole = images.clone()
    whole[..., :side, :side] = patches.view(n, 1, GRID, GRID, patch, patch).transpose(3, 4).reshape(n, 1, side, side)
    return whole


ALTERATIONS: dict[str, Callable[[Tensor, Tensor, np.ndarray], Tensor]] = {
    AS_IS: lambda images, masks, indices: images,
    NO_LUNGS: lambda images, masks, indices: images.masked_fill(masks[:, None], 0),
    ONLY_LUNGS: lambda images, masks, indices: images.masked_fill(~masks[:, None], 0),
    ONLY_BORDER: only_border,
    SHUFFLED: shuffled,
}
NEEDS_MASKS = (NO_LUNGS, ONLY_LUNGS)
