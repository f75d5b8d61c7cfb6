"""A synthetic patient's frontal chest X-ray as attenuation, before the detector sees it.

Coordinates of the patient: x from -1 (image left, the patient's right) to 1, y from -1 (neck) to 1
(abdomen); `lateral` is |x|. Attenuation is in optical depths: exp(-attenuation) of the beam gets through.
"""

import math
from dataclasses import dataclass

import numpy as np

from dataset_loader.phantoms.raster import Array, blur, bump, norm, smooth_noise, splat, step

AIR = 1.5  # optical depths of tissue that a fully aerated lung takes away


@dataclass(frozen=True)
class Anatomy:
    """What stays the same from one radiograph of a patient to the next."""

    cage_width: float  # half the width of the rib cage
    cage_top: float  # y of the apices
    dome: float  # y of the right dome of the diaphragm in full inspiration
    dome_drop: float  # how much lower the left dome is
    heart_size: float  # 1 is normal, above about 1.3 is cardiomegaly
    heart_tilt: float  # radians
    mediastinum: float  # 1 is normal
    aortic_knob: float
    rib_spacing: float
    rib_slope: float
    rib_contrast: float
    clavicle_y: float
    soft_tissue: float  # thickness of the chest wall
    breast: float  # 0 for none
    vessels: float  # contrast of the pulmonary vessels
    scoliosis: float
    tree_seed: int  # the branching of the vessels

    @classmethod
    def draw(cls, rng: np.random.Generator, female: bool | None = None) -> "Anatomy":
        """A random person; `female` unset is drawn too.

        People differ less than real ones: a build shows alike in both views of an X-ray, so that a short
        pretraining would learn it before any sign of disease. Exposure and pose, which views hide, vary in full.
        """
        female = bool(rng.random() < 0.45) if female is None else female
        return cls(
            cage_width=rng.uniform(0.76, 0.82),
            cage_top=rng.uniform(-0.78, -0.72),
            dome=rng.uniform(0.43, 0.51),
            dome_drop=rng.uniform(0.03, 0.06),
            heart_size=rng.uniform(0.84, 0.96),
            heart_tilt=rng.uniform(0.63, 0.82),
            mediastinum=rng.uniform(0.95, 1.1),
            aortic_knob=rng.uniform(0.04, 0.07),
            rib_spacing=rng.uniform(0.134, 0.146),
            rib_slope=rng.uniform(0.48, 0.67),
            rib_contrast=rng.uniform(0.74, 1.06),
            clavicle_y=rng.uniform(-0.61, -0.55),
            soft_tissue=rng.uniform(0.3, 0.7),
            breast=rng.uniform(0.28, 0.47) if female and rng.random() < 0.8 else 0.0,
            vessels=rng.uniform(0.66, 0.94),
            scoliosis=rng.normal(0, 0.005),
            tree_seed=int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class Pose:
    """How the patient stood before the detector this time."""

    angle: float  # radians in the image plane
    zoom: float
    shift: tuple[float, float]
    turn: float  # about the long axis: the mediastinum moves against the rib cage
    inspiration: float  # 1 full, 0 poor: the domes rise, the heart widens

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Pose":
        """A random, mostly decent positioning."""
        return cls(
            angle=rng.normal(0, 0.05),
            zoom=rng.uniform(0.84, 1.12),
            shift=(rng.normal(0, 0.05), rng.normal(0, 0.05)),
            turn=rng.normal(0, 0.4),
            inspiration=rng.beta(3, 1.5),
        )


class Grid:
    """Patient coordinates of every pixel of an image [H, W], and back."""

    def __init__(self, pose: Pose, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.unit = shape[0] / 2 * pose.zoom  # pixels per unit
        self._cos, self._sin = math.cos(pose.angle), math.sin(pose.angle)
        self._centre = (
            shape[0] / 2 + pose.shift[1] * self.unit - 0.5,
            shape[1] / 2 + pose.shift[0] * self.unit - 0.5,
        )
        rows = ((np.arange(shape[0]) - self._centre[0]) / self.unit).astype(np.float32)[:, None]
        cols = ((np.arange(shape[1]) - self._centre[1]) / self.unit).astype(np.float32)[None]
        self.x = self._cos * cols + self._sin * rows
        self.y = self._cos * rows - self._sin * cols

    def pixels(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Row and column (fractional) of points of the patient."""
        rows = self._centre[0] + self.unit * (self._cos * y + self._sin * x)
        cols = self._centre[1] + self.unit * (self._cos * x - self._sin * y)
        return rows, cols

    def stroke(self, x: Array, y: Array, strength: float, sigma: float) -> Array:
        """Lines [n, points] drawn [H, W] with a Gaussian pen of `sigma` units; about `strength` high."""
        apart = norm(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0])[:, None] * self.unit  # pixels
        pen = sigma * self.unit
        drawn = splat(*self.pixels(x, y), apart * (strength * max(1.0, 2.5 * pen)), self.shape)
        return blur(drawn, pen) if pen > 0.45 else drawn


class Chest:
    """The geometry of one frontal view: lungs, heart, diaphragm, as fields [H, W] over the pixels."""

    def __init__(self, anatomy: Anatomy, pose: Pose, shape: tuple[int, int], rng: np.random.Generator) -> None:
        self.anatomy, self.pose, self.shape = anatomy, pose, shape
        self.grid = Grid(pose, shape)
        # No border of a body is a perfect curve.
        self.x = self.grid.x + 0.010 * smooth_noise(rng, 7, shape)
        self.y = self.grid.y + 0.010 * smooth_noise(rng, 7, shape)
        self.lateral = np.abs(self.x)
        self.left = step(self.x, 0.02)  # 1 on the patient's left, image right
        self.cage = self._cage()
        self.below_dome = self.y - self.dome_height(self.lateral, self.left)
        self.centre = self.x - (0.05 * pose.turn)  # turned patients: the middle moves
        self.heart = self._heart()
        self.middle = self._mediastinum()
        self.lung = self._lung()
        self.mask = self.lung > 0.35

    def dome_height(self, lateral: Array, left: Array | float) -> Array:
        """y of the diaphragm: a dome a side, the right one higher, falling into the costophrenic angle."""
        a = self.anatomy
        top = a.dome - 0.22 * (1 - self.pose.inspiration)
        t = (lateral - 0.33 * a.cage_width / 0.8) / a.cage_width
        return top + a.dome_drop * left + t * (0.5 * t + 0.35 * np.maximum(t, 0))

    def cage_edge(self, y: Array) -> Array:
        """Lateral position of the inner border of the rib cage at height y."""
        a = self.anatomy
        t = np.clip(np.abs(y - 0.4) / np.where(y < 0.4, 0.4 - a.cage_top, 1.5), 0, 1)
        return a.cage_width * (1 - t**2.6) ** (1 / 2.2)

    def _cage(self) -> Array:
        """Squared distance from the axis of a pleural cavity: 0 in the middle, 1 at the pleura."""
        a = self.anatomy
        middle = 0.36 * a.cage_width / 0.8
        across, along = self.lateral - middle, self.y - 0.4
        across = np.maximum(across / (a.cage_width - middle), across / -0.34) ** 2
        along = np.maximum(along / 1.5, along / (a.cage_top - 0.4)) ** 2
        return across * (0.75 + 0.25 * across) + along * (0.6 + 0.4 * along)  # fuller than an ellipse

    def _heart(self) -> Array:
        """1 within the shadow of the heart, an ellipse that leans to the patient's left, 0 outside."""
        a = self.anatomy
        size = a.heart_size * (1 + 0.12 * (1 - self.pose.inspiration))
        dome = a.dome - 0.22 * (1 - self.pose.inspiration)
        x, y = self.centre - 0.13 * size, self.y - (dome - 0.14)
        cos, sin = math.cos(a.heart_tilt), math.sin(a.heart_tilt)
        along, across = cos * x + sin * y, cos * y - sin * x
        r = (along / (0.40 * size)) ** 2 + (across / (0.29 * size)) ** 2
        return step(1 - r, 0.13)

    def _mediastinum(self) -> Array:
        """1 in the shadow of the great vessels and the spine between the lungs, 0 outside."""
        a, y = self.anatomy, self.y
        right = 0.105 + 0.03 * bump(y + 0.45, 0.4) + 0.09 * bump(y - 0.25, 0.5)
        knob = a.aortic_knob * bump(y + 0.34, 0.13)
        left = 0.09 + knob + 0.06 * bump(y + 0.06, 0.28) + 0.08 * bump(y - 0.3, 0.5)
        edge = a.mediastinum * (right + (left - right) * step(self.centre, 0.01))
        return step(edge - np.abs(self.centre), 0.022)

    def _lung(self) -> Array:
        """Aerated thickness, 0 to 1."""
        round_off = np.sqrt(np.clip((1 - self.cage) * 2.2, 0, 1))
        covered = 1 - (1 - self.middle) * (1 - self.heart)
        return round_off * step(-self.below_dome, 0.02) * (1 - 0.93 * covered)


def soft_tissue(chest: Chest) -> Array:
    """The torso without its lungs: outline, shoulders, heart, abdomen, breasts, stomach gas, trachea."""
    a, x, y, lateral = chest.anatomy, chest.x, chest.y, chest.lateral
    half_width = a.cage_width + 0.10 + 0.14 * a.soft_tissue + 0.55 * step(-0.38 - y, 0.3)
    slope = np.maximum(lateral - 0.2, 0)
    shoulder = -0.93 + 0.32 * slope * np.sqrt(slope) - 0.12 * a.soft_tissue
    across = 1 - ((lateral / half_width) ** 2) ** 2
    torso = np.sqrt(np.clip(across, 0, 1) * np.clip((y - shoulder) / 0.3, 0, 1))
    neck = bump(lateral, 0.38) * step(-0.7 - y, 0.2) * 0.85
    arm = bump(lateral - (1.13 + 0.1 * a.soft_tissue + 0.12 * y), 0.24) * step(y + 0.75, 0.2) * 0.8
    tissue = np.maximum(np.maximum(torso, neck), arm) * (2.15 + 0.5 * a.soft_tissue)
    abdomen = step(chest.below_dome - 0.06, 0.10)
    belly = chest.heart * bump(norm(chest.centre - 0.1, y - a.dome + 0.2), 0.6)
    organs = 0.35 * np.maximum(chest.middle, chest.heart) + 0.4 * belly * (1 - abdomen)
    tissue += torso * (organs + 0.75 * abdomen)
    if a.breast:
        r = ((lateral - 0.47) / 0.36) ** 2 + ((y - 0.36) / 0.36) ** 2
        tissue += a.breast * np.sqrt(np.clip(1 - r, 0, 1)) * step(y - 0.1, 0.35)
    gas = ((x - 0.36) / 0.13) ** 2 + ((chest.below_dome - 0.085) / 0.055) ** 2
    tissue -= 0.8 * a.soft_tissue**0.5 * step(1 - gas, 0.5) * chest.left
    airway = bump(chest.centre, 0.055) * step(-0.2 - y, 0.06)
    return tissue - 0.45 * airway * torso


def bones(chest: Chest) -> Array:
    """Attenuation of ribs, clavicles, spine, scapulae and humeral heads."""
    a, y, lateral = chest.anatomy, chest.y, chest.lateral
    within = step(1.12 - chest.cage, 0.06) * step(lateral - 0.07, 0.03)
    rim = 1 + 1.1 * step(chest.cage - 0.85, 0.2)  # the beam runs along the ribs where they turn forward
    curl = 1 + 1.3 * step(-0.25 - y, 0.4)  # upper ribs curl round the apex
    fall = (lateral - 0.22) ** 2 * a.rib_slope * curl
    posterior = _tube((y - fall) / a.rib_spacing, 0.26) * rim
    front = (y + 0.95 * a.rib_slope * lateral - 0.25 * lateral**2 + 0.1) / (a.rib_spacing * 1.25)
    anterior = _tube(front, 0.25) * step(lateral - 0.34, 0.12) * step(y + 0.55, 0.1)
    ribs = (0.38 * posterior + 0.22 * anterior) * within * step(0.85 - y, 0.3)
    t = np.clip((lateral - 0.06) / 0.72, 0, 1)
    path = a.clavicle_y - 0.16 * t + 0.035 * np.sin(2 * np.pi * t) + 0.05 * chest.pose.turn * chest.x
    half = 0.034 + 0.014 * (1 - t)
    clavicle = _rod(y - path, half) * step(lateral - 0.08, 0.02) * step(0.80 - lateral, 0.03)
    blade = step(lateral - (0.93 * a.cage_width + 0.2 * y), 0.015) * step(y + 0.62, 0.1) * step(0.05 - y, 0.15)
    humerus = bump(norm(lateral - a.cage_width - 0.24, y + 0.56), 0.17)
    dense = ribs + 0.75 * clavicle + 0.13 * blade + 0.6 * humerus
    return a.rib_contrast * dense + _spine(chest)


def _spine(chest: Chest) -> Array:
    """Vertebral bodies with discs between them, pedicles and spinous processes."""
    a, y = chest.anatomy, chest.y
    x = chest.x - a.scoliosis * np.sin(3 * y)
    phase = y / a.rib_spacing
    body = step(0.085 - np.abs(x), 0.012) * (0.75 + 0.25 * np.cos(2 * np.pi * phase))
    between = np.abs(phase - np.round(phase))
    pedicles = bump(norm(np.abs(x) - 0.052, between * a.rib_spacing), 0.028)
    process = bump(norm(chest.centre, (between - 0.3) * a.rib_spacing), 0.03)
    return 0.35 * body + 0.14 * (pedicles + process)


def _tube(phase: Array, half_width: float) -> Array:
    """Parallel hollow bones, one a period: dense rims, a paler middle."""
    return _rod(phase - np.round(phase), half_width)


def _rod(distance: Array, half_width: float | Array) -> Array:
    t = np.abs(distance) / half_width
    return np.sqrt(np.clip(1 - t, 0, 1)) * 0.75 + 0.35 * bump(t - 0.8, 0.28)


def vessels(chest: Chest) -> Array:
    """Pulmonary vessels: from each hilum five generations of branches, thinner and paler outwards."""
    rng = np.random.default_rng(chest.anatomy.tree_seed)
    heading = np.tile(np.linspace(-1.3, 1.4, 8), 2) + rng.normal(0, 0.12, 16)
    heading[8:] = np.pi - heading[8:]
    start = np.repeat([[0.15, -0.09], [-0.15, -0.03]], 8, axis=0) + rng.normal(0, 0.03, (16, 2))
    drawn = np.zeros(chest.shape, np.float32)
    for generation in range(5):
        length = 0.22 * 0.85**generation * rng.uniform(0.7, 1.3, len(heading))
        x, y, end = _branches(rng, start, heading, length, 0.75 * chest.grid.unit)
        calibre = 0.7**generation
        drawn += chest.grid.stroke(x, y, calibre**0.7, 0.016 * calibre)
        start = np.repeat(end, 2, axis=0)
        fork = rng.uniform(0.15, 0.6, len(heading))
        heading = np.stack([heading - fork, heading + fork], 1).ravel() + rng.normal(0, 0.12, 2 * len(fork))
    hila = bump(norm(chest.lateral - 0.15, chest.y + 0.05), 0.15)
    return chest.anatomy.vessels * (0.32 * np.minimum(drawn, 2) + 0.25 * hila)


def _branches(
    rng: np.random.Generator, start: Array, heading: Array, length: Array, density: float
) -> tuple[Array, Array, Array]:
    """Slightly bent segments from start [n, 2]: x and y [n, points] and the ends [n, 2]."""
    t = np.linspace(0, 1, max(4, int(length.max() * density)), dtype=np.float32)[None]
    heading, length = heading.astype(np.float32), length.astype(np.float32)
    angle = heading[:, None] + rng.normal(0, 0.25, len(heading)).astype(np.float32)[:, None] * t
    x = start[:, :1] + length[:, None] * t * np.cos(angle)
    y = start[:, 1:] + length[:, None] * t * np.sin(angle)
    return x, y, np.stack([x[:, -1], y[:, -1]], 1)
