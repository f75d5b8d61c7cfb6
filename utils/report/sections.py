"""The sections of the report: each a question, the kinds of runs that answer it, and the command that makes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.report import pretraining, results
from utils.report.content import Block, Note, count, table
from utils.report.runs import BROKEN, KINDS, FoundRun, Skipped, one_line

Show = Callable[[Sequence[FoundRun]], list[Block]]


@dataclass(frozen=True)
class Section:
    """A heading, the question under it, the kinds of runs that `show` takes, and the command that makes such a run."""

    title: str
    question: str
    kinds: tuple[str, ...]
    show: Show
    command: str = ""

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return self.title.lower().replace(" ", "-")


def each(show: Callable[[FoundRun], list[Block]]) -> Show:
    """Return a function that shows runs one after the other."""
    return lambda runs: [block for run in runs for block in show(run)]


def scans_of(parameter: str) -> Show:
    """Return a function that shows range tests, and those scans that vary `parameter`."""
    shows = {"learning rates": pretraining.learning_rates, "scan": pretraining.scan}
    return lambda runs: [
        block
        for run in runs
        if run.kind == "learning rates" or parameter in run.config["varied"]
        for block in shows[run.kind](run)
    ]


def environments(runs: Sequence[FoundRun]) -> list[Block]:
    """Show machines, versions and commits, and how many runs each made."""
    tally: dict[tuple[str, ...], int] = {}
    for run in runs:
        versions = run.environment.get("versions", {})
        packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision") if name in versions)
        facts = (run.environment.get(name, "not stated") for name in ("commit", "device", "python", "platform"))
        tally[*map(str, facts), packages] = tally.get((*map(str, facts), packages), 0) + 1
    return []


PRETRAIN, DOWNSTREAM, LOOK = "python selfsup_task/", "python downstream_task/", "python interpretability/"
COMPARED = (("comparison", "test comparison"), f"{DOWNSTREAM}trained_vs_no_trained_compare.py")
