"""What a comparison says, on validation or on the test part: a figure, a table, and what pretraining saves."""

import pandas as pd

from downstream_task.label_efficiency import interval_cells
from utils import plots
from utils.logging_utils import Run
from utils.wording import METHOD_NAMES, interval_text, metric_name, savings_sentence


def report(run: Run) -> str:
    """Draw figures/label_efficiency.png from curves.csv; the tables and sentences as text."""
    assert run.summary is not None
    curves, differences = (pd.read_csv(run.folder / f"{name}.csv") for name in ("curves", "differences"))
    metric, notes = metric_name(run.summary["metric"]), run.summary["notes"]
    part = "the test part" if run.summary["part"] == "test" else "validation, by which choices were made too"
    title = plots.marked(f"Label efficiency on {part}", run.summary["synthetic"], bool(notes))
    chance = 1 / len(run.summary["classes"]) if metric == "balanced accuracy" else 0.5
    run.save_figure("label_efficiency", plots.label_efficiency(curves, metric, title, chance))
    cells = curves.assign(cell=interval_cells(curves))
    table = cells.pivot_table("cell", ["method", "labels"], "arm", aggfunc="first", sort=False)
    lines = ["", f"{title}: {metric}, mean [95% interval]", table.to_string(), ""]
    labels = curves["labels"].tolist()
    for row in differences.to_dict("records"):
        gap = interval_text(*(100 * row[key] for key in ("difference", "low", "high")), form="+.1f")
        sentence = savings_sentence(row, row["arm"], row["reference"], min(labels), max(labels))
        lines.append(f"{METHOD_NAMES[row['method']]}, {row['labels']} labels: {gap} points. {sentence}")
    lines.append("Intervals are for new images and new draws of labels, not for a new pretraining run.")
    if 2 in curves["draws"].tolist():
        lines.append("Two draws say next to nothing about the next one: three or more give useful intervals.")
    lines += _probes_kept(run)
    left_out = [f"left out: {name}" for name in run.summary["left_out"]]
    where = ["", f"tables and figure   {run}/"]
    if run.summary["part"] != "test":
        where.append(f"next                python downstream_task/confusion_matrix.py --runs {run}")
    return "\n".join([*lines, *left_out, *notes, *where])


def _probes_kept(run: Run) -> list[str]:
    """How many fine-tunings ended as the linear probe that they began with."""
    path = run.folder / "summary.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path)
    fine, linear = (table[table["method"] == method] for method in ("finetune", "linear"))
    both = fine.merge(linear, on=["arm", "fraction", "draw"], suffixes=("", " of the probe"))
    kept = int((both["score"].to_numpy() == both["score of the probe"].to_numpy()).sum())
    return [f"{kept} of {len(fine)} fine-tunings kept the linear probe that they began with."] if kept else []
