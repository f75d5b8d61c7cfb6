"""What did all runs log? TensorBoard's event files as one tidy table, joined with the configs.

    python utils/load_tb_logs.py runs --csv out.csv
    python utils/load_tb_logs.py runs/compare/covid --csv covid.csv --tags val/balanced_accuracy best/balanced_accuracy

One row per scalar: run, tag, step, value, wall_time (UTC), then a column config.<key> for each key of the configs. A
file that ends in the middle of a record is read up to there and named on stderr. Points that a resumed run wrote again
replace the earlier ones. It takes seconds. In a notebook: `read_scalars(Path("runs"))`.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "runs": "runs",  # a folder with runs in it or below it
    "csv": "",  # where the table is written; "" only prints an overview
    "tags": [],  # to keep; [] keeps all
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__, first="runs")  # before the slow imports

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.config import Config, UserError, flat, repo_path
from utils.files import read_json, write_text
from utils.messages import say

COLUMNS = ["run", "tag", "step", "value", "wall_time"]
EVENTS = "events.out.tfevents.*"
KEPT = {"scalars": 0, "images": 1}  # how many TensorBoard's reader keeps of a tag; 0 is all
FRAME = 12, 4  # bytes before and after the data of a record, the length among them


@dataclass(frozen=True, kw_only=True)
class LogsConfig(Config):
    runs: str
    csv: str
    tags: list[str]


def main(config: LogsConfig) -> None:
    """Read the events, join the configs, write the CSV and print an overview."""
    folder = repo_path(config.runs)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give one that holds runs, such as runs.")
    scalars, partial = read_scalars(folder)
    for reason in partial:
        say(f"warning: {reason}")
    if config.tags:
        scalars = scalars.loc[scalars["tag"].isin(config.tags)]
    if scalars.empty:
        raise UserError(f"found no scalars in {folder}; expected event files of finished or running trainings there.")
    if config.csv:
        write_text(repo_path(config.csv), with_configs(scalars, folder).to_csv(index=False, lineterminator="\n"))
    print(scalars.groupby("tag").agg(runs=("run", "nunique"), points=("value", "size")).to_string())
    print(f"{len(set(scalars['run']))} runs, {len(scalars):,} points   {config.csv or 'give --csv to write the table'}")


def read_scalars(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the COLUMNS of every run in or below `folder`, ordered by run, tag and step, and which files are partial.

    run is the folder of the event files, relative to `folder` ("." for itself). wall_time is UTC.
    """
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of each run that was resumed
    rows, partial = [], []
    for run in sorted({path.parent for path in folder.rglob(EVENTS)}):
        events = EventAccumulator(str(run), KEPT).Reload()
        name = run.relative_to(folder).as_posix()
        for tag in sorted(events.Tags()["scalars"]):
            rows += [(name, tag, event.step, event.value, event.wall_time) for event in events.Scalars(tag)]
        partial += [
            f"{path} ends in the middle of a record; what comes before is read"
            for path in sorted(run.glob(EVENTS))
            if not _is_whole(path)
        ]
    scalars = pd.DataFrame(rows, columns=COLUMNS)
    scalars["wall_time"] = pd.to_datetime(scalars["wall_time"].astype(float), unit="s", utc=True)
    return scalars, partial


def with_configs(scalars: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the scalars with a column config.<key> for each key of the runs' config.json; NaN where a run lacks it."""
    configs = {}
    for run in scalars["run"].unique():
        with suppress(UserError):  # a damaged one
            configs[run] = flat(read_json(folder / run / "config.json") or {})
    table = pd.DataFrame.from_dict(configs, orient="index").add_prefix("config.").rename_axis("run")
    return scalars.merge(table, on="run", how="left")


def _is_whole(path: Path) -> bool:
    """Return whether a file ends with a record: 8 bytes of length, 4 of checksum, the data, 4 of checksum."""
    before, after = FRAME
    place, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            place += before + int.from_bytes(file.read(8), "little") + after
    return place == size


if __name__ == "__main__":
    run_script(main, LogsConfig, config)
