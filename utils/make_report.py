"""What did all runs find? One page with every table and figure, each with the runs it comes from.

    python utils/make_report.py
    python utils/make_report.py --runs runs --output runs/report

Reads all runs under runs/ and writes runs/report/index.html, one file that opens without a network; print it from the
browser for a PDF. Every number is read from the files of a run. Missing experiments are named with the command that
runs them; folders that cannot be shown are listed with the reason. Takes seconds.
"""

from typing import Any

from utils.scripts import command, flags, run_script

config: dict[str, Any] = {
    "runs": "runs",  # a folder of runs, which is searched at any depth
    "output": "runs/report",  # where index.html is written
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__, first="runs")  # before the slow imports

from dataclasses import dataclass
from pathlib import Path

import jinja2

from utils.config import Config, UserError, repo_path
from utils.files import write_text
from utils.report.runs import find_runs
from utils.report.sections import build

TITLE = "Label-efficient chest X-ray learning"
FOLDER = jinja2.FileSystemLoader(Path(__file__).parent / "report")
PAGES = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=FOLDER, trim_blocks=True)


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """The config above."""

    runs: str
    output: str


def main(config: ReportConfig) -> None:
    """Read the runs, write the page, name what has not been run."""
    root, output = repo_path(config.runs), repo_path(config.output)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name the one that holds the runs, such as runs.")
    runs, skipped = find_runs(root, output)
    sections = build(runs, skipped)
    shown = {run.name for run in runs} - {one.name for one in skipped}
    subtitle = f"Runs read: {len(shown):,}. Folders skipped: {len(skipped):,}. Research only, not a medical device."
    html = PAGES.get_template("report.html").render(title=TITLE, subtitle=subtitle, sections=sections)
    html = html.encode("utf-8", "backslashreplace").decode()  # JSON can hold half a letter
    write_text(output / "index.html", html)
    for script in dict.fromkeys(section.script for section, blocks in sections if section.script and not blocks):
        file, *flags = script.split(" ", 1)  # flags are placeholders, shown without quotes
        print(f"not run yet: {' '.join([command(file, {}), *flags])}")
    print(f"{subtitle}\npage   {output / 'index.html'}\nPDF    open the page in a browser and print it (Ctrl+P)")


if __name__ == "__main__":
    run_script(main, ReportConfig, config)
