"""What does a finished classifier say about X-rays? Calibrated probabilities for files, folders or a table.

    python downstream_task/predict.py
    python downstream_task/predict.py --classifier runs/compare/covid/pretrained_zeros_n187_d0 --images films/
    python downstream_task/predict.py --classifier resnet18_state_dict.pt --classes COVID Normal --img-res 224 \\
        --images films.csv

`classifier` is a fine-tuning run, or weights from elsewhere, which the keys under it describe. Name several to average
their probabilities, such as the spread and zeros of a comparison that ran with --keep-weights. Each call makes a new
run, runs/<run_name>/, <run_name>-2, ...; if nothing is new, it prints what is there. A run holds predictions.csv (file,
path, patient, accession number and view of tables and DICOM headers; the most probable class, close calls and the
probability of each class or finding as `p <name>`; a table's other columns), rejected.csv (broken files, lateral views
and files without an X-ray, each with the reason) and summary.json. Probabilities of a run are scaled by the
temperature that fits its validation part; those of other weights are as the network gives them. By default it predicts
synthetic X-rays by a run of trained_vs_no_trained_compare.py: some seconds.
"""

from typing import Annotated, Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "classifier": ["runs/compare/phantom/pretrained_zeros_n1201_d0"],  # fine-tuning runs | *_state_dict.pt; their mean
    "images": ["datasets/phantom"],  # files, folders (all below), or a CSV whose column `file` is relative to it
    "laterals": False,  # True: also predict lateral views, which are left out and listed
    # a state_dict only: a run knows these
    "backbone": "resnet18",  # torchvision's name, such as densenet121, or timm/NAME
    "in_channels": 1,  # 1 (gray) | 3
    "classes": [],  # its outputs in their order
    "multilabel": False,  # True: they are findings, of which an X-ray may have several
    "img_res": 0,  # pixels per side at which it was trained
    # run
    "onnx": False,  # True: also write the classifier as onnx/, for programs without torch (pip install -e ".[onnx]")
    "ids": "plain",  # names of films and patients in what is written: "plain" | "hashed" (keyed) | "none"
    "run_name": "",  # runs/<run_name>/ or, if there is one, <run_name>-2 ...; "" is predict/<classifier>/<first images>
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.ids import IdsMode, open_ids
from dataset_loader.synthetic import is_synthetic
from downstream_task.clinic.export import export
from downstream_task.clinic.films import FACTS, PATH, Films, find_films
from downstream_task.finished_runs import NetworkConfig, Predictor, open_predictors
from utils.config import UserError, as_dict, bound, repo_path
from utils.files import write_bytes
from utils.hardware import describe_device, prepare
from utils.logging_utils import Run, new_run, same_run

CLOSE = 0.1  # between the probabilities of two answers that hardly differ
DIGITS = 6  # of a probability in the table


@dataclass(frozen=True, kw_only=True)
class PredictConfig(NetworkConfig):
    """The config above, checked."""

    classifier: Annotated[list[str], bound(bool, "name a fine-tuning run, or a file of weights")]
    images: Annotated[list[str], bound(bool, "name X-ray files, folders that hold them, or a CSV with a column file")]
    laterals: bool
    onnx: bool
    ids: IdsMode
    run_name: str


def main(config: PredictConfig) -> None:
    """Predict every X-ray, write the tables, print how many there are of each class."""
    opened = [*open_predictors(config.classifier, config, prepare(config.device, config.threads)).values()]
    if len(opened) > len(config.classifier):
        raise UserError(
            f"{' '.join(config.classifier)} matches {len(opened)} runs; name each, such as runs/{opened[0].name}."
        )
    if config.onnx and len(opened) > 1:
        raise UserError(f"onnx writes one classifier, and {len(opened)} are named; name one at a time.")
    predictor = together(opened)
    films = find_films(config.images, config.laterals)
    facts = {**as_dict(config), **predictor.origin, "films": films.content_hash()}
    name = config.run_name or f"predict/{predictor.name}/{name_of(config)}"
    run = same_run(name, facts, "predictions", ["predictions.csv", "rejected.csv"])
    if run is None:
        onnx = export(predictor) if config.onnx else {}
        started = time.monotonic()
        probabilities = mean_probabilities(opened, films)
        seconds = time.monotonic() - started
        run = new_run(name, facts, "predictions")  # only now: what fails leaves nothing behind
        run.start(device=describe_device(predictor.device))
        for file, content in onnx.items():
            write_bytes(run.folder / "onnx" / file, content)
        save(config, predictor, films, probabilities, seconds, run)
    else:
        print(f"nothing is new since {run} was written:")
    assert run.summary is not None
    print("\n".join(run.summary["report"]))


def together(opened: Sequence[Predictor]) -> Predictor:
    """Return the first predictor with what there is to say of all; UserError if they predict different things."""
    first, *others = opened
    if not others:
        return first
    for other in others:
        if (other.classes, other.multilabel) != (first.classes, first.multilabel):
            raise UserError(
                f"{first.name} predicts {', '.join(first.classes)}, and {other.name} {', '.join(other.classes)}; a "
                "mean needs the same classes or findings in the same order."
            )
    return replace(
        first,
        name="+".join([first.name, *(Path(other.name).name for other in others)]),
        origin={
            "weights": [one.origin["weights"] for one in opened],
            "synthetic": any(one.origin["synthetic"] for one in opened),
        },
        temperature=math.nan,  # each has its own
        learnt_from=frozenset().union(*(one.learnt_from for one in opened)),
        note="; ".join(dict.fromkeys(one.note for one in opened if one.note)),
    )


def mean_probabilities(opened: Sequence[Predictor], films: Films) -> np.ndarray:
    """Return the mean of what the predictors say of all films [n, C]; films that cannot be decoded are left out."""
    found = []
    for size in dict.fromkeys(one.stored for one in opened):
        alike = [one for one in opened if one.stored == size]
        batches = films.batches(size, "predicting")
        found += zip(*([one.probabilities(squares[:, None]) for one in alike] for squares in batches), strict=True)
    return np.mean([np.concatenate(of_one) for of_one in found], axis=0)


def name_of(config: PredictConfig) -> str:
    """Return a name for the images, short enough for a folder; none that tells of a patient if ids are hidden."""
    first, *others = map(repo_path, config.images)
    name = "films" if config.ids != "plain" else (first.name if first.is_dir() else first.stem).strip()[:40].strip()
    return f"{name or 'films'}{'_and_more' if others else ''}"


def save(
    config: PredictConfig, predictor: Predictor, films: Films, probabilities: np.ndarray, seconds: float, run: Run
) -> None:
    """Write predictions.csv, rejected.csv and the summary."""
    ids = open_ids(config.ids, predictor.data_root)
    known, left_out = films.written(ids)
    rounded = np.vectorize(lambda p: float(f"{p:.{DIGITS}g}"), otypes=[float])(probabilities)
    answers = answers_of(predictor, rounded)
    facts = [name for name in ("file", PATH, *FACTS) if name in known]
    others = known.drop(columns=facts).rename(columns=lambda name: f"{name} (table)" if name in answers else name)
    table = pd.concat([known[facts], answers, others], axis=1)
    run.save_table("rejected", left_out)
    run.save_table("predictions", table)
    seen = sum(path in predictor.learnt_from for path in films.table[PATH])
    per_minute = 60 * (len(films.table) + len(films.left_out)) / seconds
    run.finish(
        {
            "images": len(table),
            "rejected": len(left_out),
            "rejected_kinds": dict(Counter(left_out["kind"])),
            "close_calls": sum(map(bool, answers["close call"])),
            "classes": predictor.classes,
            "temperature": predictor.temperature,
            "synthetic": any(is_synthetic(folder) for folder in {Path(path).parent for path in films.table[PATH]}),
            "report": report(answers, predictor, films, seen, per_minute, run),
        }
    )


def answers_of(predictor: Predictor, p: np.ndarray) -> pd.DataFrame:
    """Return the most probable class, close calls and probabilities [n, C] as columns.

    A close call is a class or finding whose probability is within CLOSE of the next best answer's, which for a finding
    is that it is absent.
    """
    names = np.array(predictor.classes, dtype=object)
    columns = {f"p {name}": p[:, c] for c, name in enumerate(names)}
    if predictor.multilabel:
        close = ["; ".join(names[row]) for row in np.abs(2 * p - 1) <= CLOSE]
        return pd.DataFrame({"close call": close, **columns})
    second, best = p.argsort(axis=1)[:, -2:].T
    rows = np.arange(len(p))
    is_close = p[rows, best] - p[rows, second] <= CLOSE
    close = [f"{names[a]} or {names[b]}" if it else "" for a, b, it in zip(best, second, is_close, strict=True)]
    return pd.DataFrame({"predicted": names[best], "close call": close, **columns})


def report(
    answers: pd.DataFrame, predictor: Predictor, films: Films, num_seen: int, per_minute: float, run: Run
) -> list[str]:
    """Return lines to print: how many X-rays of each class, or the mean probability of each finding."""
    mean = answers[[f"p {name}" for name in predictor.classes]].mean().to_numpy()
    rows = {"mean probability": [f"{p:.3f}" for p in mean]}
    if not predictor.multilabel:
        rows = {"X-rays": [str((answers["predicted"] == name).sum()) for name in predictor.classes], **rows}
    scaled = f"temperature {predictor.temperature:.2f}"
    if math.isnan(predictor.temperature):
        scaled = "each network's temperature, then averaged"
    trained = " (trained on synthetic X-rays)" if predictor.origin["synthetic"] else ""
    lines = [
        f"\n{len(answers):,} X-rays by {predictor.name}{trained}, {per_minute:,.0f} per minute, "
        f"probabilities at {scaled}",
        pd.DataFrame(rows, index=predictor.classes).to_string(),
    ]
    if predictor.note:
        lines.append(f"{predictor.note}.")
    if close := sum(map(bool, answers["close call"])):
        lines.append(f"{close:,} of them are close calls: two answers within {CLOSE}")
    if num_seen:
        lines.append(f"{num_seen:,} of them are X-rays that it could learn from, so they say nothing about new ones")
    if predictor.learnt_from and not predictor.data_root.is_dir():
        lines.append(
            f"{predictor.data_root} is not there any more, so none is recognised as one that it could learn from"
        )
    if left_out := len(films.left_out):
        lines.append(f"{left_out:,} files are left out ({films.counts()}): see {run}/rejected.csv")
    return [*lines, "Research code: nothing here is a medical finding.", f"\ntables  {run}/"]


if __name__ == "__main__":
    run_script(main, PredictConfig, config)
