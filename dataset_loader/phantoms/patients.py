"""The phantoms of the CheXpert-like tree: patients, their studies and views, and what reports say of them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_loader.phantoms.anatomy import Anatomy, Pose
from dataset_loader.phantoms.views import annotate, frontal, lateral, to_bytes

LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)

_OPACITIES = ("Lung Lesion", "Edema", "Consolidation", "Atelectasis")
# How often a patient who is not healthy has a finding: chronic ones in all studies, others in each anew.
_CHRONIC = {"Cardiomegaly": 0.3, "Enlarged Cardiomediastinum": 0.15, "Lung Lesion": 0.1}
_ACUTE = {
    "Edema": 0.3,
    "Consolidation": 0.25,
    "Atelectasis": 0.25,
    "Pneumothorax": 0.1,
    "Pleural Effusion": 0.4,
    "Support Devices": 0.5,
}


@dataclass(frozen=True)
class View:
    """One radiograph of a patient, ready to be drawn: a function of its fields alone."""

    path: str  # relative to the tree's root: train/patient00001/study1/view1_frontal.jpg
    row: tuple[str, ...]  # its row of the table, as HEADER
    anatomy: Anatomy
    pose: Pose
    findings: dict[str, float]  # severity by name
    shape: tuple[int, int]  # height, width
    seed: tuple[int, ...]

    def save(self, root: Path) -> None:
        """Draw the radiograph and write it below `root`."""
        rng = np.random.default_rng(self.seed)
        if self.path.endswith("_frontal.jpg"):
            picture, _ = frontal(self.anatomy, self.pose, self.findings, self.shape, rng)
        else:
            picture = lateral(self.anatomy, self.pose, self.findings, self.shape, rng)
        file = root / self.path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_bytes(annotate(picture, rng))).save(file, quality=92)


def plan_patient(seed: int, number: int, part: str, size: int, root_name: str) -> list[View]:
    """All views of a patient; `part` is "train", or "valid": one study, each label 0 or 1, as in CheXpert."""
    rng = np.random.default_rng([seed, 2, number])
    female = bool(rng.random() < 0.41)
    sex, age = ("Female" if female else "Male"), int(np.clip(rng.normal(60, 17), 18, 90))
    ill = bool(rng.random() < 0.8)
    chronic = _happen(_CHRONIC, rng) if ill else {}
    anatomy = _reshaped(Anatomy.draw(rng, female), chronic)
    views = []
    studies = 1 if part == "valid" else int(rng.choice((1, 2, 3, 4), p=(0.5, 0.27, 0.15, 0.08)))
    for study in range(1, studies + 1):
        findings = chronic | (_happen(_ACUTE, rng) if ill or rng.random() < 0.2 else {})
        labels = consensus(findings) if part == "valid" else report(findings, rng)
        values = tuple("" if value is None else f"{value:.1f}" for value in labels.values())
        for view, kind in enumerate(_kinds(rng), start=1):
            path = f"{part}/patient{number:05d}/study{study}/view{view}_{kind.split()[0]}.jpg"
            side, _, projection = kind.partition(" ")
            row = (
                f"{root_name}/{path}",
                sex,
                str(age + (study - 1) // 2),
                side.capitalize(),
                projection,
                *values,
            )
            pose = Pose.draw(rng)
            if projection == "AP":  # in bed: less deep a breath
                pose = replace(pose, inspiration=0.75 * pose.inspiration)
            long_side = round(1.2 * size)
            upright = side == "lateral" or rng.random() < 0.25
            shape = (long_side, size) if upright else (size, long_side)
            pixels = (seed, 3, number, study, view)
            views.append(View(path, row, anatomy, pose, findings, shape, pixels))
    return views


def _kinds(rng: np.random.Generator) -> list[str]:
    """The views of one study, in order."""
    if rng.random() < 0.3:
        return ["frontal PA", "lateral"]
    return ["frontal AP"] * (2 if rng.random() < 0.12 else 1)


def _happen(odds: dict[str, float], rng: np.random.Generator) -> dict[str, float]:
    return {name: float(rng.beta(1.6, 1.4)) for name, chance in odds.items() if rng.random() < chance}


def _reshaped(anatomy: Anatomy, findings: dict[str, float]) -> Anatomy:
    """The anatomy with the heart and mediastinum that its findings say."""
    heart, wide = findings.get("Cardiomegaly"), findings.get("Enlarged Cardiomediastinum")
    if heart is not None:
        anatomy = replace(anatomy, heart_size=1.1 + 0.35 * heart)
    if wide is not None:
        anatomy = replace(anatomy, mediastinum=1.3 + 0.5 * wide)
    return anatomy


def report(findings: dict[str, float], rng: np.random.Generator) -> dict[str, float | None]:
    """Labels as a labeller of reports gives them: 1, 0, -1 (uncertain) or None (not mentioned).

    What is drawn plainly is mostly mentioned as there, what is faint often as uncertain; of what is not drawn
    some is denied and most not mentioned. "No Finding" is 1 where nothing but devices is drawn.
    """
    seen = dict(findings)
    if any(name in seen for name in _OPACITIES):
        seen["Lung Opacity"] = max(seen.get(name, 0.0) for name in _OPACITIES)
    labels: dict[str, float | None] = {}
    for name in LABELS:
        draw = rng.random()
        if name in seen:
            doubt = 0.05 if name == "Support Devices" else 0.6 if seen[name] < 0.35 else 0.08
            labels[name] = -1.0 if draw < doubt else 1.0
        else:
            labels[name] = 0.0 if draw < 0.12 else None
    if labels["Consolidation"]:  # a cause is guessed at
        labels["Pneumonia"] = (-1.0, 1.0, None)[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
    labels["No Finding"] = None if set(findings) - {"Support Devices"} else 1.0
    return labels


def consensus(findings: dict[str, float]) -> dict[str, float | None]:
    """Labels as several radiologists agree on them: 1 for what is drawn, 0 for the rest."""
    labels: dict[str, float | None] = {name: float(name in findings) for name in LABELS}
    labels["Lung Opacity"] = float(any(name in findings for name in _OPACITIES))
    labels["Pneumonia"] = labels["Consolidation"]
    labels["No Finding"] = float(not set(findings) - {"Support Devices"})
    return labels
