"""Tables of predictions that no network has made: runs and comparisons for tests that train nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.files import write_json, write_table

CLASSES = ("COVID", "NA", "7")  # names that a table must not take for something else
FINDINGS = ("Edema", "Pleural Effusion")
FACTS = {"synthetic": True, "transductive": False, "note": "", "split_hash": "abc"}


def of_classes(seed: int, skill: float, images: int = 240, **cell: Any) -> pd.DataFrame:
    """Validation and test rows, of pairs of images of a patient; the larger the skill, the better the predictions."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(0, len(CLASSES), images)  # the same images for every seed
    logits = generator.normal(size=(images, len(CLASSES))) + skill * np.eye(len(CLASSES))[labels]
    p = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)  # too confident
    table = _rows(images, **cell).assign(label=np.array(CLASSES)[labels])
    return table.assign(**{f"p {name}": p[:, c] for c, name in enumerate(CLASSES)})


def of_findings(seed: int, skill: float, images: int = 240, **cell: Any) -> pd.DataFrame:
    """The same of findings, a tenth of them unknown; two images make a study."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(98).integers(0, 2, (images, len(FINDINGS))).astype(float)
    p = 1 / (1 + np.exp(-generator.normal(skill * (2 * labels - 1), 1)))
    labels[generator.random(labels.shape) < 0.1] = np.nan
    table = _rows(images, **cell)
    table.insert(9, "study", [f"study{n % 4 // 2}" for n in range(images)])
    table = table.assign(**{f"label {name}": labels[:, c] for c, name in enumerate(FINDINGS)})
    return table.assign(**{f"p {name}": p[:, c] for c, name in enumerate(FINDINGS)})


def _rows(images: int, **cell: Any) -> pd.DataFrame:
    numbers = np.arange(images)
    place = {"fold": 0, "draw": 0, "arm": "random", "way": "linear", "labels": 20, "start": 0, **cell}
    table = pd.DataFrame({"file": [f"{n}.png" for n in numbers], "part": np.where(numbers < images / 3, "val", "test")})
    sexes, ages = np.where(numbers % 4 < 2, "F", "M"), np.where(numbers % 5, 20 + numbers % 60, np.nan)
    return table.assign(**place, group=[f"p{n // 4}" for n in numbers], sex=sexes, age=ages)


def finished_run(folder: Path, table: pd.DataFrame, **summary: Any) -> Path:
    """A finished run with this table."""
    write_table(folder / "predictions.csv", table)
    write_json(folder / "config.json", {"version": 2})
    write_json(folder / "environment.json", {"kind": "fine-tuning"})
    write_json(folder / "summary.json", {**FACTS, **summary})
    return folder


def finished_comparison(folder: Path, arms: dict[str, float], draws: int = 3, **summary: Any) -> pd.DataFrame:
    """A finished comparison of arms with such skills, of two ways and two numbers of labels; return its summary.csv."""
    rows = []
    for a, (arm, skill) in enumerate(arms.items()):
        for way, headline_at in {"linear": 20, "probe": 90}.items():
            for labels in (20, 90):
                for draw in range(draws):
                    cell = {"arm": arm, "way": way, "labels": labels, "draw": draw, "fold": 0, "start": draw}
                    trial = f"{arm}_{way}_n{labels}_d{draw}"
                    seed = 1000 * a + labels + draw + 500 * (way == "probe")
                    finished_run(folder / trial, of_classes(seed, skill + labels / 100, **cell))
                    place = {"trial": trial, **cell, "encoder": f"{arm}{draw}", "headline": labels == headline_at}
                    rows.append({**place, "metric": "balanced_accuracy", "transductive": False, "note": ""})
    table = pd.DataFrame(rows)
    write_table(folder / "summary.csv", table)
    write_json(folder / "config.json", {"version": 2})
    write_json(folder / "environment.json", {"kind": "comparison"})
    facts = {**FACTS, "metric": "balanced_accuracy", "chance": 1 / 3, "target_score": 0.8, "notes": ["a note"]}
    write_json(folder / "summary.json", {**facts, "part": "validation", "left_out": {}, **summary})
    return table
