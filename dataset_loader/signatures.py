"""Signatures: X-rays known by their pictures, whatever their files are called or how they were compressed."""

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_loader.image_store import ImageStore
from utils.files import write_atomically
from utils.hardware import choose_precision

CPU = torch.device("cpu")
THUMBNAIL = 64  # pixels a side at which images are compared: a signature must not depend on store_res
MAX_BITS = 69  # of 385 that differ between two copies of one picture
EXACT_IN_BFLOAT16 = 256  # whole numbers up to this; larger ones are rounded, but not below it

_WINDOW = 9  # pixels over which a thumbnail's local mean and contrast are taken
_FLAT = 4.0  # gray levels: local contrast below this is noise
_RIM = 10  # pixels in which a picture fades out: frames, letters and cropped borders count less
_FREQUENCIES = (4, 22)  # half periods across the thumbnail: lower ones are the same in all chests, higher ones noise
_BLOCK = 512  # images at a time


def signatures(store: ImageStore) -> np.ndarray:
    """Return signatures [N, 49] uint8 of the THUMBNAIL px images in a store; they are kept beside the images.

    A bit is the sign of a coefficient of the cosine transform of the thumbnail, as in perceptual hashes, after local
    contrast normalisation, so that brightness, contrast, gamma and compression hardly change it. On 7,760 X-rays,
    copies saved as JPEG of quality 10, at half the size, or with another brightness, contrast or gamma differ in 65 of
    385 bits or fewer; different films differ in 88 or more.
    """
    path = store.folder / f"signatures_{settings()}.npy"
    if not path.exists():
        blocks = torch.arange(len(store)).split(_BLOCK)
        found = np.concatenate([np.packbits(transform(store.gather(rows)).numpy() > 0, axis=1) for rows in blocks])
        write_atomically(path, lambda file: np.save(file, found))
    return np.load(path)


def settings() -> str:
    """Return the numbers that a signature depends on, for the name of a file that depends on signatures."""
    return f"{_WINDOW}_{_FLAT:g}_{_RIM}_{_FREQUENCIES[0]}-{_FREQUENCIES[1]}"


def transform(images: Tensor) -> Tensor:
    """Thumbnails uint8 or float [B, 1, S, S] -> coefficients [B, 385], whose signs are the signature's bits."""
    return coefficients(local_contrast(images.float(), _WINDOW)[:, 0])


def coefficients(contrast: Tensor) -> Tensor:
    """Local contrast [B, S, S] -> cosine coefficients [B, 385]."""
    cosines = _cosines()  # [frequency, S]
    return (cosines @ (contrast * _fade()) @ cosines.T)[:, _band()]  # [B, vertical, horizontal] -> [B, 385]


def local_contrast(images: Tensor, window: int) -> Tensor:
    """Return gray levels [B, 1, S, S] less their local mean, over their local deviation (Jarrett et al. 2009, 2)."""
    deviation = images - _local_mean(images, window)
    return deviation / (_local_mean(deviation.square(), window).sqrt() + _FLAT)


def signs(packed: np.ndarray, bound: int, device: torch.device = CPU) -> Tensor:
    """Signatures [N, 49] -> bits [N, 385] as 1 and -1: a product counts those that agree less those that do not.

    bfloat16 where the device multiplies it faster and the counts, which will be compared with `bound`, allow it.
    """
    fast = choose_precision("auto", device) if bound <= EXACT_IN_BFLOAT16 else torch.float32
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=num_bits())).to(device, fast).mul_(2).sub_(1)


def places_beyond(counts: Tensor, bound: int) -> Tensor:
    """Return [pairs, 2], rows and columns of counts [N, M] that are `bound` or more, or -`bound` or less.

    Rows without any, most of them in small collections, are left out first, which is faster.
    """
    rows = _reaching(counts, bound).nonzero()[:, 0]
    places = (counts[rows].abs() >= bound).nonzero()
    return torch.stack([rows[places[:, 0]], places[:, 1]], 1)


def copies_among(packed: np.ndarray, others: np.ndarray, max_bits: int = MAX_BITS) -> np.ndarray:
    """Return for each of the signatures [N, 49] whether one of the others [M, 49] is of the same picture, [N] bool.

    Up to `max_bits` bits may differ, or, in a negative, agree.
    """
    bound = num_bits() - 2 * max_bits
    found, wanted = np.zeros(len(packed), dtype=bool), signs(packed, bound)
    for start in range(0, len(others), _BLOCK):
        agreement = wanted @ signs(others[start : start + _BLOCK], bound).T  # [N, block]
        found |= _reaching(agreement, bound).numpy()
    return found


@functools.cache
def num_bits() -> int:
    """Return the number of bits of a signature."""
    return int(_band().sum())


def _reaching(counts: Tensor, bound: int) -> Tensor:
    """Return for each row of counts [N, M] whether one is `bound` or more, or -`bound` or less, [N] bool.

    The bound is a whole number, as the counts are: bfloat16 would round another one.
    """
    return (counts.amax(1) >= bound) | (counts.amin(1) <= -bound)


def _local_mean(images: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(images, window, 1, window // 2, count_include_pad=False)


@functools.cache
def _fade() -> Tensor:
    """Return [S, S]: 1 inside, falling to 0 at the borders."""
    from_border = torch.arange(THUMBNAIL) + 0.5
    edge = (torch.minimum(from_border, from_border.flip(0)) / _RIM).clamp(max=1)
    return edge[:, None] * edge


@functools.cache
def _cosines() -> Tensor:
    places, frequencies = torch.arange(THUMBNAIL) + 0.5, torch.arange(_FREQUENCIES[1])
    return torch.cos(torch.pi / THUMBNAIL * frequencies[:, None] * places)


@functools.cache
def _band() -> Tensor:
    """Return [frequency, frequency] bool: those whose radius lies in _FREQUENCIES."""
    squares = torch.arange(_FREQUENCIES[1]) ** 2
    radius = (squares[:, None] + squares).sqrt()
    return (radius >= _FREQUENCIES[0]) & (radius < _FREQUENCIES[1])
