"""Near-duplicate X-rays: one film under two names must not be in two parts of a split."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from dataset_loader.image_store import ImageStore
from dataset_loader.signatures import (
    CPU,
    MAX_BITS,
    coefficients,
    local_contrast,
    num_bits,
    places_beyond,
    signatures,
    signs,
)
from utils.files import write_text
from utils.scripts import progress_bar

NO_DUPLICATES = pd.DataFrame({"file": [], "other": [], "distance": []})
MAX_DISTANCE = 0.4
_LIKELY = 0.45  # correlation of two signatures from which on the thumbnails are compared
_COARSE, _FINE = 9, 5  # pixels over which a thumbnail's local mean and contrast are taken
_STEP = 2  # pixels by which copies are moved before their signatures are compared
_ZOOM = 1.06
_RIM = 3  # pixels at the border that are not compared: frames make different films similar
_BLOCK = 256  # images moved, or pairs compared in detail, at a time

Move = Callable[[Tensor], Tensor]  # [B, S, S] -> [B, S, S]


def _turned(quarters: int, mirrored: bool) -> Move:
    return lambda maps: (maps.flip(2) if mirrored else maps).rot90(quarters, (1, 2))


def _shifted(down: int, right: int) -> Move:
    return lambda maps: maps.roll((down, right), (1, 2))


def _zoomed(factor: float) -> Move:
    def zoom(maps: Tensor) -> Tensor:
        grid = F.affine_grid(torch.eye(2, 3)[None] / factor, [1, 1, *maps.shape[1:]], align_corners=False)
        moved = F.grid_sample(maps[:, None], grid.expand(len(maps), -1, -1, -1), align_corners=False)
        return moved[:, 0]

    return zoom


# What may have been done to a copy; the first leaves it where it is.
_MOVES = [
    *(_turned(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)),
    *(_shifted(down, right) for down in (-_STEP, 0, _STEP) for right in (-_STEP, 0, _STEP) if (down, right) != (0, 0)),
    *(_zoomed(factor) for factor in (_ZOOM, 1 / _ZOOM)),
]


def find_duplicates(store: ImageStore, files: Sequence[str], device: torch.device = CPU) -> pd.DataFrame:
    """Return the pairs of X-rays that show the same film: columns file, other, distance, nearest first.

    `store` holds the `files` as THUMBNAIL px thumbnails. Pairs whose signatures agree are compared in detail: the
    distance is 1 - the correlation of two thumbnails after local contrast normalisation, aligned to a pixel. It is 0
    for one picture, whatever its brightness, contrast, gamma or compression, also if it is a negative, mirrored or
    turned by 90 degrees, or shifted or cropped by 3% of its side. Pairs up to MAX_DISTANCE are listed, and those whose
    signatures differ in MAX_BITS or fewer. The result is stored beside the images. A CUDA `device` compares the
    signatures of all pairs, which are whole numbers, so that the result is the same; all else is done here.
    """
    return _searched(store, files, store, files, device)


def find_copies(
    store: ImageStore,
    files: Sequence[str],
    others: ImageStore,
    other_files: Sequence[str],
    device: torch.device = CPU,
) -> pd.DataFrame:
    """Return the pairs of X-rays of two data sets that show the same film: columns file, other, distance.

    As find_duplicates, of `files` (thumbnails in `store`) with `other_files` (thumbnails in `others`).
    """
    return _searched(store, files, others, other_files, device)


def joined_groups(files: np.ndarray, groups: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
    """Return groups [N] of the files [N], those of each duplicate pair joined under the first of their names."""
    names, group_of = np.unique(groups, return_inverse=True)
    row_of = dict(zip(files.tolist(), group_of.tolist(), strict=True))
    ends = ([row_of[file] for file in pairs[column]] for column in ("file", "other"))
    graph = coo_array((np.ones(len(pairs)), tuple(ends)), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]  # [groups]
    first = np.unique(component, return_index=True)[1]  # names are sorted, so the first is the lowest
    return names[first[component]][group_of]


def _searched(
    store: ImageStore, files: Sequence[str], others: ImageStore, other_files: Sequence[str], device: torch.device
) -> pd.DataFrame:
    settings = f"{_FINE}_{_COARSE}_{_RIM}_{_LIKELY:g}_{MAX_DISTANCE:g}_{MAX_BITS}"
    name = f"duplicates_{settings}.csv" if store is others else f"copies_{settings}_{others.folder.name}.csv"
    path = store.folder / name
    if not path.exists():
        pairs = pd.DataFrame(_near_pairs(store, others, device), columns=["row", "other_row", "distance"])
        write_text(path, pairs.to_csv(index=False, lineterminator="\n"))
        if device.type == "cuda":
            torch.cuda.empty_cache()  # so that the images may move there
    pairs = pd.read_csv(path, dtype={"row": np.int64, "other_row": np.int64, "distance": float})
    names, other_names = np.asarray(files, dtype=object), np.asarray(other_files, dtype=object)
    return pd.DataFrame(
        {"file": names[pairs["row"]], "other": other_names[pairs["other_row"]], "distance": pairs["distance"]}
    ).sort_values(["distance", "file", "other"], ignore_index=True)


def _near_pairs(store: ImageStore, others: ImageStore, device: torch.device) -> list[tuple[int, int, float]]:
    """Return row in `store`, row in `others` and distance of near-duplicates; in one store, the first row is lower."""
    # bits that agree less those that do not, in whole numbers
    likely_bits, certain_bits = math.ceil(_LIKELY * num_bits()), num_bits() - 2 * MAX_BITS
    fast = device if device.type == "cuda" else CPU
    wanted, nearest = signs(signatures(others), certain_bits, fast), {}
    bar = progress_bar(len(store), "looking for duplicates")
    for rows in torch.arange(len(store)).split(_BLOCK):
        contrast, start = _contrast(store, rows, _COARSE), int(rows[0]) if store is others else 0
        for move in _MOVES:
            agreement = coefficients(move(contrast)).sign().to(wanted) @ wanted[start:].T  # [B, others]
            if store is others:
                agreement.triu_(1)
            likely = places_beyond(agreement, likely_bits)  # [pairs, 2]
            if not len(likely):
                continue
            certain = (agreement[likely[:, 0], likely[:, 1]].abs() >= certain_bits).cpu()
            for places, sure in zip(likely.cpu().split(_BLOCK), certain.split(_BLOCK), strict=True):
                own, other = rows[places[:, 0]], start + places[:, 1]
                near = _aligned(move(_contrast(store, own, _FINE)), _contrast(others, other, _FINE))
                for k in (sure | (near >= 1 - MAX_DISTANCE)).nonzero()[:, 0].tolist():
                    pair, distance = (int(own[k]), int(other[k])), round(max(0.0, 1 - near[k].item()), 4)
                    nearest[pair] = min(distance, nearest.get(pair, distance))
        bar.update(len(rows))
    bar.close()
    return [(row, other, distance) for (row, other), distance in sorted(nearest.items())]


def _contrast(store: ImageStore, rows: Tensor, window: int) -> Tensor:
    return local_contrast(store.gather(rows).float(), window)[:, 0]  # [B, S, S]


def _aligned(maps: Tensor, others: Tensor) -> Tensor:
    """Return the highest absolute correlation [B] of pairs of maps [B, S, S] shifted by up to _STEP pixels."""
    spectra = [torch.fft.rfft2(_inner(side)) for side in (maps, others)]
    shifts = torch.fft.irfft2(spectra[0] * spectra[1].conj(), s=maps.shape[1:])  # [B, down, right]
    near = torch.arange(-_STEP, _STEP + 1)
    return shifts[:, near][:, :, near].abs().flatten(1).amax(1)


def _inner(maps: Tensor) -> Tensor:
    """Maps without their rim, of zero mean and unit length."""
    inside = maps[:, _RIM:-_RIM, _RIM:-_RIM]
    inside = inside - inside.mean((1, 2), keepdim=True)
    return F.normalize(F.pad(inside, [_RIM] * 4).flatten(1)).view_as(maps)
