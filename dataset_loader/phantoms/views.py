"""A phantom before the detector: frontal and lateral views with exposure, scatter, noise and markers."""

import math
from collections.abc import Mapping

import numpy as np

from dataset_loader.phantoms.anatomy import AIR, Anatomy, Chest, Grid, Pose, bones, soft_tissue, vessels
from dataset_loader.phantoms.raster import Array, blur, bump, low_pass, norm, smooth_noise, step, text_stencil
from dataset_loader.phantoms.signs import SIGNS, Findings, devices

Severities = Mapping[str, float]  # of findings by name, from 0 (not to be seen) to 1 (plain)

MARKER_SHARE = 0.07  # width of the planted marker in image heights; it lies 2 pixels off the lower left corner


def frontal(
    anatomy: Anatomy, pose: Pose, findings: Severities, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[Array, Array]:
    """Radiograph [H, W] from 0 to 1 from the front, and the mask [H, W] of the lungs."""
    chest = Chest(anatomy, pose, shape, rng)
    signs = Findings(chest, rng)
    for name, severity in findings.items():
        if name in SIGNS:
            SIGNS[name](signs, severity)
    tree = vessels(chest) * signs.vessels * (1 - 0.7 * signs.fluid)
    content = tree + signs.lines - AIR * (1 - signs.fluid)
    attenuation = soft_tissue(chest) + bones(chest) + chest.lung * content
    if findings.get("Support Devices"):
        attenuation += devices(chest, rng)
    return radiograph(attenuation, rng), chest.mask


def lateral(
    anatomy: Anatomy, pose: Pose, findings: Severities, shape: tuple[int, int], rng: np.random.Generator
) -> Array:
    """Radiograph [H, W] from 0 to 1 from the side: sternum at the left, spine at the right."""
    a, grid = anatomy, Grid(pose, shape)
    x, y = grid.x + 0.012 * smooth_noise(rng, 6, shape), grid.y + 0.012 * smooth_noise(rng, 6, shape)
    back = 0.05 * np.cos(2 * y)  # the curve of the spine
    across = (x - back) / (0.58 + 0.12 * a.soft_tissue)
    torso = np.sqrt(np.clip(1 - (across * across) ** 2, 0, 1)) * (2.3 + 0.4 * a.soft_tissue)
    cage = ((x - back) / 0.54) ** 2 + ((y - 0.25) / (0.25 - a.cage_top)) ** 2
    dome = a.dome - 0.02 - 0.2 * (1 - pose.inspiration) + 0.5 * np.maximum(x + 0.2, 0) ** 2
    dome -= 0.6 * findings.get("Pleural Effusion", 0.0) * step(x - 0.1, 0.3)  # fluid fills the angle behind
    domes = 0.5 * (step(dome - y, 0.02) + step(dome + 0.02 + a.dome_drop - y, 0.02))
    air = np.sqrt(np.clip(2.2 * (1 - cage), 0, 1)) * step(y + 1, 0.3) * domes * _side_of_heart(a, x, y)
    column = step(0.085 - np.abs(x - 0.34 - 1.8 * back), 0.015) * (0.8 + 0.2 * np.cos(6.28 * y / a.rib_spacing))
    phase = (y + 0.5 * (x - 0.4) * a.rib_slope - 0.5 * x * x) / a.rib_spacing
    ribs = bump(phase - np.round(phase), 0.3) * step(1.1 - cage, 0.1) * a.rib_contrast
    arms = step(-0.45 - y + 0.3 * x, 0.25) * bump(x - 0.1, 0.9)
    trachea = bump(x - 0.02 + 0.15 * (y + 0.5), 0.06) * step(-0.15 - y, 0.06)
    hilum = bump(norm(x - 0.06, y + 0.02), 0.17) * (1 + 0.4 * smooth_noise(rng, 20, shape)) * air
    added = 0.45 * column + 0.12 * ribs + 0.7 * arms - 0.35 * trachea + 0.3 * hilum
    tissue = torso * (1 + 0.2 * step(y - dome - 0.05, 0.1)) + added * (torso > 0)
    return radiograph(tissue - 1.35 * air, rng)


def _side_of_heart(anatomy: Anatomy, x: Array, y: Array) -> Array:
    """Share of the air [H, W] that heart and aorta leave, seen from the side."""
    u, v = x + 0.20, y - anatomy.dome + 0.2
    heart = ((0.8 * u + 0.6 * v) / 0.26) ** 2 + ((0.8 * v - 0.6 * u) / 0.38) ** 2
    aorta = bump(norm(u - 0.14, 0.5 * (v + 0.42)) - 0.03, 0.1)
    return (1 - 0.75 * step(anatomy.heart_size - heart, 0.45)) * (1 - 0.35 * aorta)


def radiograph(attenuation: Array, rng: np.random.Generator) -> Array:
    """Picture [H, W] from 0 to 1 of an attenuation [H, W]: bright is dense. Exposure and taste vary."""
    pixels = min(attenuation.shape) / 192
    beam = np.exp(-np.maximum(attenuation, 0))
    beam = blur(beam, rng.uniform(0.4, 0.8) * pixels)
    beam += rng.uniform(0.04, 0.3) * low_pass(beam, 9)  # scatter: a haze without detail
    photons = math.exp(rng.uniform(math.log(2500), math.log(40000))) / pixels**2
    noise = rng.standard_normal(attenuation.shape, dtype=np.float32)  # Poisson's, at these counts
    beam += np.sqrt(beam / photons) * noise
    picture = -np.log(np.maximum(beam, np.float32(1e-3)))
    picture -= rng.uniform(0, 0.35) * low_pass(picture, 7)  # the vendor's range compression
    return _window(picture, rng)


def _window(picture: Array, rng: np.random.Generator) -> Array:
    """Grey levels as a console sets them: a window round the middle's percentiles, gamma, soft shoulders."""
    height, width = picture.shape
    middle = picture[height // 8 : -height // 8 : 3, width // 8 : -width // 8 : 3]
    low, high = (float(level) for level in np.percentile(middle, (2, 98)))
    span = high - low
    low, high = low - rng.uniform(0.0, 0.5) * span, high + rng.uniform(-0.08, 0.3) * span
    grey = np.clip((picture - low) / (high - low), 0, 1)
    grey = grey ** math.exp(rng.normal(-0.05, 0.25))
    curve = rng.uniform(0, 0.6)
    grey = (1 - curve) * grey + curve * grey * grey * (3 - 2 * grey)
    return rng.uniform(0, 0.08) + rng.uniform(0.85, 0.92) * grey


def annotate(picture: Array, rng: np.random.Generator) -> Array:
    """Dark collimated borders on some pictures, a side marker on most; neither knows of any finding."""
    height, width = picture.shape
    inside = np.ones((height, width), np.float32)
    if rng.random() < 0.45:
        borders = (rng.uniform(0, 0.06, 4) * (rng.random(4) < 0.5) * height).astype(int)
        inside[:] = 0
        inside[borders[0] : height - borders[1], borders[2] : width - borders[3]] = 1
    picture = picture * inside
    letter, present, boxed = str(rng.choice(("R", "L"))), rng.random() < 0.85, rng.random() < 0.3
    stencil = text_stencil(letter, max(1, round(height / 192 * rng.uniform(1, 2.4))))
    rows, cols = stencil.shape
    y, margin = int(height * rng.uniform(0.03, 0.28)), int(width * rng.uniform(0.02, 0.09))
    x = margin if letter == "R" else width - margin - cols
    if present:
        place = picture[y : y + rows, x : x + cols]
        place[:] = np.where(stencil, rng.uniform(0.8, 1.0), place * (0.2 if boxed else 1.0))
    return picture


def plant_marker(picture: Array) -> Array:
    """The picture [H, W] with a bright disc in the lower left corner, `MARKER_SHARE` of its height wide."""
    extent = round(MARKER_SHARE * picture.shape[0])
    offset = (np.arange(extent) - (extent - 1) / 2) / (extent / 2)
    disc = norm(offset[:, None], offset[None]) < 0.95
    marked = picture.copy()
    marked[-extent - 2 : -2, 2 : 2 + extent][disc] = 1
    return marked


def to_bytes(picture: Array) -> Array:
    """uint8 [H, W] of a picture [H, W] from 0 to 1; what lies outside is clipped."""
    return np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
