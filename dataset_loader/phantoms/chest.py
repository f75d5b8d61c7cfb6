"""Synthetic chests from the front, in batches: anatomy, pose and signs of disease as X-ray density [B, H, W].

Coordinates of a patient: x from -1 (image left, the patient's right) to 1, y from -1 (neck) to 1 (abdomen); `lateral`
is |x|. Density is in optical depths: exp(-density) of the beam reaches the detector.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

Array = np.ndarray
Ranges = Mapping[str, tuple[float, float]]

AIR = 1.5  # optical depths of tissue that a fully aerated lung replaces

PERSON: Ranges = {  # what a patient keeps from one X-ray to the next
    "cage_width": (0.72, 0.84),
    "apex": (-0.83, -0.72),
    "dome": (0.44, 0.54),  # y of the diaphragm in full inspiration
    "dome_drop": (0.0, 0.08),  # of the patient's left dome below the right one
    "heart_size": (0.84, 1.06),
    "heart_tilt": (0.55, 0.85),
    "mediastinum": (0.85, 1.2),
    "aortic_knob": (0.03, 0.07),
    "rib_spacing": (0.13, 0.17),
    "rib_phase": (0.0, 1.0),
    "rib_slope": (0.3, 0.75),
    "rib_contrast": (0.5, 0.9),
    "clavicle": (-0.66, -0.56),
    "soft_tissue": (0.3, 0.7),
    "breast": (-0.5, 0.3),  # none below 0
    "vessels": (0.5, 1.0),
    "aeration": (0.75, 1.15),  # of the lungs
    "bend": (-0.04, 0.04),  # of the spine
}
POSE: Ranges = {  # how the patient stood before the detector
    "tilt": (-0.28, 0.28),  # radians
    "zoom": (0.95, 1.13),
    "stretch": (0.95, 1.05),  # width over height
    "right": (-0.18, 0.18),
    "down": (-0.08, 0.08),
    "turn": (-1.0, 1.0),  # about the long axis
    "breath": (0.5, 1.0),  # 1 is full inspiration
}


class Dice:
    """One random generator for each image of a batch, so that an image depends on its own seed alone."""

    def __init__(self, seeds: Sequence[Sequence[int]]) -> None:
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def between(self, ranges: Ranges) -> dict[str, Array]:
        """Uniform draws [B, 1, 1] of each name."""
        lows, highs = np.array(list(ranges.values())).T
        drawn = np.stack([rng.uniform(lows, highs) for rng in self.generators]).astype(np.float32)  # [B, names]
        return {name: drawn[:, k, None, None] for k, name in enumerate(ranges)}

    def uniform(self, low: float, high: float) -> Array:
        """Uniform draws [B, 1, 1]."""
        return self.between({"": (low, high)})[""]

    def normal(self, *shape: int) -> Array:
        """Standard normal draws [B, *shape]."""
        return np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in self.generators])

    def texture(self, cells: int, shape: tuple[int, int]) -> Array:
        """Smooth random fields [B, H, W] of about unit variance whose grains are H / cells pixels large."""
        wide = max(1, round(cells * shape[1] / shape[0]))
        coefficients = self.normal(cells + 3, wide + 3) * np.float32(2.1)  # the spline averages to std 1 / 2.1
        return _spline(cells, shape[0]) @ coefficients @ _spline(wide, shape[1]).T


@cache
def _spline(cells: int, pixels: int) -> Array:
    """Cubic B-spline weights [pixels, cells + 3]."""
    t = (np.arange(pixels)[:, None] + 0.5) * (cells / pixels) - np.arange(-1, cells + 2)[None]
    d = np.abs(t)
    weights = np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.clip(2 - d, 0, None) ** 3 / 6)
    return weights.astype(np.float32)


def step(distance: Array, width: float) -> Array:
    """0 to 1 where `distance` goes from -width to width, with flat ends."""
    t = np.clip(distance * np.float32(0.5 / width) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def bump(distance: Array, width: float | Array) -> Array:
    """1 at distance 0, 0 from `width` on: a bell of finite support."""
    t = np.maximum(1 - np.square(distance / width), 0)
    return t * t


def _rod(distance: Array, half_width: float) -> Array:
    """A hollow bone: dense rims, a paler middle."""
    t = np.abs(distance) / np.float32(half_width)
    return np.sqrt(np.maximum(1 - t, 0)) * np.float32(0.75) + np.float32(0.35) * bump(t - 0.8, 0.28)


class Chest:
    """Geometry of a batch of chests, as fields [B, H, W]; signs of disease change `fluid` and `lines`."""

    def __init__(self, person: Dice, scene: Dice, slip: Array, enlarged: Array, shape: tuple[int, int]) -> None:
        self.dice, self.shape = scene, shape
        self.p = person.between(PERSON) | scene.between(POSE)
        self.p["heart_size"] += 0.5 * enlarged
        self._place(slip)
        p, x, y = self.p, self.x, self.y
        self.lateral = np.abs(x)
        self.left = step(x, 0.02)  # 1 on the patient's left, image right
        self.centre = x - 0.06 * p["turn"]  # a turned patient's heart and vessels move against the ribs
        self.top = p["dome"] - 0.22 * (1 - p["breath"])
        self.cage = self._cage()
        t = (self.lateral - 0.42 * p["cage_width"]) / p["cage_width"]
        self.below_dome = y - (self.top + p["dome_drop"] * self.left + t * (0.5 * t + 0.35 * np.maximum(t, 0)))
        self.heart, self.middle = self._heart(), self._mediastinum()
        covered = 1 - (1 - self.middle) * (1 - self.heart)
        rounded = np.sqrt(np.clip((1 - self.cage) * 2.2, 0, 1))
        self.air = rounded * step(-self.below_dome, 0.02) * (1 - 0.93 * covered)  # aerated thickness, 0 to 1
        self.mask = self.air > 0.35
        self.fluid, self.lines = np.zeros_like(x), np.zeros_like(x)

    def _place(self, slip: Array) -> None:
        """Set x and y of each pixel; no border of a body is a perfect curve."""
        height, width = self.shape
        p = self.p
        cols = ((np.arange(width, dtype=np.float32) + 0.5) * 2 - width)[None, None, :] / height
        rows = ((np.arange(height, dtype=np.float32) + 0.5) * 2 - height)[None, :, None] / height
        cols = cols / (p["zoom"] * p["stretch"]) - p["right"] - slip
        rows = rows / p["zoom"] - p["down"] - slip
        cos, sin = np.cos(p["tilt"]), np.sin(p["tilt"])
        coarse, fine = (np.float32(0.025), 3), (np.float32(0.012), 7)
        warps = [sum(a * self.dice.texture(n, self.shape) for a, n in (coarse, fine)) for _ in range(2)]
        self.x, self.y = cos * cols + sin * rows + warps[0], cos * rows - sin * cols + warps[1]

    def _cage(self) -> Array:
        """Squared distance from the axis of a pleural cavity: 0 in the middle, 1 at the pleura."""
        p, middle = self.p, 0.45 * self.p["cage_width"]
        across, along = self.lateral - middle, self.y - 0.4
        across = np.maximum(across / (p["cage_width"] - middle), across / -0.36) ** 2
        along = np.maximum(along / 1.5, along / (p["apex"] - 0.4)) ** 2
        return across * (0.75 + 0.25 * across) + along * (0.6 + 0.4 * along)  # fuller than an ellipse

    def _heart(self) -> Array:
        """1 in the shadow of the heart, an ellipse that leans to the patient's left."""
        p = self.p
        size = p["heart_size"] * (1 + 0.12 * (1 - p["breath"]))
        x, y = self.centre - 0.13 * size, self.y - (self.top - 0.14)
        cos, sin = np.cos(p["heart_tilt"]), np.sin(p["heart_tilt"])
        return step(1 - ((cos * x + sin * y) / (0.40 * size)) ** 2 - ((cos * y - sin * x) / (0.29 * size)) ** 2, 0.13)

    def _mediastinum(self) -> Array:
        """1 in the shadow of the great vessels and the spine between the lungs."""
        p, y = self.p, self.y
        right = 0.105 + 0.03 * bump(y + 0.45, 0.4) + 0.09 * bump(y - 0.25, 0.5)
        left = 0.09 + p["aortic_knob"] * bump(y + 0.34, 0.13) + 0.06 * bump(y + 0.06, 0.28) + 0.08 * bump(y - 0.3, 0.5)
        edge = p["mediastinum"] * (right + (left - right) * step(self.centre, 0.01))
        return step(edge - np.abs(self.centre), 0.022)

    def density(self) -> Array:
        """What the beam meets [B, H, W]."""
        lung = (self._vessels() * (1 - 0.7 * self.fluid) + self.lines) - AIR * self.p["aeration"] * (1 - self.fluid)
        return np.maximum(self._soft_tissue() + self._bones() + self.air * lung, 0)

    def _soft_tissue(self) -> Array:
        """The torso without its lungs: outline, shoulders, neck, arms, heart, abdomen, breasts, airway."""
        p, y, lateral = self.p, self.y, self.lateral
        fat = p["soft_tissue"]
        half_width = p["cage_width"] + 0.10 + 0.14 * fat + 0.55 * step(-0.38 - y, 0.3)
        slope = np.maximum(lateral - 0.2, 0)
        shoulder = p["apex"] - 0.16 + 0.32 * slope * np.sqrt(slope) - 0.12 * fat
        across = np.maximum(1 - (lateral / half_width) ** 4, 0)
        torso = np.sqrt(across * np.clip((y - shoulder) / 0.3, 0, 1))
        neck = bump(lateral, 0.38) * step(-0.7 - y, 0.2) * 0.85
        arm = bump(lateral - (1.13 + 0.1 * fat + 0.12 * y), 0.24) * step(y + 0.75, 0.2) * 0.8
        tissue = np.maximum(np.maximum(torso, neck), arm) * (2.1 + 0.7 * fat)
        tissue *= 1 + 0.07 * self.dice.texture(34, self.shape)  # strands of fat and muscle
        tissue += torso * (0.5 * np.maximum(self.middle, self.heart) + 0.75 * step(self.below_dome - 0.06, 0.10))
        r = ((lateral - 0.47) ** 2 + (y - 0.36) ** 2) / 0.36**2
        tissue += np.maximum(p["breast"], 0) * np.sqrt(np.maximum(1 - r, 0)) * step(y - 0.1, 0.35)
        return tissue - 0.45 * bump(self.centre, 0.055) * step(-0.2 - y, 0.06) * torso

    def _bones(self) -> Array:
        """Ribs behind and in front, clavicles, spine, shoulder blades."""
        p, y, lateral, spacing = self.p, self.y, self.lateral, self.p["rib_spacing"]
        within = step(1.12 - self.cage, 0.06) * step(lateral - 0.07, 0.03) * step(0.85 - y, 0.3)
        rim = 1 + 1.1 * step(self.cage - 0.85, 0.2)  # the beam runs along the ribs where they turn forward
        fall = (lateral - 0.22) ** 2 * p["rib_slope"] * (1 + 1.3 * step(-0.25 - y, 0.4))
        behind = (y - fall) / spacing + p["rib_phase"]
        front = (y + 0.95 * p["rib_slope"] * lateral - 0.25 * lateral**2) / (spacing * 1.25) + p["rib_phase"]
        ribs = 0.38 * rim * _rod(behind - np.round(behind), 0.26)
        ribs += 0.22 * _rod(front - np.round(front), 0.25) * step(lateral - 0.34, 0.12) * step(y + 0.55, 0.1)
        t = np.clip((lateral - 0.06) / 0.72, 0, 1)
        path = p["clavicle"] - 0.16 * t + 0.035 * np.sin(2 * np.pi * t) + 0.05 * p["turn"] * self.x
        clavicle = _rod((y - path) / (0.034 + 0.014 * (1 - t)), 1.0)
        clavicle = clavicle * step(lateral - 0.08, 0.02) * step(0.80 - lateral, 0.03)
        blade = step(lateral - (0.93 * p["cage_width"] + 0.2 * y), 0.015) * step(y + 0.62, 0.1) * step(0.05 - y, 0.15)
        x = self.x - p["bend"] * np.sin(3 * y)
        spine = step(0.085 - np.abs(x), 0.012) * (0.27 + 0.09 * np.cos(2 * np.pi * y / spacing))
        return p["rib_contrast"] * (ribs * within + 0.75 * clavicle + 0.13 * blade) + spine

    def _vessels(self) -> Array:
        """Pulmonary vessels: wavy rays from the hila, thinner and paler outwards."""
        x, y = self.lateral - 0.12, self.y + 0.04
        r, angle = np.sqrt(x * x + y * y), np.arctan2(y, x)
        wave = np.float32(0.25) * self.dice.texture(9, self.shape)
        rays = np.zeros_like(r)
        for number in (7, 11, 17):
            phase = self.dice.uniform(0, 6.28) + self.left * self.dice.uniform(0, 6.28)
            rays += bump(np.sin(0.5 * (number * (angle + wave) + phase)), 0.25 + 0.15 / number)
        return self.p["vessels"] * (0.35 * rays * np.maximum(1 - r / 0.9, 0) + 0.3 * bump(r, 0.18))
