"""Near-duplicate X-rays: one film under two names must not be in two parts of a split."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from dataset_loader.image_store import ImageStore
from utils.files import write_text
from utils.scripts import progress_bar

THUMBNAIL = 64  # pixels a side at which images are compared
MAX_DISTANCE = 0.5
NO_DUPLICATES = pd.DataFrame({"file": [], "other": [], "distance": []})
_WINDOW = 5  # pixels over which a thumbnail's local mean and contrast are taken
_FLAT = 4.0  # gray levels: local contrast below this is noise
_BLOCK = 1024  # images compared with all others at a time


def find_duplicates(store: ImageStore, files: Sequence[str]) -> pd.DataFrame:
    """Return the pairs of X-rays that show the same film: columns file, other, distance, nearest first.

    `store` holds the `files` as THUMBNAIL px thumbnails. The distance is 1 - the correlation of two thumbnails after
    local contrast normalisation (Jarrett et al. 2009, section 2): 0 for one picture, whatever its brightness, contrast,
    gamma or compression; pairs up to MAX_DISTANCE are listed. On 2,336 images of the COVID-19 Radiography Database,
    pairs that a person takes for one film lie below 0.46 and the nearest others at 0.52. A copy that is mirrored,
    rotated or cropped by some percent is not found. The result is stored beside the images.
    """
    path = store.folder / f"duplicates_{_WINDOW}_{_FLAT:g}_{MAX_DISTANCE:g}.csv"
    if not path.exists():
        pairs = pd.DataFrame(_near_pairs(_signatures(store)), columns=["row", "other_row", "distance"])
        write_text(path, pairs.to_csv(index=False, lineterminator="\n"))
    pairs = pd.read_csv(path, dtype={"row": np.int64, "other_row": np.int64, "distance": float})
    names = np.asarray(files, dtype=object)
    return pd.DataFrame(
        {"file": names[pairs["row"]], "other": names[pairs["other_row"]], "distance": pairs["distance"]}
    ).sort_values(["distance", "file", "other"], ignore_index=True)


def find_copies(
    store: ImageStore, files: Sequence[str], others: ImageStore, other_files: Sequence[str]
) -> pd.DataFrame:
    """Return the pairs of X-rays of two data sets that show the same film: columns file, other, distance.

    As find_duplicates, of `files` (thumbnails in `store`) with `other_files` (thumbnails in `others`).
    """
    wanted, pairs = _signatures(others), []
    for number, block in enumerate(_signature_blocks(store)):
        for row, other, distance in _near(block @ wanted.T):  # [B, others]
            pairs.append((files[number * _BLOCK + row], other_files[other], distance))
    return pd.DataFrame(pairs, columns=["file", "other", "distance"])


def joined_groups(files: np.ndarray, groups: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
    """Return groups [N] of the files [N], those of each duplicate pair joined under the first of their names."""
    names, group_of = np.unique(groups, return_inverse=True)
    row_of = dict(zip(files.tolist(), group_of.tolist(), strict=True))
    ends = ([row_of[file] for file in pairs[column]] for column in ("file", "other"))
    graph = coo_array((np.ones(len(pairs)), tuple(ends)), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]  # [groups]
    first = np.unique(component, return_index=True)[1]  # names are sorted, so the first is the lowest
    return names[first[component]][group_of]


def _signatures(store: ImageStore) -> Tensor:
    """Return [N, THUMBNAIL^2] of unit length and zero mean, so that a product is a correlation; 0 for a blank image."""
    return torch.cat(list(_signature_blocks(store)))


def _signature_blocks(store: ImageStore) -> Iterator[Tensor]:
    for rows in torch.arange(len(store)).split(_BLOCK):
        yield _normalised_contrast(store.gather(rows).float())


def _normalised_contrast(images: Tensor) -> Tensor:
    """Images [B, 1, S, S] in gray levels -> [B, S^2]."""
    mean = _local_mean(images)
    deviation = images - mean
    contrast = deviation / (_local_mean(deviation.square()).sqrt() + _FLAT)
    flat = contrast.flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))


def _local_mean(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)


def _near_pairs(signatures: Tensor) -> Iterator[tuple[int, int, float]]:
    bar = progress_bar(len(signatures), "looking for duplicates")
    for start in range(0, len(signatures), _BLOCK):
        block = signatures[start : start + _BLOCK]
        for row, other, distance in _near((block @ signatures[start:].T).triu(1)):  # [B, N - start]
            yield start + row, start + other, distance
        bar.update(len(block))
    bar.close()


def _near(correlation: Tensor) -> Iterator[tuple[int, int, float]]:
    """Yield row, column and distance where the correlation [A, B] of two signatures is that of one film."""
    for row, column in (correlation >= 1 - MAX_DISTANCE).nonzero().tolist():
        yield row, column, round(max(0.0, 1 - correlation[row, column].item()), 4)
