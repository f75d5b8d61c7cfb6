"""What did all runs find? One page with every table and figure, each with the runs that it came from.

    python utils/make_report.py
    python utils/make_report.py --runs runs --output runs/report

Reads whatever lies under runs/ and writes runs/report/index.html, one file that opens without a network, and
report.pdf, the same drawn by matplotlib. Nothing is copied by hand: every number stands in a run's files. What has not
been run is named with the command that runs it; what cannot be read is listed with the reason. Seconds.
"""

from collections.abc import Sequence
from typing import Any

from utils.config import UserError, repo_path
from utils.files import write_text
from utils.report.answers import sections_of_answers
from utils.report.blocks import Block, Cell, Missing, Section, Table, Text, count
from utils.report.looks import sections_of_looks
from utils.report.page import page
from utils.report.pdf import write_pdf
from utils.report.recipes import sections_of_recipes
from utils.report.runs import BROKEN, FoundRun, Skipped, find_runs
from utils.scripts import run_script

TITLE = "Label-efficient chest X-ray learning"

ORDER = (
    *("answer", "data", "recipe", "lr", "transformations", "hyperparameters", "search", "resources", "pretraining"),
    *("efficiency", "frozen", "test", "maps", "audit"),
)
NOTHING = "Nothing of this can be shown; the last section says what was skipped, and why."

config: dict[str, Any] = {
    "runs": "runs",  # a folder of runs; everything below it is looked at
    "output": "runs/report",  # where index.html and report.pdf go
}


def main(config: dict[str, Any]) -> None:
    """Read the runs, write the page and the PDF, say what is in them."""
    root, output = repo_path(config["runs"]), repo_path(config["output"])
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name the one that holds the runs, such as runs.")
    runs, skipped = find_runs(root, output)
    sections, skipped = build(runs, skipped)
    read = len({run.name for run in runs} - {one.name for one in skipped})
    subtitle = f"{read:,} runs read, {len(skipped):,} folders skipped. Research only, not a medical device."
    text = page(TITLE, subtitle, sections).encode("utf-8", "backslashreplace").decode()  # JSON can hold half a letter
    write_text(output / "index.html", text)
    write_pdf(output / "report.pdf", TITLE, subtitle, sections)
    missing = [block for section in sections for block in section.blocks if isinstance(block, Missing)]
    for block in dict.fromkeys(missing):
        print(f"not run yet: {block.command}")
    print(f"{subtitle}\npage   {output / 'index.html'}\nPDF    {output / 'report.pdf'}")


def build(runs: Sequence[FoundRun], skipped: Sequence[Skipped]) -> tuple[list[Section], list[Skipped]]:
    """All sections, and all that is skipped: a run that cannot be shown joins what could not be read."""
    skipped = list(skipped)
    parts = {**sections_of_answers(runs), **sections_of_recipes(runs), **sections_of_looks(runs)}
    sections = []
    for anchor in ORDER:
        title, shown = parts[anchor]
        blocks: list[Block] = []
        for item in shown:
            blocks += [item] if isinstance(item, Missing) else _shown(item[0], item[1], skipped)
        sections.append(Section(anchor, title, blocks or [Text(NOTHING)]))
    environment = _shown(runs, environments, skipped)
    skipped = list({one.name: one for one in reversed(skipped)}.values())[::-1]  # the first reason of each
    return [*sections, Section("environment", "Environment", environment), _everything(runs, skipped)], skipped


def _shown(what: Any, show: Any, skipped: list[Skipped]) -> list[Block]:
    """What a section makes of a run or of several; if that fails, of those alone that it can show."""
    try:
        return show(what)
    except BROKEN as error:
        runs = [what] if isinstance(what, FoundRun) else what
        if len(runs) != 1:
            fine = [run for run in runs if _shown([run], show, skipped)]
            return show(fine) if fine else []
        skipped.append(
            Skipped(runs[0].name, f"its tables cannot be shown: {type(error).__name__}: {error}".splitlines()[0])
        )
        return []


def environments(runs: Sequence[FoundRun]) -> list[Block]:
    """Machines, versions and commits, and how many runs each made."""
    tally: dict[tuple[str, ...], int] = {}
    for run in runs:
        facts = run.environment
        versions = facts.get("versions") or {}
        known = [f"{name} {versions[name]}" for name in ("torch", "torchvision") if name in versions]
        key = (
            *(str(facts.get(name, "not said")) for name in ("commit", "device", "python", "platform")),
            ", ".join(known),
        )
        tally[key] = tally.get(key, 0) + 1
    rows: list[list[Cell]] = [[*key, count(times)] for key, times in sorted(tally.items())]
    columns = ["commit", "device", "Python", "system", "packages", "runs"]
    return [Table(columns, rows, "What the runs were made with")] if rows else [Text("No run says.")]


def _everything(runs: Sequence[FoundRun], skipped: Sequence[Skipped]) -> Section:
    names = {one.name for one in skipped}
    shown = [run for run in runs if run.name not in names]
    alike: dict[tuple[str, ...], list[str]] = {}
    for run in shown:  # those of a comparison or scan are one row
        made_by = (str(run.environment.get(key, "")) for key in ("commit", "command"))
        alike.setdefault((run.name.rpartition("/")[0], run.kind, *made_by), []).append(run.name)
    found: list[list[Cell]] = [
        [members[0] if len(members) == 1 else f"{parent}/*", count(len(members)), *facts]
        for (parent, *facts), members in alike.items()
    ]
    left_out: list[list[Cell]] = [[one.name, one.reason] for one in skipped]
    blocks: list[Block] = [
        Table(["folder", "reason"], left_out, f"{len(left_out)} skipped", folded=len(left_out) > 10)
        if left_out
        else Text("No folder was skipped."),
        Table(["run", "runs", "kind", "commit", "command"], found, f"{len(shown)} runs that were read", folded=True)
        if found
        else Text("There are no runs yet."),
    ]
    return Section("runs", "All runs, and what was skipped", blocks)


if __name__ == "__main__":
    run_script(main, config, __doc__, first="runs")
