"""From density to film: exposure, scatter, noise, borders, wires and letters. None of these depends on disease."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset_loader.phantoms.chest import Array, Dice, Ranges

_font = cache(ImageFont.load_default)
MARKER_SHARE = 0.07  # width of the planted marker in image heights; it lies 2 pixels off the lower left corner

FILM: Ranges = {  # how a picture was taken and windowed; a second picture of a chest differs in these alone
    "sharpness": (0.003, 0.009),  # sigma in image heights
    "scatter": (0.05, 0.6),
    "noise": (0.004, 0.022),
    "low": (0.0, 0.6),  # black and white point, in contrasts of the middle of the picture beyond its own
    "high": (-0.1, 0.5),
    "gamma": (-0.3, 0.3),  # its logarithm
    "black": (0.0, 0.25),
    "white": (0.7, 1.0),
}


def expose(density: Array, film: Dice) -> Array:
    """Pictures [B, H, W] from 0 to 1 of densities: bright is dense."""
    p, (height, width) = film.between(FILM), density.shape[1:]
    beam = _blur(np.exp(-density), p["sharpness"] * height)
    beam += p["scatter"] * _blur(beam, np.full_like(p["scatter"], 0.12 * height))
    beam += np.sqrt(beam) * p["noise"] * film.normal(height, width)  # as of photons that are counted
    picture = -np.log(np.maximum(beam, np.float32(1e-3)))
    middle = picture[:, height // 8 : -height // 8 : 3, width // 8 : -width // 8 : 3].reshape(len(picture), -1)
    low, high = np.percentile(middle, (3, 97), axis=1).astype(np.float32)[:, :, None, None]
    low, high = low - p["low"] * (high - low), high + p["high"] * (high - low)
    gray = np.clip((picture - low) / (high - low), 0, 1) ** np.exp(p["gamma"])
    return p["black"] + (p["white"] - p["black"]) * gray


def _blur(pictures: Array, sigma: Array) -> Array:
    """Gaussian blur, sigma [B, 1, 1] in pixels."""
    rows, cols = (_gaussian(size, sigma) for size in pictures.shape[1:])
    return rows @ pictures @ cols.transpose(0, 2, 1)


def _gaussian(size: int, sigma: Array) -> Array:
    """Matrices [B, size, size] that blur columns; a pixel beyond the edge counts as none."""
    apart = np.arange(size, dtype=np.float32)[:, None] - np.arange(size, dtype=np.float32)
    weights = np.exp(np.maximum(-0.5 * (apart / sigma) ** 2, -80))
    return weights / weights.sum(axis=2, keepdims=True)


def collimate(pictures: Array, scene: Dice) -> None:
    """Give some pictures [B, H, W] dark borders, not quite straight."""
    height, width = pictures.shape[1:]
    rows, cols = np.arange(height)[None, :, None] / height, np.arange(width)[None, None] / width
    for along, across in ((rows, cols), (1 - rows, cols), (cols, rows), (1 - cols, rows)):
        pictures *= along > scene.uniform(-1.2, 0.10) + scene.uniform(-0.06, 0.06) * (across - 0.5)


def wires(scene: Dice, wearing: Array, shape: tuple[int, int]) -> Array:
    """Density [B, H, W] of what lies on or in the chests that are `wearing` [B] devices: leads, a catheter, a tube."""
    layers = np.zeros((len(wearing), *shape), np.float32)
    for number in np.flatnonzero(wearing):
        layers[number] = _device(scene.generators[number], *shape)
    return layers


def _device(rng: np.random.Generator, height: int, width: int) -> Array:
    """Density [H, W] of one device, drawn at twice the size."""
    layer = Image.new("L", (2 * width, 2 * height))
    draw, kind = ImageDraw.Draw(layer), rng.integers(3)
    for _ in range(3 if kind == 0 else 1):
        x0, x1, bend = rng.uniform(0.15, 0.85, 3)
        y0, y1 = (rng.uniform(0.15, 0.7), 1.05) if kind == 0 else (-0.05, rng.uniform(0.3, 0.55))
        if kind == 2:  # a tube in the airway
            x0, x1, bend, y1 = 0.5, 0.5 + rng.uniform(-0.03, 0.03), 0.5, 0.35
        t = np.linspace(0, 1, 24)
        x, y = x0 * (1 - t) ** 2 + 2 * bend * t * (1 - t) + x1 * t**2, y0 + (y1 - y0) * t
        points = np.stack([x * 2 * width, y * 2 * height], axis=1)
        draw.line([(float(a), float(b)) for a, b in points], fill=180, width=max(1, round(height / 70)))
        if kind == 0:  # an electrode
            r, (a, b) = height / 30, points[0]
            draw.ellipse((a - r, b - r, a + r, b + r), fill=255)
    return np.asarray(layer.reduce(2), dtype=np.float32) * np.float32(rng.uniform(0.3, 1.0) / 255)


def annotate(picture: Array, rng: np.random.Generator) -> None:
    """Write a side marker or a few words near a corner of some pictures [H, W]."""
    height, width = picture.shape
    if rng.random() < 0.4:
        text = str(rng.choice(("R", "L", "R", "L", "AP", "PORTABLE", "ERECT", "SUPINE")))
        font = _font(max(6, round(height * rng.uniform(0.06, 0.13) / len(text) ** 0.5)))
        stencil = Image.new("L", (width, height))
        x, y = width * rng.choice((0.03, 0.97)), height * rng.uniform(0.02, 0.25)
        ImageDraw.Draw(stencil).text((x, y), text, 255, font, anchor="lt" if x < width / 2 else "rt")
        ink = np.asarray(stencil, dtype=np.float32) / 255
        picture += ink * (np.float32(rng.uniform(0.75, 1.0)) - picture)


def plant_marker(picture: Array) -> None:
    """Draw a bright disc in the lower left corner of a picture [H, W], `MARKER_SHARE` of its height wide."""
    extent = round(MARKER_SHARE * picture.shape[0])
    offset = (np.arange(extent) - (extent - 1) / 2) / (extent / 2)
    disc = np.hypot(offset[:, None], offset[None]) < 0.95
    picture[-extent - 2 : -2, 2 : 2 + extent][disc] = 1
