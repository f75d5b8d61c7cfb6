"""The classifier for use: the main way of a comparison, trained again on all labelled films, test part included.

    python downstream_task/train_on_all_films.py
    python downstream_task/train_on_all_films.py --comparison runs/compare/covid --arm pretrained
    python downstream_task/predict.py --classifier runs/final/compare/covid --images new_films/

It takes the arm's main way at the most labels, the start of its first draw, and as many epochs. No film is left to
choose by or to test on. So the temperature is the one that fitted the comparison's first draw on validation, and the
scores are the comparison's, whose classifiers saw fewer films and no test film; run confusion_matrix.py first, so that
these are scores on the test part. runs/<run_name>/ is a fine-tuning run for predict.py and for grad_cam.py --images;
scripts that read the test part refuse it. It takes about as long as one run of the comparison.
"""

from typing import Any

from utils.scripts import command, flags, run_script

config: dict[str, Any] = {
    "comparison": "runs/compare/phantom",  # a finished comparison under runs/
    "data_root": "",  # where the films are now, if they were moved since
    "arm": "",  # name of one of its arms; "" is the best on validation at the most labels
    "run_name": "",  # runs/<run_name>/; "" is final/, the comparison's name and the arm that was named
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.xrays import XRays, listed_facts, open_xrays
from downstream_task.finetuning import finetune
from downstream_task.finished_runs import Finished, find_finished
from downstream_task.predictions import read_predictions, run_name
from downstream_task.targets import read_targets
from self_sup_classes.initialisation import weights_hashes
from utils.config import RUNS_ROOT, UserError, check_choice, part_of, repo_path
from utils.hardware import MachineConfig, prepare
from utils.logging_utils import Run
from utils.wording import interval_text, metric_name, way_name


@dataclass(frozen=True, kw_only=True)
class FinalConfig(MachineConfig):
    """The config above, checked."""

    comparison: str
    data_root: str
    arm: str
    run_name: str


@dataclass(frozen=True)
class AllFilms(XRays):
    """All films as the train part; `watched` [n] of them are the validation part too, by which nothing is chosen."""

    watched: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def indices(self, part: str) -> np.ndarray:
        """Return the positions [n] of a part."""
        return self.watched if part == "val" else super().indices(part)


def all_films(xrays: XRays) -> AllFilms:
    """Return X-rays that are all in the train part; those of the validation part are watched."""
    values = {one.name: getattr(xrays, one.name) for one in fields(xrays)}
    return AllFilms(**{**values, "places": np.full(len(xrays), "train"), "watched": xrays.indices("val")})


def main(config: FinalConfig) -> None:
    """Train on all films as the comparison did; print whose scores belong to it."""
    folder = repo_path(config.comparison)
    rows = headline_rows(folder, config.arm)
    [first] = find_finished(str(folder / rows["trial"].iloc[0]))
    trained = replace(
        first.config,
        run_name=config.run_name or f"final/{run_name(folder)}{config.arm and '_'}{config.arm}",
        data_root=config.data_root or first.config.data_root,
        **{"device": config.device, "threads": config.threads},
        **{"num_labels": 0, "label_draw": 0, "allow_seen": True, "keep_weights": True},
        keep_split="" if first.config.ids == "none" else str(first.folder / "split.csv"),
    )
    run = Run(
        trained.run_name,
        trained,
        "classifier of all films",
        look=lambda: {"data": listed_facts(trained, trained.also), "weights": weights_hashes([trained.encoder])},
    )
    if "comparison" not in (run.summary or {}):
        device = prepare(config.device, config.threads)
        xrays = open_xrays(trained, device, trained.also)
        if list(read_targets(xrays, trained).names) != (names := first.summary["classes"]):
            raise UserError(
                f"{xrays.columns.root} no longer has the classes or findings {', '.join(names)}; compare again."
            )
        finetune(trained, all_films(xrays), run)
        run = Run(trained.run_name, trained, run.kind)
        finish(run, first, folder, rows)
    assert run.summary is not None
    print("\n".join(run.summary["report"]))
    films = {"classifier": str(run), "images": ["FOLDER"], **part_of(config, MachineConfig)}
    print(f"\nnext   {command('downstream_task/predict.py', films)}")


def headline_rows(folder: Path, arm: str) -> pd.DataFrame:
    """Return the runs of the arm's main way at the most labels, by draw; UserError if the comparison has none."""
    path = folder / "summary.csv"
    finished = path.exists() and (folder / "summary.json").exists()
    table = pd.read_csv(path, dtype={"arm": str}) if finished else pd.DataFrame()
    if "headline" not in table or "score" not in table:
        raise UserError(f"{folder} is no finished comparison; trained_vs_no_trained_compare.py makes one.")
    rows = table.loc[table["headline"] & (table["labels"] == table["labels"].max()) & table["score"].notna()]
    means = rows.groupby("arm", sort=False)["score"].mean()
    arm = arm or str(means.idxmax())
    check_choice("arm", arm, [str(name) for name in means.index])
    return rows.loc[rows["arm"] == arm].sort_values("draw")


def finish(run: Run, first: Finished, folder: Path, rows: pd.DataFrame) -> None:
    """Put the comparison's validation predictions and scores in the place of those on films that were trained on."""
    name, row, found = run_name(folder), rows.iloc[0], dict(run.summary or {})
    before = read_predictions(first.folder / "predictions.csv")
    run.save_table("predictions", before.loc[before["part"] == "val"])
    tested = RUNS_ROOT / "test" / name / "all" / "curves.csv"
    curves = pd.read_csv(tested if tested.exists() else folder / "curves.csv", dtype={"arm": str})
    curve = curves.query("headline and arm == @row.arm and labels == @row.labels").iloc[0]
    part = "the test part" if tested.exists() else "validation (confusion_matrix.py reads the test part)"
    score = f"{metric_name(row['metric'])} {interval_text(curve['mean'], curve['low'], curve['high'])} on {part}"
    note = (
        f"{score} is that of {row['arm']} in the comparison {name}, whose classifiers learnt from {row['labels']:,} "
        "labels and saw no film that they were scored on. This one has seen all films, so nothing here can score it"
    )
    way = f"fine-tuned for {found['steps']:,} steps" if "steps" in found else way_name(row["way"])
    run.finish(
        {
            **found,
            "comparison": name,
            "part": "test" if tested.exists() else "validation",
            **{"score": curve["mean"], "low": curve["low"], "high": curve["high"]},
            "note": note,
            "report": [
                f"\n{run}: {row['arm']}, {way}, on all {found['labels']:,} labelled films, test part included",
                f"{note}.",
            ],
        }
    )


if __name__ == "__main__":
    run_script(main, FinalConfig, config)
