"""The patients of the CheXpert-like layout: their studies, and what reports say of them."""

from collections.abc import Iterator

import numpy as np

from dataset_loader.readers.chexpert_dataset import FINDINGS

HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)

_OPACITIES = ("Edema", "Consolidation", "Atelectasis")
# How often an ill patient has a finding: a chronic one in all studies, others drawn again for each.
_CHRONIC = {"Cardiomegaly": 0.35}
_ACUTE = {"Edema": 0.3, "Consolidation": 0.25, "Atelectasis": 0.25, "Pleural Effusion": 0.4, "Support Devices": 0.5}


def plan_patient(rng: np.random.Generator, number: int) -> Iterator[tuple[str, dict[str, float], tuple[str, ...]]]:
    """Yield file, findings (severity by name) and row of the table (as HEADER) of each study of a patient.

    A study is one frontal view. Sex, age and projection are made up and change no pixel.
    """
    sex, age = str(rng.choice(("Female", "Male"))), int(np.clip(rng.normal(60, 17), 18, 90))
    ill = rng.random() < 0.8
    chronic = _happen(_CHRONIC, rng) if ill else {}
    for study in range(1, 1 + int(rng.choice((1, 2, 3, 4), p=(0.5, 0.27, 0.15, 0.08)))):
        findings = chronic | (_happen(_ACUTE, rng) if ill else {})
        file = f"train/patient{number:05d}/study{study}/view1_frontal.jpg"
        projection = str(rng.choice(("AP", "PA"), p=(0.8, 0.2)))
        labels = ("" if label is None else f"{label:.1f}" for label in report(findings, rng).values())
        yield file, findings, (f"CheXpert-v1.0-small/{file}", sex, str(age), "Frontal", projection, *labels)


def report(findings: dict[str, float], rng: np.random.Generator) -> dict[str, float | None]:
    """Labels as a labeller of reports gives them: 1, 0, -1 (uncertain) or None (not mentioned).

    What is plain is mostly reported, what is faint often as uncertain; of what is absent some is denied and most not
    mentioned. Pneumonia is guessed at where there is a consolidation. "No Finding" is 1 where nothing but devices is.
    """
    seen = dict(findings)
    if opacities := [seen[name] for name in _OPACITIES if name in seen]:
        seen["Lung Opacity"] = max(opacities)
    if "Consolidation" in seen:
        seen["Pneumonia"] = 0.0
    if not set(findings) - {"Support Devices"}:
        seen["No Finding"] = 1.0
    labels: dict[str, float | None] = {}
    for name in FINDINGS:
        draw = rng.random()
        if name in seen:
            labels[name] = -1.0 if draw < (0.6 if seen[name] < 0.35 else 0.08) else 1.0
        else:
            labels[name] = 0.0 if draw < 0.12 and name != "No Finding" else None
    return labels


def _happen(odds: dict[str, float], rng: np.random.Generator) -> dict[str, float]:
    return {name: float(rng.beta(1.6, 1.4)) for name, chance in odds.items() if rng.random() < chance}
