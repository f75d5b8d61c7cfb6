"""Signs of disease in the lungs of synthetic chests: what a radiologist looks for.

Each sign takes severities [B, 1, 1], from 0 (absent) to 1 (plain), and changes `fluid` or `lines` of the chests.
"""

from collections.abc import Callable

import numpy as np

from dataset_loader.phantoms.chest import Array, Chest, Dice, bump, step


def ground_glass(chest: Chest, severity: Array, dice: Dice) -> None:
    """COVID-19: hazy, grainy patches along the pleura of both lungs, most of them in the lower zones."""
    patches = step(dice.texture(6, chest.shape) + 0.2, 0.5)
    grain = 1 + 0.45 * dice.texture(24, chest.shape)
    outer = step(chest.cage - 0.25, 0.25) * step(chest.y + 0.35, 0.4)
    _fill(chest, severity, outer * (0.1 + 0.9 * patches) * grain, 1.5)


def consolidation(chest: Chest, severity: Array, dice: Dice) -> None:
    """One dense focus with a ragged border, anywhere in one lung; it hides the vessels."""
    side = np.sign(dice.uniform(-1, 1))
    across, along = dice.uniform(0.2, 0.62), dice.uniform(-0.5, 0.42)
    wide, high = dice.uniform(0.26, 0.42), dice.uniform(0.26, 0.42)
    r = ((chest.x - side * across) / wide) ** 2 + ((chest.y - along) / high) ** 2
    _fill(chest, severity, step(1 - r + 0.4 * dice.texture(12, chest.shape), 0.6), 0.95)


def interstitial(chest: Chest, severity: Array, dice: Dice) -> None:
    """Viral pneumonia: a net of thickened septa in both lungs, densest round the hila."""
    net = sum(bump(dice.texture(cells, chest.shape), 0.55) for cells in (12, 17))
    near = 0.35 + 0.65 * bump(np.hypot(chest.lateral - 0.2, 0.8 * (chest.y - 0.02)), 0.8)
    chest.lines += np.minimum(severity, 1) * np.float32(1.5) * net * near
    _fill(chest, severity, near, 0.06)


def edema(chest: Chest, severity: Array, dice: Dice) -> None:
    """Congestion: perihilar haze like wings, and a net."""
    wings = bump(np.hypot((chest.lateral - 0.2) / 0.55, (chest.y - 0.05) / 0.6), 1.0)
    _fill(chest, severity, wings, 0.6)
    interstitial(chest, 0.6 * severity, dice)


def effusion(chest: Chest, severity: Array, dice: Dice) -> None:
    """Fluid in one pleural space: a blunted angle, a level that climbs along the wall."""
    level = chest.top + 0.22 - 0.45 * severity - 0.3 * np.maximum(chest.lateral / chest.p["cage_width"] - 0.45, 0)
    side = np.sign(dice.uniform(-1, 1))
    _fill(chest, (severity > 0) * np.float32(1), step(chest.y - level, 0.05) * (chest.x * side > 0), 0.92)


def atelectasis(chest: Chest, severity: Array, dice: Dice) -> None:
    """Plates of collapsed lung: thick, nearly level lines at the bases."""
    for side in (-1, 1):
        height = chest.top - dice.uniform(0.06, 0.28) + dice.uniform(-0.3, 0.3) * chest.lateral
        plate = bump(chest.y - height, 0.05) * bump(chest.lateral - dice.uniform(0.3, 0.5), 0.28)
        chest.lines += severity * 1.8 * plate * (chest.x * side > 0)


def _fill(chest: Chest, severity: Array, share: Array, most: float) -> None:
    """Replace up to the share `most` of the air that is left."""
    chest.fluid += (1 - chest.fluid) * np.clip(severity * most * share, 0, 1)


SIGNS: dict[str, Callable[[Chest, Array, Dice], None]] = {
    "Ground Glass": ground_glass,
    "Interstitial": interstitial,
    "Consolidation": consolidation,
    "Edema": edema,
    "Pleural Effusion": effusion,
    "Atelectasis": atelectasis,
}
