"""What the synthetic X-rays show, in both layouts: people, signs of disease, labels, parts and second films."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from dataset_loader.readers.chexpert_dataset import FINDINGS

UNLABELLED_FOLDER = "Unlabelled"
# Shares of the images, less uneven than in the real database so that each class is measured well; signs.
CLASS_SHARES = {"COVID": 0.2, "Lung_Opacity": 0.25, "Normal": 0.4, "Viral Pneumonia": 0.15}
PARTS_IN_TURN = ("train", "val", "train", "test")  # of the films of a class, by their number
CLASS_SIGNS = {"COVID": "Ground Glass", "Lung_Opacity": "Consolidation", "Viral Pneumonia": "Interstitial"}
COPIED_SHARE = 0.01  # of each class, and of the images without a label
MARKED_CLASS = "COVID"
MARKED_SHARE = {True: 0.95, False: 0.04}  # of the images in and outside MARKED_CLASS with a planted marker
# How often an ill patient has a finding: a chronic one in all studies, others drawn again for each.
_CHRONIC = {"Cardiomegaly": 0.35}
_ACUTE = {"Edema": 0.3, "Consolidation": 0.25, "Atelectasis": 0.25, "Pleural Effusion": 0.4, "Support Devices": 0.5}
_OPACITIES = ("Edema", "Consolidation", "Atelectasis")


@dataclass(frozen=True)
class XRay:
    """One picture to be drawn: the seeds of its person, its scene (pose, signs) and its film (exposure), and more.

    label    its class, or "" if the table does not give it
    part     of the split, "" without a label
    copy_of  the file that shows the same film, or ""
    """

    file: str
    person: tuple[int, ...]
    scene: tuple[int, ...]
    film: tuple[int, ...]
    signs: dict[str, float] = field(default_factory=dict)  # severity by name
    label: str = ""
    part: str = ""
    copy_of: str = ""
    marked: bool = False


def plan_classes(images: int, unlabelled: int, seed: int, planted_marker: bool) -> list[XRay]:
    """Return labelled images, then unlabelled ones; with `planted_marker` some are to be marked (MARKED_SHARE)."""
    counts = class_counts(images)
    xrays = [xray for name in counts for xray in _labelled(name, counts[name], seed)]
    held_out = [xray for xray in xrays if xray.part != "train" and not xray.copy_of]
    xrays += _unlabelled(unlabelled, counts, held_out, seed)
    return xrays if planted_marker else [replace(xray, marked=False) for xray in xrays]


def class_counts(total: int) -> dict[str, int]:
    """`total` images over the classes by CLASS_SHARES; what is left by rounding is Normal."""
    counts = {name: round(total * share) for name, share in CLASS_SHARES.items()}
    return counts | {"Normal": counts["Normal"] + total - sum(counts.values())}


def _labelled(name: str, count: int, seed: int) -> list[XRay]:
    """The labelled images of one class; the last ones show the films of the first ones a second time."""
    first_copy, xrays = count - max(1, round(COPIED_SHARE * count)) + 1, []
    for number in range(1, count + 1):
        shown = number if number < first_copy else number - first_copy + 1
        xray = _film(f"{name}/images/{name}-{number}.png", name, shown, number, seed)
        copy_of = f"{name}/images/{name}-{shown}.png" if shown != number else ""
        xrays.append(replace(xray, label=name, part=PARTS_IN_TURN[(shown - 1) % len(PARTS_IN_TURN)], copy_of=copy_of))
    return xrays


def _unlabelled(total: int, labelled: dict[str, int], held_out: Sequence[XRay], seed: int) -> list[XRay]:
    """More images of each class, of other people than the `labelled` ones, under names that do not give it away.

    Then, beyond the `total`, second films of some of the images that are `held_out`.
    """
    rng = np.random.default_rng([seed, 9])
    places = iter(1 + rng.permutation(total))
    new = [
        _film(f"{UNLABELLED_FOLDER}/{next(places)}.png", name, number, number, seed)
        for name, count in class_counts(total).items()
        for number in range(labelled[name] + 1, labelled[name] + 1 + count)
    ]
    shown = [held_out[k] for k in rng.permutation(len(held_out))[: round(COPIED_SHARE * total)]]
    for place, xray in enumerate(shown, total + 1):
        file, film = f"{UNLABELLED_FOLDER}/{place}.png", (seed, 10, place)
        new.append(replace(xray, file=file, film=film, label="", part="", copy_of=xray.file))
    return new


def _film(file: str, name: str, shown: int, number: int, seed: int) -> XRay:
    """Film `number` of the person `shown` of a class."""
    kind = list(CLASS_SHARES).index(name)
    rng = np.random.default_rng([seed, 6, kind, shown])
    signs = {CLASS_SIGNS[name]: float(rng.uniform(0.4, 1.0))} if name in CLASS_SIGNS else {}
    if rng.random() < 0.15:
        signs["Support Devices"] = 1.0
    marked = bool(np.random.default_rng([seed, 7, kind, number]).random() < MARKED_SHARE[name == MARKED_CLASS])
    person, scene, film = (seed, 0, kind, shown), (seed, 1, kind, shown), (seed, 8, kind, number)
    return XRay(file, person, scene, film, signs, marked=marked)


def plan_patients(patients: int, seed: int) -> tuple[list[XRay], pd.DataFrame]:
    """Return the X-rays of patients with several studies, a frontal view each, and CheXpert's table of them.

    Sex, age and projection are made up and change no pixel.
    """
    xrays, rows = [], []
    for number in range(1, patients + 1):
        rng = np.random.default_rng([seed, 2, number])
        sex, age = str(rng.choice(("Female", "Male"))), int(np.clip(rng.normal(60, 17), 18, 90))
        ill = rng.random() < 0.8
        chronic = _happen(_CHRONIC, rng) if ill else {}
        for study in range(int(rng.choice((1, 2, 3, 4), p=(0.5, 0.27, 0.15, 0.08)))):
            findings = chronic | (_happen(_ACUTE, rng) if ill else {})
            file = f"train/patient{number:05d}/study{study + 1}/view1_frontal.jpg"
            xrays.append(XRay(file, (seed, 3, number), (seed, 4, number, study), (seed, 5, number, study), findings))
            path, projection = f"CheXpert-v1.0-small/{file}", str(rng.choice(("AP", "PA"), p=(0.8, 0.2)))
            facts = {"Path": path, "Sex": sex, "Age": age, "Frontal/Lateral": "Frontal", "AP/PA": projection}
            rows.append(facts | report(findings, rng))
    return xrays, pd.DataFrame(rows)


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
