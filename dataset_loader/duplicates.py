"""Near-duplicate X-rays: one film under two names must not be in two parts of a split."""

import hashlib
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
    settings,
    signatures,
    signs,
)
from utils.files import write_table
from utils.scripts import progress_bar

NO_DUPLICATES = pd.DataFrame({"file": [], "other": [], "distance": []})
MAX_DISTANCE = 0.4
_LIKELY = 0.45  # correlation of two signatures from which on the thumbnails are compared
_COARSE, _FINE = 9, 5  # pixels over which a thumbnail's local mean and contrast are taken
_STEP = 2  # pixels by which copies are moved before their signatures are compared
_ZOOM = 1.06
_RIM = 3  # pixels at the border that are not compared: frames make different films similar
_BLOCK = 256  # images moved, or pairs compared in detail, at a time
_VERSION = 2  # of the search, part of its result's name: raise it when another change than of a number changes pairs

Move = Callable[[Tensor], Tensor]  # [B, S, S] -> [B, S, S]
Pairs = np.ndarray  # [n, 2] rows of a store and of another one, or of the same
Equal = dict[bytes, list[int]]  # the rows that hold one picture, by a hash of its pixels


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
_MOVES = {
    **{f"turned {n}, {mirrored}": _turned(n, mirrored) for mirrored in (False, True) for n in range(4)},
    **{
        f"shifted {down}, {right}": _shifted(down, right)
        for down in (-_STEP, 0, _STEP)
        for right in (-_STEP, 0, _STEP)
        if (down, right) != (0, 0)
    },
    **{f"zoomed {factor:.4f}": _zoomed(factor) for factor in (_ZOOM, 1 / _ZOOM)},
}


def find_duplicates(store: ImageStore, files: Sequence[str], device: torch.device = CPU) -> pd.DataFrame:
    """Return pairs of X-rays that show the same film: columns file, other, distance, nearest first.

    `store` holds the `files` as THUMBNAIL px thumbnails. Pairs whose signatures agree are compared in detail: the
    distance is 1 - the correlation of two thumbnails after local contrast normalisation, aligned to a pixel. It is 0
    for one picture, whatever its brightness, contrast, gamma or compression, also if it is a negative, mirrored or
    turned by 90 degrees, or shifted or cropped by 3% of its side. Pairs up to MAX_DISTANCE count, and those whose
    signatures differ in MAX_BITS or fewer. Of n copies of a film n - 1 pairs are listed, which connect them; equal
    thumbnails are paired with the first of them. The result is stored beside the images. A CUDA `device` compares the
    signatures of all pairs, which are whole numbers, so that the result is the same; all else is done here.
    """
    return find_copies(store, files, store, files, device)


def find_copies(
    store: ImageStore, files: Sequence[str], others: ImageStore, other_files: Sequence[str], device: torch.device = CPU
) -> pd.DataFrame:
    """Return pairs of X-rays of two data sets that show the same film: columns file, other, distance.

    As find_duplicates, of `files` (thumbnails in `store`) with `other_files` (thumbnails in `others`): each file that
    has a copy in the other data set is in a pair.
    """
    name = f"duplicates_{_settings()}.csv" if store is others else f"copies_{_settings()}_{others.folder.name}.csv"
    path = store.folder / name
    if not path.exists():
        pairs = pd.DataFrame(_near_pairs(store, others, device), columns=["row", "other_row", "distance"])
        write_table(path, pairs)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # so that the images may move there
    pairs = pd.read_csv(path, dtype={"row": np.int64, "other_row": np.int64, "distance": float})
    for end, rows, names in (("file", "row", files), ("other", "other_row", other_files)):
        pairs[end] = np.asarray(names, dtype=object)[pairs[rows]]
    return pairs.filter(["file", "other", "distance"]).sort_values(["distance", "file", "other"], ignore_index=True)


def joined_groups(files: np.ndarray, groups: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
    """Return groups [N] of the files [N], those of each duplicate pair joined under the first of their names."""
    names, group_of = np.unique(groups, return_inverse=True)
    row_of = dict(zip(files.tolist(), group_of.tolist(), strict=True))
    ends = ([row_of[file] for file in pairs[column]] for column in ("file", "other"))
    graph = coo_array((np.ones(len(pairs)), tuple(ends)), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]  # [groups]
    first = np.unique(component, return_index=True)[1]  # names are sorted, so the first is the lowest
    return names[first[component]][group_of]


def _settings() -> str:
    """Return 12 hex digits that identify all that the result of a search depends on, beside the images."""
    numbers = (_VERSION, MAX_DISTANCE, _LIKELY, _COARSE, _FINE, _STEP, _ZOOM, _RIM)
    return hashlib.sha256(repr((numbers, [*_MOVES], MAX_BITS, settings())).encode()).hexdigest()[:12]


class _Forest:
    """Pairs of rows that connect each film with its copies, and no more than that takes: none closes a circle.

    tree   [nodes] a number that connected rows share; rows of the other store follow those of the store
    first  the node of the other store's first row; 0 if it is the same store
    """

    def __init__(self, store: ImageStore, others: ImageStore):
        self.first = 0 if store is others else len(store)
        self.tree = np.arange(self.first + len(others))
        self.pairs: list[tuple[int, int]] = []

    def join(self, pairs: Pairs, alike: Callable[[Pairs], np.ndarray] | None = None) -> None:
        """Take those of the pairs that nothing connects yet and, of these, those of which `alike` is true, [n] bool."""
        while len(pairs := pairs[self.tree[pairs[:, 0]] != self.tree[self.first + pairs[:, 1]]]):
            some, pairs = pairs[:_BLOCK], pairs[_BLOCK:]
            for row, other in some[alike(some) if alike else slice(None)].tolist():
                one, two = self.tree[row], self.tree[self.first + other]
                if one != two:
                    self.tree[self.tree == two] = one
                    self.pairs.append((row, other))


def _near_pairs(store: ImageStore, others: ImageStore, device: torch.device) -> list[tuple[int, int, float]]:
    """Return row in `store`, row in `others` and distance of near-duplicates; in one store, the first row is lower.

    Of equal thumbnails the first alone is searched for.
    """
    forest, own = _Forest(store, others), _equal_rows(store)
    theirs = own if store is others else _equal_rows(others)
    if store is others:
        equal = [(rows[0], copy) for rows in own.values() for copy in rows[1:]]
    else:
        equal = [(rows[0], theirs[picture][0]) for picture, rows in own.items() if picture in theirs]
    forest.join(np.array(equal, dtype=np.int64).reshape(-1, 2))
    _search(store, others, (own, theirs), forest, device)
    distances = [0.0] * len(equal) + _distances(store, others, forest.pairs[len(equal) :])
    pairs = [(*pair, distance) for pair, distance in zip(forest.pairs, distances, strict=True)]
    return sorted(pairs if store is others else pairs + _pairs_of_copies(pairs, own, theirs))


def _pairs_of_copies(
    pairs: Sequence[tuple[int, int, float]], own: Equal, theirs: Equal
) -> list[tuple[int, int, float]]:
    """Return a pair for each row that is equal to an earlier one: the nearest pair of that one, if it has any."""
    by_distance = sorted(pairs, key=lambda pair: -pair[2])  # of equal keys, a dict takes the last
    of_row, of_other = {pair[0]: pair for pair in by_distance}, {pair[1]: pair for pair in by_distance}
    found = [(row, *of_row[rows[0]][1:]) for rows in own.values() for row in rows[1:] if rows[0] in of_row]
    for rows in (rows for rows in theirs.values() if rows[0] in of_other):
        row, _, distance = of_other[rows[0]]
        found += [(row, other, distance) for other in rows[1:]]
    return found


def _equal_rows(store: ImageStore) -> Equal:
    rows: Equal = {}
    for start in range(0, len(store), _BLOCK):
        block = range(start, min(start + _BLOCK, len(store)))
        for row, image in zip(block, store.gather(np.array(block)).numpy(), strict=True):
            rows.setdefault(hashlib.sha256(image).digest(), []).append(row)
    return rows


def _search(
    store: ImageStore, others: ImageStore, equal: tuple[Equal, Equal], forest: _Forest, device: torch.device
) -> None:
    """Join the rows that show one film, the first ones of `equal` pictures; what is connected is not compared again."""
    # bits that agree less those that do not, in whole numbers
    likely_bits, certain_bits = math.ceil(_LIKELY * num_bits()), num_bits() - 2 * MAX_BITS
    rows, other_rows = (np.array([same[0] for same in pictures.values()]) for pictures in equal)
    fast = device if device.type == "cuda" else CPU
    wanted = signs(signatures(others)[other_rows], certain_bits, fast)
    bar = progress_bar(len(rows), "looking for duplicates")
    for start in range(0, len(rows), _BLOCK):
        block, first = rows[start : start + _BLOCK], start if store is others else 0
        contrast = _contrast(store, block, _COARSE)
        for move in _MOVES.values():
            agreement = coefficients(move(contrast)).sign().to(wanted) @ wanted[first:].T  # [B, others]
            if store is others:
                agreement.triu_(1)
            likely = places_beyond(agreement, likely_bits)  # [pairs, 2]
            if not len(likely):
                continue
            certain = (agreement[likely[:, 0], likely[:, 1]].abs() >= certain_bits).cpu().numpy()
            places = likely.cpu().numpy()
            pairs = np.stack([block[places[:, 0]], other_rows[first + places[:, 1]]], 1)
            forest.join(pairs[certain])
            forest.join(pairs[~certain], lambda some, move=move: _near(store, others, some, [move]) >= 1 - MAX_DISTANCE)
        bar.update(len(block))
    bar.close()


def _distances(store: ImageStore, others: ImageStore, pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Return the distance of each pair of rows: that of the move after which they are nearest."""
    moves, rows, distances = [*_MOVES.values()], np.array(pairs, dtype=np.int64).reshape(-1, 2), []
    for start in range(0, len(rows), _BLOCK):
        distances += (1 - _near(store, others, rows[start : start + _BLOCK], moves)).clip(min=0).tolist()
    return [round(distance, 4) for distance in distances]


def _near(store: ImageStore, others: ImageStore, pairs: Pairs, moves: Sequence[Move]) -> np.ndarray:
    """Return the highest correlation [n] of the thumbnails of pairs of rows, aligned, after any of the moves."""
    own, other = (_contrast(side, rows, _FINE) for side, rows in zip((store, others), pairs.T, strict=True))
    return torch.stack([_aligned(move(own), other) for move in moves]).amax(0).numpy()


def _contrast(store: ImageStore, rows: np.ndarray, window: int) -> Tensor:
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
