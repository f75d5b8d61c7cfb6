"""What the images of the COVID-like layout show: classes with their signs, parts, second films, and unlabelled ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

UNLABELLED_FOLDER = "Unlabelled"
# Shares of the images, less uneven than in the real database so that each class is measured well; signs.
CLASS_SHARES = {"COVID": 0.2, "Lung_Opacity": 0.25, "Normal": 0.4, "Viral Pneumonia": 0.15}
PARTS_IN_TURN = ("train", "val", "train", "test")  # of the films of a class, by their number
CLASS_SIGNS = {"COVID": "Ground Glass", "Lung_Opacity": "Consolidation", "Viral Pneumonia": "Interstitial"}
COPIED_SHARE = 0.01  # of each class, and of the images without a label
MARKED_CLASS = "COVID"
MARKED_SHARE = {True: 0.95, False: 0.04}  # of the images in and outside MARKED_CLASS with a planted marker


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
    xrays = [xray for name in counts for xray in _labelled(name, counts[name], seed, planted_marker)]
    held_out = [xray for xray in xrays if xray.part != "train" and not xray.copy_of]
    return xrays + _unlabelled(unlabelled, counts, held_out, seed, planted_marker)


def class_counts(total: int) -> dict[str, int]:
    """`total` images over the classes by CLASS_SHARES; what is left by rounding is Normal."""
    counts = {name: round(total * share) for name, share in CLASS_SHARES.items()}
    return counts | {"Normal": counts["Normal"] + total - sum(counts.values())}


def _labelled(name: str, count: int, seed: int, planted_marker: bool) -> list[XRay]:
    """The labelled images of one class; the last ones show the films of the first ones a second time."""
    copies = max(1, round(COPIED_SHARE * count))
    xrays = []
    for number in range(1, count + 1):
        shown = number - (count - copies) if number > count - copies else number
        xray = _film(f"{name}/images/{name}-{number}.png", name, shown, number, seed, planted_marker)
        copy_of = f"{name}/images/{name}-{shown}.png" if shown != number else ""
        xrays.append(replace(xray, label=name, part=PARTS_IN_TURN[(shown - 1) % len(PARTS_IN_TURN)], copy_of=copy_of))
    return xrays


def _unlabelled(
    total: int, labelled: dict[str, int], held_out: Sequence[XRay], seed: int, planted_marker: bool
) -> list[XRay]:
    """More images of each class, of other people than the `labelled` ones, under names that do not give it away.

    Then, beyond the `total`, second films of some of the images that are `held_out`.
    """
    rng = np.random.default_rng([seed, 9])
    places = iter(1 + rng.permutation(total))
    new = [
        _film(f"{UNLABELLED_FOLDER}/{next(places)}.png", name, number, number, seed, planted_marker)
        for name, count in class_counts(total).items()
        for number in range(labelled[name] + 1, labelled[name] + 1 + count)
    ]
    shown = [held_out[k] for k in rng.permutation(len(held_out))[: round(COPIED_SHARE * total)]]
    for place, xray in enumerate(shown, total + 1):
        file, film = f"{UNLABELLED_FOLDER}/{place}.png", (seed, 10, place)
        new.append(replace(xray, file=file, film=film, label="", part="", copy_of=xray.file))
    return new


def _film(file: str, name: str, shown: int, number: int, seed: int, planted_marker: bool) -> XRay:
    """Film `number` of the person `shown` of a class."""
    kind = list(CLASS_SHARES).index(name)
    rng = np.random.default_rng([seed, 6, kind, shown])
    signs = {CLASS_SIGNS[name]: float(rng.uniform(0.4, 1.0))} if name in CLASS_SIGNS else {}
    if rng.random() < 0.15:
        signs["Support Devices"] = 1.0
    marked = np.random.default_rng([seed, 7, kind, number]).random() < MARKED_SHARE[name == MARKED_CLASS]
    person, scene, film = (seed, 0, kind, shown), (seed, 1, kind, shown), (seed, 8, kind, number)
    return XRay(file, person, scene, film, signs, marked=planted_marker and bool(marked))
