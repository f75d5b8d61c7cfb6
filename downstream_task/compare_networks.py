"""Arms side by side: the same label subsets for every initialisation, and what their scores say with intervals."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from dataset_loader.xrays import XRays, open_xrays
from downstream_task.finetuning import METHODS, TrainingConfig, finetune
from downstream_task.label_savings import labels_needed
from self_sup_classes.initialisation import start_from
from utils.config import UserError, check_at_least, check_choice, check_config
from utils.hardware import choose_device
from utils.intervals import paired_difference, resampled_scores
from utils.logging_utils import Run
from utils.metrics import balanced_accuracy, finding_scores
from utils.progress import progress_bar

REPEATS = 500  # resamples of the images behind an interval
DIFFERENCE_COLUMNS = [
    *("arm", "reference", "method", "fraction", "labels", "difference", "low", "high"),
    *("reference_needs", "reference_needs_low", "reference_needs_high"),
]


class CompareConfig(TrainingConfig):
    """Every key of downstream_task/trained_vs_no_trained_compare.py."""

    encoders: list[str]
    methods: list[str]
    fractions: list[float]
    draws: int
    lrs: list[float]


@dataclass(frozen=True)
class Trial:
    """One run of a comparison."""

    arm: str
    encoder: str
    method: str
    fraction: float
    draw: int
    lr: float
    trainable: str = "all"

    @property
    def name(self) -> str:
        """Its folder inside the comparison's."""
        what = f"{self.method}_lr{self.lr:g}" if self.method == "finetune" else self.method
        part = "" if self.trainable == "all" else f"_{self.trainable}"
        return f"{self.arm}_{what}{part}_f{self.fraction:g}_d{self.draw}"


def arm_names(encoders: Iterable[str]) -> dict[str, str]:
    """A short name for each encoder: what it is, or the run that it comes from. Raises UserError for equal ones."""
    names: dict[str, str] = {}
    for encoder in encoders:
        path = Path(encoder)
        stem = path.parent.name if path.name.endswith("_state_dict.pt") and path.parent.name else path.stem
        name = "imagenet" if encoder.startswith("imagenet") else stem
        if name.endswith("_") or name in names:
            raise UserError(f"encoders holds {encoder!r} and {names.get(name)!r}, both named {name!r}; keep one.")
        names[name] = encoder
    return names


def usable_arms(config: TrainingConfig, encoders: list[str]) -> dict[str, str]:
    """Arms whose weights can be had. ImageNet's may be out of reach: said on stderr, and the others go on.

    Raises UserError for any other that cannot be loaded, and if none is left.
    """
    arms = arm_names(encoders)
    for name, encoder in list(arms.items()):
        try:
            start_from(encoder, config["backbone"], config["in_channels"], config["random_seed"])
        except UserError as error:
            if encoder != "imagenet":
                raise
            print(f"warning: left out: {error}", file=sys.stderr)
            del arms[name]
    if not arms:
        raise UserError("encoders names nothing that can be run; give 'random' and a *_state_dict.pt under runs/.")
    return arms


def run_trial(trial: Trial, config: TrainingConfig, xrays: XRays) -> dict[str, Any]:
    """Fine-tune, or look up what was fine-tuned before; a row of summary.csv."""
    shared = {key: config[key] for key in TrainingConfig.__annotations__}
    name = f"{config['run_name']}/{trial.name}"
    whole: Any = {
        **shared,
        "run_name": name,
        "encoder": trial.encoder,
        "method": trial.method,
        "trainable": trial.trainable,
        "label_fraction": trial.fraction,
        "label_draw": trial.draw,
        "lr": trial.lr,
        "random_seed": config["random_seed"] + trial.draw,
    }
    run = finetune(whole, xrays, show_progress=False)
    assert run.summary is not None
    scores = {key.removeprefix("val/"): value for key, value in run.summary.items() if key.startswith("val/")}
    return {
        **vars(trial),
        "labels": run.summary["labels"],
        "score": run.summary["score"],
        **scores,
        "note": run.summary["note"],
        "run": trial.name,
    }


def compare(config: CompareConfig) -> Run:
    """All arms x methods x fractions x draws, then intervals; finished runs are not trained again."""
    check_compare_config(config)
    run = Run(config["run_name"], config)
    if run.summary is not None:
        return run
    arms = usable_arms(config, config["encoders"])
    xrays = open_xrays(config, choose_device(config["device"]))
    run.start(data=xrays.facts(), arms=arms)
    rows: list[dict[str, Any]] = []
    lrs = chosen_lrs(config, arms, xrays)
    trials = [
        Trial(arm, encoder, method, fraction, draw, lrs[arm] if method == "finetune" else 0.0)
        for draw in range(config["draws"])
        for fraction in config["fractions"]
        for method in config["methods"]
        for arm, encoder in arms.items()
    ]
    with progress_bar(len(trials), "comparing", unit="run") as bar:
        for trial in trials:
            rows.append(run_trial(trial, config, xrays))
            run.save_table("summary", pd.DataFrame(rows))
            tqdm.write(f"{trial.name}: {rows[-1]['labels']} labels, {rows[-1]['score']:.3f}", file=sys.stderr)
            bar.update()
    table = pd.DataFrame(rows)
    curves, differences = analyse(table, run.folder, "predictions_val.csv")
    run.save_table("curves", curves)
    run.save_table("differences", differences)
    run.finish(
        {
            "synthetic": xrays.synthetic,
            "metric": metric_of(xrays),
            "classes": list(xrays.columns.label_names),
            "arms": arms,
            "lrs": lrs,
            "notes": sorted({row["note"] for row in rows} - {""}),
        }
    )
    return run


def check_compare_config(config: CompareConfig) -> None:
    """Raise UserError for whatever can be known to be wrong before the data are read."""
    check_config(config, CompareConfig)
    check_at_least("draws", config["draws"], 1)
    for key in ("encoders", "methods", "fractions", "lrs"):
        if not config[key]:
            raise UserError(f"{key} is empty; give at least one.")
    for method in config["methods"]:
        check_choice("methods", method, METHODS)
    for fraction in config["fractions"]:
        if not 0 < fraction <= 1:
            raise UserError(f"fractions holds {fraction}; expected numbers above 0 and up to 1, such as 0.05.")


def metric_of(xrays: XRays) -> str:
    """The score that arms are compared by."""
    return "balanced_accuracy" if xrays.columns.labels.ndim == 1 else "auroc"


def chosen_lrs(config: CompareConfig, arms: dict[str, str], xrays: XRays) -> dict[str, float]:
    """The learning rate of each arm: the best on validation at the middle fraction, first draw."""
    if "finetune" not in config["methods"] or len(config["lrs"]) == 1:
        return dict.fromkeys(arms, config["lrs"][0])
    fraction = sorted(config["fractions"])[(len(config["fractions"]) - 1) // 2]
    chosen = {}
    for arm, encoder in arms.items():
        rows = [run_trial(Trial(arm, encoder, "finetune", fraction, 0, lr), config, xrays) for lr in config["lrs"]]
        chosen[arm] = max(rows, key=lambda row: row["score"])["lr"]
    return chosen


def analyse(table: pd.DataFrame, folder: Path, file: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Intervals for the runs of a comparison's summary.csv, from the predictions that each left in `file`.

    Returns the curves (arm, method, fraction, labels, mean, low, high) and, for each arm other than the first, its
    differences to the first, paired by draw and image, with the labels that the first needs for the same score.
    Intervals are for new images (by group) and new draws of labels; a single draw has none.
    """
    keys = table[["arm", "method", "fraction"]].drop_duplicates().itertuples(index=False, name=None)
    cells = {
        (arm, method, fraction): _Cell(
            table.query("arm == @arm and method == @method and fraction == @fraction"), folder, file
        )
        for arm, method, fraction in sorted(keys, key=lambda key: list(table["arm"]).index(key[0]))
    }
    curves = [{"arm": a, "method": m, "fraction": f, **cell.row()} for (a, m, f), cell in cells.items()]
    reference = table["arm"].iloc[0]
    differences = []
    for (arm, method, fraction), cell in cells.items():
        if arm == reference:
            continue
        base = cells[reference, method, fraction]
        gap = paired_difference(cell.scores, base.scores, cell.resampled, base.resampled, cell.units)
        others = [c for (a, m, _), c in cells.items() if (a, m) == (reference, method)]
        needed = labels_needed(cell.resampled, cell.scores, [(c.labels, c.scores, c.resampled) for c in others])
        found = {"difference": gap.mean, "low": gap.low, "high": gap.high, **needed}
        row = {"arm": arm, "reference": reference, "method": method, "fraction": fraction, "labels": cell.labels}
        differences.append({**row, **found})
    return pd.DataFrame(curves), pd.DataFrame(differences, columns=DIFFERENCE_COLUMNS)


class _Cell:
    """The runs of one arm, method and fraction: a score a draw, and what resampled images would give."""

    def __init__(self, rows: pd.DataFrame, folder: Path, file: str):
        rows = rows.sort_values("draw")
        tables = [pd.read_csv(folder / run / file, dtype={"file": str, "group": str}) for run in rows["run"]]
        labels, predictions = zip(*map(_labels_and_probabilities, tables), strict=True)
        score = balanced_accuracy if labels[0].ndim == 1 else _mean_auroc
        groups = tables[0]["group"].to_numpy()
        self.labels, self.units = int(rows["labels"].iloc[0]), len(np.unique(groups))
        self.scores = np.array([score(labels[0], p) for p in predictions])
        self.resampled = resampled_scores(score, predictions, labels[0], groups, REPEATS)

    def row(self) -> dict[str, float]:
        nothing = np.zeros_like(self.scores), np.zeros_like(self.resampled)
        over = paired_difference(self.scores, nothing[0], self.resampled, nothing[1], self.units)
        return {"labels": self.labels, "draws": len(self.scores), "mean": over.mean, "low": over.low, "high": over.high}


def interval_cells(table: pd.DataFrame) -> list[str]:
    """`.712 [.680, .744]` for each row's mean, low and high."""
    return [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in table[["mean", "low", "high"]].to_numpy()]


def _mean_auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return finding_scores(labels, probabilities)["auroc"]


def _labels_and_probabilities(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Of a predictions table: classes [M] or findings [M, C], and probabilities [M, C]."""
    columns = [column for column in table if str(column).startswith("p ")]
    names = [str(column)[2:] for column in columns]
    if "label" in table:
        labels = np.array([names.index(label) for label in table["label"]])
    else:
        labels = table[[f"label {name}" for name in names]].to_numpy()
    return labels, table[columns].to_numpy()
