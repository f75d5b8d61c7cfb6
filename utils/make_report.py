"""What did all runs find? One page with the answer first, then every table and figure, each with its run.

    python utils/make_report.py
    python utils/make_report.py runs/compare runs/test --exclude "compare/old*" --output runs/report

Reads all runs under runs/ and writes runs/report/index.html, one file that opens without a network; print it from the
browser for a PDF. Every number is read from the files of a run. Missing experiments are named with the command that
runs them; folders that cannot be shown are listed with the reason. Takes seconds.
"""

from typing import Any

from utils.scripts import command, flags, run_script

config: dict[str, Any] = {
    "runs": ["runs"],  # folders of runs, which are searched at any depth
    "exclude": [],  # runs or folders of them that are left out, by name or pattern: "compare/old" "test/*"
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
from utils.report.sections import SECTIONS, build

TITLE = "Label-efficient chest X-ray learning"
FOLDER = jinja2.FileSystemLoader(Path(__file__).parent / "report")
PAGES = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=FOLDER, trim_blocks=True)


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    runs: list[str]
    exclude: list[str]
    output: str


def main(config: ReportConfig) -> None:
    """Read the runs, write the page, name what has not been run."""
    roots, output = [repo_path(folder) for folder in config.runs], repo_path(config.output)
    for root in roots:
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; name folders that hold runs, such as runs.")
    runs, skipped = find_runs(roots, config.exclude, output)
    shown = build(runs, skipped)
    read = len({run.name for run in runs} - {one.folder for one in skipped})
    subtitle = f"Runs read: {read:,}. Folders skipped: {len(skipped):,}. Research only, not a medical device."
    titles = {one.section.title for one in shown}
    missing = list(dict.fromkeys(one.script for one in SECTIONS if one.script and one.title not in titles))
    html = PAGES.get_template("report.html").render(
        title=TITLE, subtitle=subtitle, shown=shown, missing=[f"python {script}" for script in missing]
    )
    html = html.encode("utf-8", "backslashreplace").decode()  # JSON can hold half a letter
    write_text(output / "index.html", html)
    for script in missing:
        file, *flags = script.split(" ", 1)  # flags are placeholders, shown without quotes
        print(f"not run yet: {' '.join([command(file, {}), *flags])}")
    print(f"{subtitle}\npage   {output / 'index.html'}\nPDF    open the page in a browser and print it (Ctrl+P)")


if __name__ == "__main__":
    run_script(main, ReportConfig, config)
