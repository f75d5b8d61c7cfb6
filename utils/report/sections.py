"""The sections of the report: each a question, the runs that answer it, and what is shown of their files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from utils.report.answer import answer, comparison, comparisons
from utils.report.blocks import Block, cell, figures, intervals, rows_of, table
from utils.report.runs import BROKEN, KINDS, FoundRun, Skipped, one_line
from utils.wording import OVER_DRAWS, OVER_PATIENTS, map_name, metric_name

MAX_LABELS = 30  # classes or findings that are listed for a split
MAX_SHOWN = 30  # runs of a section that are shown one by one: hundreds would make a page that no browser opens
HIDDEN = ("low", "high", "least", "temperature")  # columns that need no heading of their own
PROBES = {"linear": "linear", "kNN": "knn"}
SALIENCY = ("lung_mass", "lung_mass_over_area", "peak_in_lungs", "deletion", "insertion", "sanity")


class Csv(NamedTuple):
    """A table of a run's folder: caption, headings, the column turned into columns, the one that ranks; folded."""

    caption: str
    headings: Mapping[str, str] = {}
    wide: str = ""
    best: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, the question under it, the script that makes its runs and their kinds; then what it shows.

    Of all its runs: what `together` returns, and a table of `rows`, a heading for a key of the summary or for two.
    Of each: what it `says`, tables of the summary's `nested` values, its CSVs and figures, and what `each` returns.
    """

    title: str
    question: str
    script: str
    kinds: tuple[str, ...]
    together: Callable[[Sequence[FoundRun]], list[Block]] = lambda runs: []
    rows: Mapping[str, str | tuple[str, str]] = field(default_factory=dict)
    says: Callable[[FoundRun], str] = lambda run: ""
    nested: Mapping[str, str] = field(default_factory=dict)
    csvs: Mapping[str, Csv] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    each: Callable[[FoundRun], list[Block]] = lambda run: []
    which: Callable[[Sequence[FoundRun]], Sequence[FoundRun]] = list  # of the runs, those that are shown one by one

    def of_all(self, runs: Sequence[FoundRun]) -> list[Block]:
        """Return what is shown of all runs."""
        rows = [rows_of(f"{self.title}: each {runs[0].kind} {OVER_PATIENTS}", runs, self.rows)] if self.rows else []
        return [*self.together(runs), *rows]

    def of_one(self, run: FoundRun) -> list[Block]:
        """Return what is shown of one run."""
        said = [Block(f"{run.label}:", text=text) for text in [self.says(run), *run.summary.get("notes", [])] if text]
        nested = [_nested(run, key, heading) for key, heading in self.nested.items() if run.summary.get(key)]
        csvs = [_csv(run, name, of) for name, of in self.csvs.items() if (run.folder / f"{name}.csv").exists()]
        return [*said, *nested, *csvs, *figures(run, **self.figures), *self.each(run)]


class Shown(NamedTuple):
    """A section with its blocks, and those of further runs by their names, which are folded."""

    section: Section
    blocks: list[Block]
    more: dict[str, list[Block]]


def build(runs: Sequence[FoundRun], skipped: list[Skipped]) -> list[Shown]:
    """Return the sections that have something to show; runs that cannot be shown are added to `skipped`.

    Results on real X-rays come before those on synthetic ones, and the test part before validation.
    """
    runs = sorted(runs, key=lambda run: (run.origin == "synthetic", run.kind != "test comparison"))
    built = [_shown(section, [run for run in runs if run.kind in section.kinds], skipped) for section in SECTIONS]
    broken = {one.folder for one in skipped}
    listed = pd.DataFrame(skipped, columns=[*Skipped._fields])
    reasons = [table(f"{len(skipped):,} folders are not shown", listed, folded=True)]
    last = [_read([run for run in runs if run.name not in broken]), *(reasons if skipped else [])]
    return [*(one for one in built if one.blocks), Shown(LAST, last, {})]


def _shown(section: Section, runs: Sequence[FoundRun], skipped: list[Skipped]) -> Shown:
    """Show the runs that can be shown; each is tried by itself first."""
    fine, shown = [], {}
    for run in runs:
        try:
            section.of_all([run])
            if section.which([run]) and (blocks := section.of_one(run)):
                shown[run.name] = blocks
            fine.append(run)
        except BROKEN as error:
            if run.name not in [one.folder for one in skipped]:
                skipped.append(Skipped(run.name, f"its files cannot be shown: {one_line(error)}"))
    each = {run.label: shown[run.name] for run in section.which(fine) if run.name in shown}
    first, *others = [*each.items()] or [("", [])]
    more = dict(others[: MAX_SHOWN - 1])
    if left_out := len(others) - len(more):
        names = ", ".join([*each][MAX_SHOWN:])
        more[f"{left_out:,} more runs"] = [Block("", text=f"Their figures and tables are in their folders: {names}")]
    return Shown(section, [*(section.of_all(fine) if fine else []), *first[1]], more)


def _csv(run: FoundRun, name: str, of: Csv) -> Block:
    """Return a table of a run's CSV; columns without a value are left out."""
    frame = run.csv(name).dropna(axis=1, how="all")
    if of.wide:
        keys = [key for key in ("class", "rule") if key in frame]
        frame["cell"] = intervals(frame, "value")
        frame = frame.pivot_table("cell", keys, of.wide, aggfunc="first", sort=False).reset_index()
    if of.best in frame:
        frame = frame.sort_values(of.best, ascending=False)
    known = of.headings if of.headings and not of.wide else dict.fromkeys(frame)
    columns = {key: of.headings.get(key) or metric_name(key) for key in known if key in frame and key not in HIDDEN}
    return table(f"{run.label}: {of.caption.format(**_words(run, frame))}", frame, columns, of.folded)


def _nested(run: FoundRun, key: str, heading: str) -> Block:
    """Return a table of the summary's {row: {column: [value, low, high] or words}}."""
    frame: Any = pd.DataFrame.from_dict(run.summary[key], orient="index").dropna(axis=1, how="all")
    columns = [name for name in frame if name in SALIENCY] or [*frame]
    frame = frame[columns].rename(columns=lambda name: name.replace("_", " ")).rename_axis("").reset_index()
    caption = f"{run.label}: {heading.format(**_words(run, frame))} {OVER_PATIENTS}"
    return table(caption, frame)


def _words(run: FoundRun, frame: Any) -> dict[str, Any]:
    """Return what captions may name: keys of summary and config; metric and method in words."""
    metric = run.summary.get("metric") or next(iter(frame.get("metric", pd.Series()).dropna()), "")
    method = map_name(run.config.get("method", ""))
    return {**run.config, **run.summary, "metric": metric_name(metric), "method": method}


def most_labels(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Return, for each comparison and arm, the network that has learnt from most labels (of several: the first)."""
    best: dict[Any, FoundRun] = {}
    for run in sorted(runs, key=lambda run: -run.summary["labels"]):
        best.setdefault((run.folder.parent, run.summary["arm"]), run)
    return [run for run in runs if run in best.values()]


def own(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Return the pretrainings that are not in a scan's folder."""
    return [run for run in runs if not any((above / "summary.csv").exists() for above in [*run.folder.parents][:2])]


def pretrainings(runs: Sequence[FoundRun]) -> list[Block]:
    """Show one row per pretraining."""
    columns: dict[str, Any] = {"X-rays": "images", "epochs": "epochs", "loss": ("loss_first_epoch", "loss_last_epoch")}
    columns |= {"rank": ("rank_at_start", "rank"), "images/s": "images_per_second", "health": "verdict"}
    columns |= {f"{name} probe": (f"probe/{key}_at_start", f"probe/{key}") for name, key in PROBES.items()}
    caption = "Pretrainings (one run each): loss of the first → last epoch; rank and probes at the start → now"
    chosen = own(runs)
    return [rows_of(caption, chosen, {**columns, "probes' score": "metric", "chance": "chance"})] if chosen else []


def verdict(run: FoundRun) -> str:
    """Return what an audit found, and how well the source of an X-ray can be predicted."""
    if not (source := run.summary.get("source")):
        return run.summary["verdict"]
    alone = f", from the class alone {source['by_class']:.3f}" if "by_class" in source else ""
    accuracy = cell([source["value"], source["low"], source["high"]])
    return (
        f"{run.summary['verdict']} A probe predicts the source of an X-ray with balanced accuracy {accuracy}, chance "
        f"{source['chance']:.2f}{alone}."
    )


def suggested(run: FoundRun) -> str:
    """Return what a range test, or else a search, suggests."""
    found = run.summary
    if run.kind == "search":
        return (
            f"best {metric_name(found['metric'])} on validation {found['score']:.3f} (one run; the best of many "
            f"trials, so too high) with {cell(found['best'])}."
        )
    if run.kind == "scan":
        return ""
    ended = f"diverged at {cell(found['diverged'])}" if found["diverged"] else "never diverged"
    return (
        f"the loss falls steepest at lr {cell(found['steepest'])}, is lowest at {cell(found['lowest'])}, and {ended}."
    )


def data_sets(runs: Sequence[FoundRun]) -> list[Block]:
    """Show X-rays, groups, duplicates and parts of each split, and its labels by part."""
    splits: dict[str, FoundRun] = {}
    for run in sorted(runs, key=lambda run: not (run.folder / "split.csv").exists()):
        if "split_hash" in run.data:
            splits.setdefault(run.data["split_hash"], run)
    facts = [
        {**run.data, **run.data["images_by_part"], "layout": run.config.get("dataset", ""), "origin": run.origin}
        for run in splits.values()
    ]
    columns = {"split_hash": "split", "layout": "layout", "origin": "X-rays are", "images": "X-rays"}
    columns |= {"groups": "groups", "duplicate_pairs": "near-duplicate pairs"}
    columns |= {part: part for part in ("train", "val", "test")}
    caption = (
        "Splits. No group (a patient, or a set of near-duplicates) is in two parts, unless the source's split has it so"
    )
    listed = [_labels(run) for run in splits.values() if (run.folder / "split.csv").exists()]
    return [table(caption, pd.DataFrame(facts).reindex(columns=[*columns]), columns), *listed] if splits else []


def _labels(run: FoundRun) -> Block:
    """Count the X-rays of each class, or with each finding, in the parts of a split."""
    split: Any = pd.read_csv(run.folder / "split.csv", dtype=str, keep_default_na=False)
    split = split[split["part"] != ""]
    if run.data.get("multilabel", False):  # "Edema=1;Cardiomegaly=-1"
        split = split.assign(label=split["label"].str.split(";")).explode("label")
        split = split[split["label"].str.endswith("=1")].assign(label=lambda rows: rows["label"].str.removesuffix("=1"))
    counts = split.groupby(["label", "part"]).size().unstack(fill_value=0).reset_index()
    left_out = f", the first {MAX_LABELS} of {len(counts)}" if len(counts) > MAX_LABELS else ""
    caption = f"{run.label}: labels of split {run.data['split_hash']}{left_out}"
    return table(caption, counts.head(MAX_LABELS), folded=True)


def _read(runs: Sequence[FoundRun]) -> Block:
    """List all runs with what made them; those of one folder, kind, machine, commit and command share a row."""
    made = ["kind", "commit", "device", "packages", "command"]
    facts = []
    for run in runs:
        versions = run.environment.get("versions", {})
        torch = {
            "packages": ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision") if name in versions)
        }
        known = {key: str({**torch, **run.environment}.get(key, "not stated")) for key in made}
        facts.append({"run": run.name, "folder": run.name.rpartition("/")[0], **known})
    grouped = pd.DataFrame(facts, columns=["run", "folder", *made]).groupby(["folder", *made], sort=False)["run"]
    rows = grouped.agg(["first", "size"]).reset_index()
    rows["run"] = rows["first"].where(rows["size"] == 1, rows["folder"] + "/*")
    headings = {"run": "run", "size": "runs", **{key: key for key in made}}
    return table(f"{len(runs):,} runs were read", rows, headings, folded=True)


def _varied(parameter: str) -> Callable[[Sequence[FoundRun]], list[FoundRun]]:
    """Return a function that keeps the scans of a parameter, with the range tests beside the schedulers."""
    return lambda runs: [run for run in runs if parameter in run.config.get("varied", ["schedulers"])]


SELF, DOWN, LOOK = "selfsup_task", "downstream_task", "interpretability"
TEST = f"{DOWN}/confusion_matrix.py"
CLINIC = {
    "classes": Csv(f"each class against the rest {OVER_PATIENTS}", wide="score"),
    "operating_points": Csv("sensitivity and specificity at thresholds chosen on validation", wide="rate", folded=True),
    "conformal": Csv(
        f"conformal sets that promise to hold the right class for 90% of the X-rays {OVER_PATIENTS}",
        {"class": "class", "images": "X-rays", "coverage": "right class in the set", "mean_size": "classes in a set"}
        | {"empty": "empty sets", "validation_labels": "validation labels"},
        folded=True,
    ),
    "subgroups": Csv(f"score of subgroups {OVER_PATIENTS}", folded=True),
}
TESTED = {
    **{metric_name(name): name for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auroc_by_study")},
    **{"AUPRC": "auprc", "ECE": "ece", "ECE at the temperature": "ece_after_temperature_scaling"},
    **{"temperature, from validation": "temperature", "X-rays": "images", "validation labels": "validation_labels"},
}
RANKING = Csv(
    "{metric} on validation, mean of the seeds; the spread is the highest less the lowest. Fine-tuning starts from the "
    "linear probe",
    {"setting": "setting", "seeds": "seeds", "linear": "linear probe", "linear_spread": "spread", "note": "note"}
    | {"full": "fine-tuning", "full_spread": "its spread"},
    best="linear",
)
TRIALS = Csv(
    "{metric} on validation (one run each); the loss does not rank trials, because its scale varies",
    {"trial": "trial", "linear": "linear probe", "full": "fine-tuning", "loss": "pretraining loss"}
    | {"rank": "effective rank", "error": "failed with"},
    best="linear",
    folded=True,
)
COSTS = Csv(
    "cost of pretraining (one run each); hours are for {forecast_epochs} epochs",
    {"trial": "setting", "images_per_second": "images/s", "seconds_step": "s per batch", "peak_memory_gb": "peak GB"}
    | {"hours": "hours", "bottleneck": "bottleneck", "out_of_memory": "out of memory", "error": "failed with"},
)
SECTIONS = (
    Section(
        *("Answer", "Does pretraining help, and how many labels does it save?"),
        *(f"{DOWN}/trained_vs_no_trained_compare.py", ("comparison", "test comparison", "external test", "audit")),
        together=answer,
        each=comparison,
        which=comparisons,
    ),
    Section(
        *(
            "Frozen parts",
            "Which layers need training?",
            f"{DOWN}/train_models_with_frozen_parts.py",
            ("frozen parts",),
        ),
        csvs={
            "table": Csv(
                f"{{metric}} on validation by what is trained, mean {OVER_DRAWS}; everything else is frozen",
                {"trainable": "trained", "arm": "start", "labels": "labels", "mean": "score"},
            )
        },
        figures={"frozen_parts": "score by what is trained, one marker per initialisation"},
    ),
    Section(
        *("Test part", "How good and how well calibrated?", TEST, ("test",)),
        rows=TESTED,
        csvs=CLINIC,
        figures={
            "confusion_matrix": "confusion matrix on the test part, as counts and as shares of each label",
            "roc": "ROC curves on the test part, one line for each class or finding",
            "reliability": "how often the network is right over the probability that it states, on the test part",
        },
        which=most_labels,
    ),
    Section(
        *("Another hospital", "Does it hold elsewhere?", f"{TEST} --external DATASET:FOLDER", ("external test",)),
        rows={"network": "tested", "collection": "collection", "X-rays": "images", "test part": "internal"}
        | {"external": "outside", "drop": "drop", "no X-rays of": "missing"},
        figures={"confusion_matrix": "confusion matrix on all X-rays of the other collection"},
    ),
    Section(
        *("Shortcuts", "Do they need the lungs or a marker?", f"{LOOK}/shortcut_audit.py", ("audit",)),
        says=verdict,
        nested={"scores": "{metric} on {images} test X-rays, by what is left of them; chance is {chance:.2f}"},
        csvs={"lung_mass": Csv(f"lung mass over area by class, 1 is chance {OVER_PATIENTS}", folded=True)},
        figures={"audit": "score by what is left of the X-rays, and beside it what that looks like"},
    ),
    Section(
        *("Maps", "What do the networks look at?", f"{LOOK}/grad_cam.py", ("maps",)),
        nested={
            "checkpoints": "{method} on {images} X-rays, {with_lung_mask} with lung masks; mass over area by chance: 1",
            "differences": "differences from the first network on the same X-rays",
        },
        figures={"panel": "X-rays with each network's maps over them, one row per network"},
    ),
    Section(
        *("Boxes", "Is it where radiologists see it?", f"{LOOK}/grad_cam.py --boxes BBox_List_2017.csv", ("boxes",)),
        csvs={
            "box_scores": Csv(
                "{method} on {boxes} boxes of {patients} patients, mean [95% interval]; paired differences where one "
                "is named; evidence over area by chance: 1",
                {"finding": "finding", "quantity": "quantity", "network": "network", "minus": "minus", "value": "mean"},
                folded=True,
            )
        },
        figures={
            "boxes": "pointing game and evidence over area, by finding, a dot for each network",
            "panel": "X-rays with boxes, and each network's map of the finding over them, one row per network",
        },
    ),
    Section(
        *("All films", "Which classifier is for use?", f"{DOWN}/train_on_all_films.py", ("classifier of all films",)),
        together=lambda runs: [Block(f"{run.name}:", text=f"{run.summary['note']}.") for run in runs],
    ),
    Section(
        *("Predictions", "What do they say about other X-rays?", f"{DOWN}/predict.py", ("predictions",)),
        rows={"X-rays": "images", "close calls": "close_calls", "files left out": "rejected"}
        | {"temperature": "temperature"},
    ),
    Section(
        *(
            "Pretraining",
            "What do encoders see, and are they healthy?",
            f"{SELF}/train_barlow_twins.py",
            ("pretraining",),
        ),
        together=pretrainings,
        figures={
            "views": "X-rays and the views of each, which the network learns to embed at the same point",
            "recipe": "one X-ray through each operator of the recipe alone, several draws",
            "curves": "loss, effective rank and probes over the epochs",
            "cross_correlation": "cross-correlation of two views' embeddings, which should be the identity",
        },
        which=own,
    ),
    *(
        Section(
            *(title, question, f"{SELF}/{script}.py", ("scan", "learning rates")),
            says=suggested,
            csvs={"ranking": RANKING, "summary": TRIALS},
            figures=dict.fromkeys(drawn, "what the trials reached"),
            which=_varied(parameter),
        )
        for title, question, script, parameter, drawn in (
            ("Learning rate", "Which rate?", "scan_optimal_lr", "schedulers", ("lr_range", "schedulers")),
            ("Transformations", "Which views?", "scan_best_transformations", "recipes", ("transformations",)),
            ("Lambda and projector", "Which loss?", "scan_best_hyperparameters", "lambdas", ("hyperparameters",)),
        )
    ),
    Section(
        *("Supervised search", "Which fine-tuning?", f"{DOWN}/scan_best_supervised_hyperparameters.py", ("search",)),
        says=suggested,
        figures={"search": "score over the trials and over each parameter"},
    ),
    Section(
        *("Time and memory", "What does pretraining cost?", f"{SELF}/check_bt_resources.py", ("resources",)),
        csvs={"summary": COSTS},
        figures={"resources": "forecast hours by image size and batch size"},
    ),
    Section("Data", "Which X-rays are used, and how are they split?", "", KINDS, together=data_sets),
)
LAST = Section("All runs", "What was read, what made it, and what could not be shown?", "", KINDS)
