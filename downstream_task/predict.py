"""What does a finished classifier say about X-rays? Calibrated probabilities for files, folders or a table.

    python downstream_task/predict.py
    python downstream_task/predict.py --classifier 'runs/compare/covid/pretrained_finetune_*_f1_d0' --images films/
    python downstream_task/predict.py --classifier resnet18_state_dict.pt --classes COVID Normal --img-res 224 \\
        --images films.csv

`classifier` is a fine-tuning run, or a state_dict from elsewhere, which the keys under it describe. runs/<run_name>/
holds predictions.csv (file, the probability of each class or finding as `p <name>`, the most probable class, and the
other columns of a table), rejected.csv (files that cannot be used, and why) and summary.json. Probabilities of a run
are scaled by the temperature that fits its validation part; those of a state_dict are as the network gives them. By
default it predicts synthetic X-rays by a run of trained_vs_no_trained_compare.py: some seconds.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "classifier": "runs/compare/phantom/pretrained_finetune_*_f1_d0",  # a fine-tuning run | *_state_dict.pt
    "images": ["datasets/phantom"],  # files, folders (all below), or a CSV whose column `file` is relative to it
    # a state_dict only: a run knows these
    "backbone": "resnet18",  # resnet18/34/50/101, efficientnet_b0 ... b4
    "in_channels": 1,  # 1 (gray) | 3
    "classes": [],  # its outputs in their order
    "multilabel": False,  # True: they are findings, of which an X-ray may have several
    "img_res": 0,  # pixels per side at which it was trained
    # run
    "onnx": False,  # True: also write the classifier as onnx/, for programs without torch (pip install -e ".[onnx]")
    "run_name": "",  # runs/<run_name>/; "" is predict/, the classifier's name and that of the first images
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.decoding import square_or_error
from dataset_loader.image_errors import BrokenImageError
from dataset_loader.synthetic import is_synthetic
from downstream_task.clinic.export import export
from downstream_task.clinic.films import PATH, find_films
from downstream_task.clinic.predictor import NetworkConfig, Predictor, open_predictors
from utils.config import UserError, as_dict
from utils.files import check_files, stamps_hash, write_bytes
from utils.hardware import describe_device, prepare, usable_cores
from utils.logging_utils import Run
from utils.scripts import progress_bar

AT_ONCE = 128  # images decoded and predicted together


@dataclass(frozen=True, kw_only=True)
class PredictConfig(NetworkConfig):
    """The config above, checked."""

    classifier: str
    images: list[str]
    onnx: bool
    run_name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images:
            raise UserError("images is empty; name X-ray files, folders that hold them, or a CSV with a column file.")


def main(config: PredictConfig) -> None:
    """Predict every X-ray, write the tables, print how many there are of each class."""
    opened = open_predictors([config.classifier], config, prepare(config.device, config.threads))
    predictor, *others = opened.values()
    if others:
        raise UserError(f"{config.classifier} stands for {len(opened)} runs; name one, such as runs/{predictor.name}.")
    films = find_films(config.images)
    first, *others = config.images
    run_name = config.run_name or f"predict/{predictor.name}/{Path(first).stem}{'_and_more' if others else ''}"
    facts = {**as_dict(config), **predictor.origin, "files": stamps_hash(map(Path, films[PATH]))}
    run = Run(run_name, facts, "predictions")
    if run.summary is None:
        run.start(device=describe_device(predictor.device))
        for name, content in export(predictor).items() if config.onnx else ():
            write_bytes(run.folder / "onnx" / name, content)
        predict(predictor, films, run)
    check_files(run.folder, "predictions.csv")
    assert run.summary is not None
    print("\n".join(run.summary["report"]))


def predict(predictor: Predictor, films: pd.DataFrame, run: Run) -> None:
    """Decode and predict the films in batches; write predictions.csv, rejected.csv and the summary."""
    started, found, rejected = time.monotonic(), {}, {}
    decode = partial(square_or_error, size=predictor.sizes[0])
    with ThreadPoolExecutor(usable_cores()) as pool, progress_bar(len(films), "predicting") as bar:
        for start in range(0, len(films), AT_ONCE):
            images = dict(enumerate(pool.map(decode, films[PATH][start : start + AT_ONCE]), start))
            rejected |= {row: str(image) for row, image in images.items() if isinstance(image, BrokenImageError)}
            usable = {row: image for row, image in images.items() if not isinstance(image, BrokenImageError)}
            if usable:
                probabilities = predictor.probabilities(np.stack([*usable.values()])[:, None])
                found |= dict(zip(usable, probabilities, strict=True))
            bar.update(len(images))
    reasons = pd.DataFrame({"file": films["file"].iloc[[*rejected]], "reason": [*rejected.values()]})
    run.save_table("rejected", reasons)
    if not found:
        first = reasons.iloc[0]
        raise UserError(f"none of the {len(films):,} files can be used; the first, {first['file']}: {first['reason']}.")
    seen = int(films[PATH].iloc[[*found]].isin(predictor.learnt_from).sum())
    table, minutes = films.iloc[[*found]].drop(columns=PATH), (time.monotonic() - started) / 60
    probabilities = np.stack([*found.values()])  # [n, C]
    table[[f"p {name}" for name in predictor.classes]] = probabilities
    if not predictor.multilabel:
        table["predicted"] = [predictor.classes[c] for c in probabilities.argmax(1)]
    run.save_table("predictions", table)
    run.finish(
        {
            "images": len(table),
            "rejected": len(rejected),
            "classes": predictor.classes,
            "temperature": predictor.temperature,
            "synthetic": any(is_synthetic(folder) for folder in {Path(path).parent for path in films[PATH]}),
            "report": report(table, predictor, seen, len(rejected), len(films) / minutes, run),
        }
    )


def report(
    table: pd.DataFrame, predictor: Predictor, num_seen: int, num_rejected: int, per_minute: float, run: Run
) -> list[str]:
    """Return lines to print: how many X-rays of each class, or the mean probability of each finding."""
    mean = table[[f"p {name}" for name in predictor.classes]].mean().to_numpy()
    rows = {"mean probability": [f"{p:.3f}" for p in mean]}
    if not predictor.multilabel:
        rows = {"X-rays": [str((table["predicted"] == name).sum()) for name in predictor.classes], **rows}
    trained = " (trained on synthetic X-rays)" if predictor.origin["synthetic"] else ""
    lines = [
        f"\n{len(table):,} X-rays by {predictor.name}{trained}, {per_minute:,.0f} per minute, "
        f"probabilities at temperature {predictor.temperature:.2f}",
        pd.DataFrame(rows, index=predictor.classes).to_string(),
    ]
    if predictor.note:
        lines.append(f"{predictor.note}.")
    if num_seen:
        lines.append(f"{num_seen:,} of them are labelled images of its train part, which says nothing about new X-rays")
    if num_rejected:
        lines.append(f"{num_rejected:,} files could not be used: see {run}/rejected.csv")
    return [*lines, "Research code: nothing here is a medical finding.", f"\ntables  {run}/"]


if __name__ == "__main__":
    run_script(main, PredictConfig, config)
