"""The brushes of the phantoms: smooth random fields, blur, points splatted on a grid, glyphs. All float32."""

from collections.abc import Sequence
from functools import cache

import numpy as np

Array = np.ndarray

_GLYPHS = {  # 5 x 7 dots, a row an integer, most significant bit on the left
    "L": (16, 16, 16, 16, 16, 16, 31),
    "R": (30, 17, 17, 30, 20, 18, 17),
}


def step(distance: Array, width: float) -> Array:
    """0 to 1 where `distance` goes from -width to width, with flat ends (the cubic smoothstep)."""
    t = distance * np.float32(0.5 / width)
    t += np.float32(0.5)
    np.clip(t, 0, 1, out=t)
    squared = t * t
    t *= -2
    t += 3
    return np.multiply(t, squared, out=t)


def bump(distance: Array, width: float) -> Array:
    """1 at distance 0, 0 from `width` on: a bell of finite support, (1 - (d/w)^2)^2."""
    t = distance * np.float32(1 / width)
    np.multiply(t, t, out=t)
    np.subtract(1, t, out=t)
    np.maximum(t, 0, out=t)
    return np.multiply(t, t, out=t)


def norm(x: Array, y: Array) -> Array:
    """Length of the vectors (x, y); np.hypot, which minds overflow, takes six times as long."""
    return np.sqrt(x * x + y * y)


def _weighted_sum(parts: Sequence[Array], weights: Sequence[Array | np.float32]) -> Array:
    """Sum of weights times parts, without a new array for every term."""
    total = parts[0] * weights[0]
    term = np.empty_like(total)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total += np.multiply(part, weight, out=term)
    return total


@cache
def _bspline_taps(cells: int, pixels: int) -> tuple[Array, Array]:
    """First coefficient [pixels] and the 4 cubic B-spline weights [4, pixels] of each pixel."""
    t = (np.arange(pixels, dtype=np.float32) + 0.5) * (cells / pixels)
    first = np.minimum(t.astype(np.int64), cells - 1)
    f = (t - first).astype(np.float32)
    weights = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    return first, np.stack(weights) / 6


def spline_surface(coefficients: Array, shape: tuple[int, int]) -> Array:
    """Cubic B-spline surface [H, W] over [h + 3, w + 3] coefficients."""
    first, weights = _bspline_taps(coefficients.shape[1] - 3, shape[1])
    rows = _weighted_sum([coefficients[:, first + k] for k in range(4)], list(weights))  # [h + 3, W]
    first, weights = _bspline_taps(coefficients.shape[0] - 3, shape[0])
    return _weighted_sum([rows[first + k] for k in range(4)], list(weights[:, :, None]))  # [H, W]


def smooth_noise(rng: np.random.Generator, cells: int, shape: tuple[int, int]) -> Array:
    """Random field [H, W] of about unit variance whose grains are height / cells pixels large."""
    wide = max(1, round(cells * shape[1] / shape[0]))
    coefficients = rng.standard_normal((cells + 3, wide + 3), dtype=np.float32) * np.float32(2.1)
    return spline_surface(coefficients, shape)  # the spline averages to std 1 / 2.1


def low_pass(image: Array, cells: int) -> Array:
    """A very wide blur [H, W]: means over cells x cells blocks, made smooth again."""
    rows = np.linspace(0, image.shape[0], cells + 1).astype(np.int64)
    cols = np.linspace(0, image.shape[1], cells + 1).astype(np.int64)
    means = np.add.reduceat(np.add.reduceat(image, rows[:-1], axis=0), cols[:-1], axis=1)
    means /= (np.diff(rows)[:, None] * np.diff(cols)[None]).astype(np.float32)
    around = _repeat_edge(cells, 1)
    return spline_surface(means[around[:, None], around], image.shape)


@cache
def _repeat_edge(length: int, margin: int) -> Array:
    """Indices that lengthen an axis by `margin` at both ends; a tenth of the time of np.pad."""
    return np.clip(np.arange(-margin, length + margin), 0, length - 1)


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur with the edge repeated; `sigma` in pixels."""
    radius = int(np.ceil(2.5 * sigma))
    taps = range(2 * radius + 1)
    weights = np.exp(-0.5 * ((np.array(taps) - radius) / sigma) ** 2)
    weights = list((weights / weights.sum()).astype(np.float32))
    height, width = image.shape
    padded = image[_repeat_edge(height, radius)]
    image = _weighted_sum([padded[k : k + height] for k in taps], weights)
    padded = image[:, _repeat_edge(width, radius)]
    return _weighted_sum([padded[:, k : k + width] for k in taps], weights)


def splat(rows: Array, cols: Array, weights: Array, shape: tuple[int, int]) -> Array:
    """Sum of points [H, W], each spread over its four nearest pixels; points outside are dropped."""
    height, width = shape
    rows, cols, weights = rows.ravel(), cols.ravel(), np.broadcast_to(weights, rows.shape).ravel()
    inside = (rows >= 0) & (rows < height - 1) & (cols >= 0) & (cols < width - 1)
    rows, cols, weights = rows[inside], cols[inside], weights[inside]
    r, c = rows.astype(np.int64), cols.astype(np.int64)
    down, right, first = rows - r, cols - c, r * width + c
    lower, upper = weights * down, weights * (1 - down)
    shares = np.concatenate([upper * (1 - right), upper * right, lower * (1 - right), lower * right])
    pixels = np.concatenate([first, first + 1, first + width, first + width + 1])
    return np.bincount(pixels, shares, minlength=height * width).reshape(shape).astype(np.float32)


def text_stencil(text: str, scale: int) -> Array:
    """Letters as a bool array [7 * scale, 6 * scale * len(text)]."""
    letters = [[[row >> bit & 1 for bit in (4, 3, 2, 1, 0, 5)] for row in _GLYPHS[letter]] for letter in text]
    dots = np.concatenate([np.array(letter, dtype=bool) for letter in letters], axis=1)
    return np.kron(dots, np.ones((scale, scale), dtype=bool))
