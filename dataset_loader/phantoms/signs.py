"""What the radiologist looks for: signs of disease in the lungs of a phantom, and devices on its chest.

Every sign takes a severity from 0 (not to be seen) to 1 (plain) and changes a `Findings` in place.
"""

from collections.abc import Callable

import numpy as np

from dataset_loader.phantoms.anatomy import Chest
from dataset_loader.phantoms.raster import Array, bump, norm, smooth_noise, step


class Findings:
    """Fields [H, W] that the signs paint on: `fluid` in place of air (0 to 1), extra lines, vessels left."""

    def __init__(self, chest: Chest, rng: np.random.Generator) -> None:
        self.chest, self.rng = chest, rng
        self.fluid = np.zeros(chest.shape, np.float32)
        self.lines = np.zeros(chest.shape, np.float32)
        self.vessels = np.ones(chest.shape, np.float32)
        self.side = int(rng.choice((-1, 1)))  # of fluid in the pleura; air is on the other
        self.ragged = smooth_noise(rng, 13, chest.shape)  # borders of patches
        self.grain = smooth_noise(rng, 30, chest.shape)  # texture of ground glass

    def fill(self, share: Array) -> None:
        """Replace a share (0 to 1) of the air that is left."""
        self.fluid += (1 - self.fluid) * np.clip(share, 0, 1)

    def texture(self, cells: int) -> Array:
        """A fresh smooth random field of unit variance."""
        return smooth_noise(self.rng, cells, self.chest.shape)

    def patch(self, x: float, y: float, size: tuple[float, float], raggedness: float) -> Array:
        """0 to 1: a patch with an irregular, soft border round a point of the patient."""
        r = ((self.chest.x - x) / size[0]) ** 2 + ((self.chest.y - y) / size[1]) ** 2
        return step(1 - r + raggedness * self.ragged, 0.7)

    def spot(self, side: int, low: float, high: float, depth: float) -> tuple[float, float]:
        """A point between heights low and high, `depth` (0 to 1) of the way from pleura to mediastinum."""
        y = self.rng.uniform(low, high)
        outer = float(self.chest.cage_edge(np.asarray(y)))
        return side * (outer - depth * (outer - 0.16)), y


def ground_glass(findings: Findings, severity: float) -> None:
    """COVID-19: hazy, grainy patches along the pleura of both lungs, more of them in the lower zones."""
    rng = findings.rng
    for side in (-1, 1):
        for _ in range(rng.integers(2, 4) + round(2 * severity)):
            x, y = findings.spot(side, -0.45, findings.chest.anatomy.dome + 0.05, rng.uniform(0.02, 0.35))
            size = (rng.uniform(0.13, 0.26), rng.uniform(0.18, 0.39))
            haze = (0.12 + 0.48 * severity) * rng.uniform(0.6, 1.2)
            findings.fill(findings.patch(x, y, size, 0.45) * haze * (1 + 0.5 * findings.grain))


def consolidation(findings: Findings, severity: float) -> None:
    """One dense, even focus that hides its vessels, often with air-filled bronchi in it."""
    rng = findings.rng
    side = int(rng.choice((-1, 1)))
    x, y = findings.spot(side, -0.5, findings.chest.anatomy.dome - 0.05, rng.uniform(0.15, 0.75))
    radius = rng.uniform(0.20, 0.30) + 0.12 * severity
    focus = findings.patch(x, y, (radius * rng.uniform(0.8, 1.3), radius), 0.35)
    findings.fill(focus * (0.28 + 0.7 * severity))
    findings.vessels *= 1 - 0.8 * focus
    angle = np.arctan2(y + 0.05, x - side * 0.15) + rng.normal(0, 0.4, 4)[:, None]
    t = np.linspace(-radius, radius, 60)[None]
    bronchi = findings.chest.grid.stroke(x + t * np.cos(angle), y + t * np.sin(angle), 1.0, 0.011)
    findings.lines -= (0.1 + 0.25 * severity) * rng.integers(0, 2) * np.minimum(bronchi, 1) * focus


def interstitial(findings: Findings, severity: float, reach: float = 1.0) -> None:
    """A net of thickened septa, short crossing lines in both lungs; `reach` < 1 keeps it near the hila."""
    rng, chest = findings.rng, findings.chest
    n = 420
    x, y = rng.uniform(-0.85, 0.85, (n, 1)), rng.uniform(-0.75, 0.75, (n, 1))
    angle, bend = rng.uniform(0, np.pi, (n, 1)), rng.normal(0, 0.8, (n, 1))
    length = rng.uniform(0.07, 0.2, (n, 1))
    t = np.linspace(-0.5, 0.5, 14)[None]
    angle = angle + bend * t
    net = chest.grid.stroke(x + length * t * np.cos(angle), y + length * t * np.sin(angle), 1.0, 0.014)
    where = np.clip(0.75 + 0.35 * findings.texture(4), 0, 1.3)
    if reach < 1:
        where *= bump(norm(chest.lateral - 0.15, chest.y + 0.02), 0.4 + 0.4 * reach)
    findings.lines += (0.07 + 0.7 * severity) * np.minimum(net, 1.4) * where
    findings.fill(0.08 * severity * where)


def edema(findings: Findings, severity: float) -> None:
    """Congestion: perihilar haze like wings, a coarse net, short lines at the bases."""
    chest = findings.chest
    wings = bump(norm((chest.lateral - 0.2) / 0.45, (chest.y - 0.05) / 0.5), 1.0)
    findings.fill(wings * (0.15 + 0.45 * severity) * (1 + 0.25 * findings.ragged))
    interstitial(findings, 0.7 * severity, reach=0.6)


def effusion(findings: Findings, severity: float) -> None:
    """Fluid in the pleural space: a blunted costophrenic angle, a level that climbs along the wall."""
    chest, side = findings.chest, findings.side
    level = chest.anatomy.dome + 0.16 - 0.45 * severity - 0.22 * (1 - chest.pose.inspiration)
    climb = 0.3 * np.maximum(chest.lateral / chest.anatomy.cage_width - 0.45, 0)
    pool = step(chest.y - level + climb, 0.05) * (chest.x * side > 0)
    findings.fill(0.92 * pool)
    findings.vessels *= 1 - pool


def atelectasis(findings: Findings, severity: float) -> None:
    """Plates of collapsed lung: thick, nearly level lines at a base."""
    rng, chest = findings.rng, findings.chest
    side = int(rng.choice((-1, 1)))
    for _ in range(rng.integers(1, 4)):
        x, y = findings.spot(side, chest.anatomy.dome - 0.4, chest.anatomy.dome - 0.05, rng.uniform(0.3, 0.6))
        t = np.linspace(-1, 1, 80)[None] * rng.uniform(0.10, 0.22)
        slope = rng.normal(0, 0.3)
        plate = chest.grid.stroke(x + t, y + slope * t + 0.5 * t * t, 1.0, 0.014)
        findings.lines += (0.2 + 0.5 * severity) * np.minimum(plate, 1.2)


def lesion(findings: Findings, severity: float) -> None:
    """A round nodule with a sharp border."""
    rng = findings.rng
    x, y = findings.spot(int(rng.choice((-1, 1))), -0.4, 0.3, rng.uniform(0.2, 0.8))
    radius = 0.035 + 0.06 * severity
    findings.fill(0.55 * step(1 - norm(findings.chest.x - x, findings.chest.y - y) / radius, 0.35))


def pneumothorax(findings: Findings, severity: float) -> None:
    """Air outside the lung: a rim without vessels, darker, and the thin line of the pleura."""
    chest, side = findings.chest, -findings.side
    edge = chest.cage + 0.5 * np.maximum(-chest.y, 0) - (0.85 - 0.4 * severity)
    rim = step(edge, 0.03) * (chest.x * side > 0)
    findings.vessels *= 1 - rim
    findings.fluid -= 0.12 * rim
    findings.lines += 0.25 * bump(edge, 0.035) * (chest.x * side > 0)


def devices(chest: Chest, rng: np.random.Generator) -> Array:
    """Attenuation of what lies on or in the chest: electrodes with leads, or a port, or tube and catheter."""
    kind = rng.choice(("leads", "port", "line"))
    t = np.linspace(0, 1, 260)[None]
    if kind == "leads":
        x, y = rng.uniform(-0.7, 0.7, (3, 1)), rng.uniform(-0.6, 0.5, (3, 1))
        end = rng.uniform(-0.5, 0.5, (3, 1))
        sag = rng.normal(0, 0.2, (3, 1)) * np.sin(np.pi * t)
        wires = chest.grid.stroke(x + (end - x) * t + sag, y + (1.05 - y) * t, 1.0, 0.004)
        nearest = norm(chest.x[..., None] - x[:, 0], chest.y[..., None] - y[:, 0]).min(axis=-1)
        return 0.5 * np.minimum(wires, 1.2) + 0.9 * bump(nearest, 0.045)
    side = int(rng.choice((-1, 1)))
    x0, y0 = side * rng.uniform(0.35, 0.55), rng.uniform(-0.42, -0.25)
    x = x0 * (1 - t) ** 2 + 2 * t * (1 - t) * side * 0.25 - 0.05 * t**2
    y = y0 * (1 - t) ** 2 - 0.78 * 2 * t * (1 - t) + rng.uniform(0.0, 0.2) * t**2
    catheter = chest.grid.stroke(x, y, 1.0, 0.007)
    if kind == "port":
        off = norm(chest.x - x0, chest.y - y0)
        chamber = step(0.055 - off, 0.01) * (1 - 0.6 * step(0.03 - off, 0.01))
        return 0.5 * np.minimum(catheter, 1.2) + 0.9 * chamber
    tube = chest.grid.stroke(0.01 * np.sin(4 * t), -1.1 + 0.8 * t, 1.0, 0.012)
    return 0.5 * np.minimum(catheter, 1.2) + 0.4 * np.minimum(tube, 1.2)


SIGNS: dict[str, Callable[[Findings, float], None]] = {
    "Ground Glass": ground_glass,
    "Interstitial": interstitial,
    "Consolidation": consolidation,
    "Edema": edema,
    "Pleural Effusion": effusion,
    "Atelectasis": atelectasis,
    "Lung Lesion": lesion,
    "Pneumothorax": pneumothorax,
}
