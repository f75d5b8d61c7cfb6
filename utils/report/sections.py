"""The sections of the report: each a question, the kinds of runs that answer it, and the script that makes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from utils.report import pretraining, results
from utils.report.content import Block, Note, count, table
from utils.report.runs import BROKEN, KINDS, FoundRun, Skipped, one_line

Show = Callable[[Sequence[FoundRun]], list[Block]]
HIDDEN = "None of these runs can be shown; the last section lists them with the reason."


@dataclass(frozen=True)
class Section:
    """A heading, the question under it, the script that makes its runs, their kinds, and what to show of them."""

    title: str
    question: str
    script: str
    kinds: tuple[str, ...]
    show: Show


def build(runs: Sequence[FoundRun], skipped: list[Skipped]) -> list[tuple[Section, list[Block]]]:
    """Return each section with what it shows; runs that cannot be shown are added to `skipped`.

    Results on real X-rays come before those on synthetic ones, and the test part before validation.
    """
    runs = sorted(runs, key=lambda run: (run.synthetic is not False, run.kind != "test comparison"))
    built = [(section, _blocks(section, runs, skipped)) for section in SECTIONS]
    names = {one.name for one in skipped}
    everything = [
        *_left_out([one for one in skipped if not one.foreign], "Skipped folders"),
        *_left_out([one for one in skipped if one.foreign], "Older or foreign folders"),
        *_read([run for run in runs if run.name not in names]),
    ]
    return [*built, (Section("All runs", "What was read, and what could not be shown?", "", KINDS, _read), everything)]


def _blocks(section: Section, runs: Sequence[FoundRun], skipped: list[Skipped]) -> list[Block]:
    """Return what a section shows of the runs that it can show; each is tried by itself first."""
    fine: list[FoundRun] = []
    chosen = [run for run in runs if run.kind in section.kinds]
    for run in chosen:
        try:
            section.show([run])
            fine.append(run)
        except BROKEN as error:
            if run.name not in [one.name for one in skipped]:
                skipped.append(Skipped(run.name, f"its files cannot be shown: {one_line(error)}"))
    blocks = section.show(fine) if fine else []
    return blocks or ([Note(HIDDEN)] if len(fine) < len(chosen) else [])


def _each(show: Callable[[FoundRun], list[Block]]) -> Show:
    return lambda runs: [block for run in runs for block in show(run)]


def _scans(parameter: str) -> Show:
    """Return a function that shows the scans of a parameter, and range tests."""

    def show(run: FoundRun) -> list[Block]:
        if run.kind == "learning rates":
            return pretraining.learning_rates(run)
        return pretraining.scan(run) if parameter in run.config["varied"] else []

    return _each(show)


def _environments(runs: Sequence[FoundRun]) -> list[Block]:
    """Show machines, versions and commits, and how many runs each made."""
    columns = {"commit": "commit", "device": "device", "Python": "python", "system": "platform", "packages": "packages"}
    rows = []
    for run in runs:
        versions = run.environment.get("versions", {})
        packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision") if name in versions)
        facts = {"packages": packages, **run.environment}
        rows.append({name: str(facts.get(name, "not stated")) for name in columns.values()})
    tally = pd.DataFrame(rows).groupby(list(columns.values()), as_index=False).size()
    return [table("What the runs were made with", tally, {**columns, "runs": count("size")})]


def _read(runs: Sequence[FoundRun]) -> list[Block]:
    """List all runs; those of one folder, kind, commit and command share a row."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        made_by = (str(run.environment.get(key, "")) for key in ("commit", "command"))
        grouped.setdefault((run.name.rpartition("/")[0], run.kind, *made_by), []).append(run.name)
    rows = [
        (names[0] if len(names) == 1 else f"{folder}/*", len(names), *facts)
        for (folder, *facts), names in grouped.items()
    ]
    tally = pd.DataFrame(rows, columns=["run", "n", "kind", "commit", "command"])
    columns = {"run": "run", "runs": count("n"), **{name: name for name in ("kind", "commit", "command")}}
    listed = table(f"{len(runs)} runs that were read", tally, columns, folded=True)
    return [listed if runs else Note("There are no runs yet.")]


def _left_out(skipped: Sequence[Skipped], what: str) -> list[Block]:
    columns = {"folder": "name", "reason": "reason"}
    listed = table(f"{what}: {len(skipped)}", map(vars, skipped), columns, folded=len(skipped) > 10)
    return [listed if skipped else Note(f"No {what.lower()}.")]


COMPARE, COMPARED = "downstream_task/trained_vs_no_trained_compare.py", ("comparison", "test comparison")
TRAIN, TRAINED = "selfsup_task/train_barlow_twins.py", ("pretraining", "scan")
LR, RECIPES = "selfsup_task/scan_optimal_lr.py", "selfsup_task/scan_best_transformations.py"
LAMBDAS, COST = "selfsup_task/scan_best_hyperparameters.py", "selfsup_task/check_bt_resources.py"
SEARCH = "downstream_task/scan_best_supervised_hyperparameters.py"
FREEZE, TEST = "downstream_task/train_models_with_frozen_parts.py", "downstream_task/confusion_matrix.py"
OTHER, PREDICT = f"{TEST} --external DATASET:FOLDER", "downstream_task/predict.py"
FINAL = "downstream_task/train_on_all_films.py"
MAPS, AUDIT = "interpretability/grad_cam.py", "interpretability/shortcut_audit.py"
SECTIONS = (
    Section("Answer", "Does pretraining help?", COMPARE, COMPARED, results.answers),
    Section("Data", "Which X-rays are used, and how are they split?", TRAIN, KINDS, pretraining.data_sets),
    Section("Recipe", "What do the augmentations do?", TRAIN, TRAINED, pretraining.recipes),
    Section("Learning rate", "Which rate and schedule?", LR, ("learning rates", "scan"), _scans("schedulers")),
    Section("Transformations", "Which augmentations are the best views?", RECIPES, ("scan",), _scans("recipes")),
    Section("Lambda and projector", "Which lambda and which projector?", LAMBDAS, ("scan",), _scans("lambdas")),
    Section("Supervised search", "Which fine-tuning?", SEARCH, ("search",), _each(pretraining.search)),
    Section("Time and memory", "What does pretraining cost?", COST, ("resources",), _each(pretraining.resources)),
    Section("Pretraining", "Are the encoders healthy?", TRAIN, TRAINED, pretraining.pretrainings),
    Section("Label efficiency", "How many labels are saved?", COMPARE, COMPARED, _each(results.comparison)),
    Section("Frozen parts", "Which layers need training?", FREEZE, ("frozen parts",), _each(results.frozen_parts)),
    Section("Test part", "How good and how well calibrated?", TEST, ("test",), results.tested),
    Section("Another hospital", "Does it hold on X-rays from elsewhere?", OTHER, ("external test",), results.external),
    Section("All films", "Which classifier is for use?", FINAL, ("classifier of all films",), results.all_films),
    Section("Predictions", "What do they say about other X-rays?", PREDICT, ("predictions",), results.predictions),
    Section("Maps", "What do the networks look at?", MAPS, ("maps",), _each(results.maps)),
    Section("Shortcuts", "Do they need the lungs or a marker?", AUDIT, ("audit",), _each(results.audit)),
    Section("Environment", "What were the runs made with?", "", KINDS, _environments),
)
