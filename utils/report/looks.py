"""The report's sections on what networks look at: maps with lung mass, the shortcut audit."""

from collections.abc import Mapping, Sequence
from typing import Any

from utils.report.blocks import Block, Cell, Missing, Table, Text, count, estimate, row_estimate
from utils.report.runs import AUDIT, EXPLANATION, FoundRun, pictures
from utils.wording import SALIENCY_NAMES, interval_text, metric_name

QUANTITIES = {
    "lung_mass": "lung mass",
    "lung_mass_over_area": "lung mass over area (1 is chance)",
    "peak_in_lungs": "peak in lungs",
    "deletion": "deletion",
    "insertion": "insertion",
}


def explanation(run: FoundRun) -> list[Block]:
    """Quantities of each network's maps, and how they differ from the first's."""
    summary = run.summary
    rows = [
        [name, *_quantities(found), str(found.get("sanity", "not checked"))]
        for name, found in summary["checkpoints"].items()
    ]
    first = next(iter(summary["checkpoints"]))
    gaps: list[list[Cell]] = [
        [f"{name} less {first}", *_quantities(found, "+.3f")] for name, found in summary["differences"].items()
    ]
    images = f"{summary['images']} X-rays, {summary['with_lung_mask']} with a lung mask"
    method = SALIENCY_NAMES[run.config["method"]]
    caption = f"{run.label}: {method} on {images}; mean [95% interval]"
    blocks: list[Block] = [Table(["network", *QUANTITIES.values(), "sanity check"], rows, caption, [run.name])]
    if gaps:
        caption = f"{run.label}: differences on the same images; mean [95% interval]"
        blocks.append(Table(["networks", *QUANTITIES.values()], gaps, caption, [run.name]))
    alt = f"X-rays with the {method} of each network laid over them, a row a network"
    return [*blocks, *(Text(note) for note in summary.get("notes", [])), *pictures(run, panel=alt)]


def audit(run: FoundRun) -> list[Block]:
    """Scores with a part of the X-rays taken away, lung mass by class, the source probe and the verdict."""
    summary, scores = run.summary, run.table("scores")
    metric = summary["metric"]
    rows: list[list[Cell]] = [
        [row["images"], row["head"], row_estimate(row)] for row in scores[scores["score"] == metric].to_dict("records")
    ]
    what = metric_name(metric)
    caption = f"{run.label}: {what} on {summary['images']:,} test X-rays [95% interval], chance {summary['chance']:.2f}"
    blocks: list[Block] = [Text(summary["verdict"], lead=f"{run.label}:")]
    blocks.append(Table(["X-rays", "head", what], rows, caption, [run.name]))
    masses = run.table("lung_mass")
    if len(masses):
        cells: list[list[Cell]] = [
            [row["class"], SALIENCY_NAMES[row["method"]], count(row["images"]), row_estimate(row, ".2f")]
            for row in masses.to_dict("records")
        ]
        columns = ["class", "method", "images", "lung mass over area (1 is chance)"]
        blocks.append(Table(columns, cells, f"{run.label}: lung mass by class [95% interval]", [run.name]))
    source = summary.get("source")
    if source:
        told = interval_text(source["value"], source["low"], source["high"])
        alone = f", by the class alone {source['by_class']:.3f}" if "by_class" in source else ""
        said = f"A probe tells the source of an X-ray with balanced accuracy {told}, chance {source['chance']:.2f}"
        blocks.append(Text(f"{said}{alone}.", lead=f"{run.label}:"))
    alt = f"Score of {run.label} by what is left of the X-rays, and beside it what that looks like"
    return [*blocks, *pictures(run, audit=alt)]


def sections_of_looks(runs: Sequence[FoundRun]) -> dict[str, tuple[str, list[Any]]]:
    """By anchor: title and what to show, a list of (run or runs, function), or what is missing."""
    explained, audited = ([run for run in runs if run.kind == kind] for kind in (EXPLANATION, AUDIT))
    return {
        "maps": (
            "What do the networks look at?",
            [(run, explanation) for run in explained]
            or [Missing("No maps of evidence have been made.", "python interpretability/grad_cam.py")],
        ),
        "audit": (
            "Shortcut audit",
            [(run, audit) for run in audited]
            or [Missing("No network has been audited for shortcuts.", "python interpretability/shortcut_audit.py")],
        ),
    }


def _quantities(found: Mapping[str, Any], form: str = ".3f") -> list[Cell]:
    return [estimate(*found[key], form=form) if found.get(key) else "not known" for key in QUANTITIES]
