"""What did all runs log? TensorBoard's event files as one tidy table, joined with the configs.

    python utils/load_tb_logs.py runs --csv out.csv
    python utils/load_tb_logs.py runs/compare/covid --csv covid.csv --tags val/balanced_accuracy best/balanced_accuracy

One row per scalar: run, tag, step, value, wall_time (UTC), then a column config.<key> for each key of the configs. A
broken or truncated file is read up to the break and named on stderr. Points that a resumed run wrote again replace
the earlier ones. It takes seconds. In a notebook: `read_scalars(Path("runs"))`.
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

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]  # made by protobuf
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.util.tensor_util import make_ndarray

from utils.config import Config, UserError, repo_path
from utils.files import write_text

COLUMNS = ["run", "tag", "step", "value", "wall_time"]


@dataclass(frozen=True, kw_only=True)
class LogsConfig(Config):
    """What is read and where the table is written; the dict at the top says what each key means."""

    runs: str
    csv: str
    tags: list[str]


def main(config: LogsConfig) -> None:
    """Read the events, join the configs, write the CSV and print an overview."""
    folder = repo_path(config.runs)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give one that holds runs, such as runs.")
    scalars, broken = read_scalars(folder)
    for reason in broken:
        print(f"warning: {reason}", file=sys.stderr)
    if config.tags:
        scalars = scalars.loc[scalars["tag"].isin(config.tags)]
    if scalars.empty:
        raise UserError(f"found no scalars in {folder}; expected event files of finished or running trainings there.")
    if config.csv:
        write_text(repo_path(config.csv), with_configs(scalars, folder).to_csv(index=False, lineterminator="\n"))
    print(scalars.groupby("tag").agg(runs=("run", "nunique"), points=("value", "size")).to_string())
    print(f"{len(set(scalars['run']))} runs, {len(scalars):,} points   {config.csv or 'give --csv to write the table'}")


def read_scalars(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the COLUMNS of every run in or below `folder`, ordered by run, tag and step, and what could not be read.

    run is the folder of the event file, relative to `folder` ("." for itself). wall_time is UTC.
    """
    tables, broken = [], []
    for run in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        points: dict[tuple[str, int], tuple[float, float]] = {}
        for path in sorted(run.glob("events.out.tfevents.*")):  # a name begins with the time of creation
            try:
                for event in _events(path):
                    _take(event, points)
            except (errors.DataLossError, DecodeError, OSError, ValueError) as error:
                reason = str(getattr(error, "message", error)).replace(f"{path} ", "")
                broken.append(f"{path}: {reason}; what comes before the break was read")
        name = run.relative_to(folder).as_posix()
        rows = [(name, tag, step, value, time) for (tag, step), (value, time) in sorted(points.items())]
        tables.append(pd.DataFrame(rows, columns=COLUMNS))
    scalars = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    scalars["wall_time"] = pd.to_datetime(scalars["wall_time"].astype(float), unit="s", utc=True)
    return scalars, broken


def with_configs(scalars: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the scalars with a column config.<key> for each key of the runs' config.json; NaN where a run lacks it."""
    configs = []
    for run in scalars["run"].unique():
        try:
            config = json.loads((folder / run / "config.json").read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            config = {}
        flat = pd.json_normalize(config if isinstance(config, dict) else {}).add_prefix("config.")
        configs.append(flat.assign(run=run))
    return scalars.merge(pd.concat(configs, ignore_index=True), on="run", how="left") if configs else scalars


def _events(path: Path) -> Iterator[Event]:
    """Yield the events of a file; raise DataLossError where it is truncated or does not fit its checksums."""
    reader = PyRecordReader_New(str(path))
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            return
        yield Event.FromString(reader.record())


def _take(event: Event, points: dict[tuple[str, int], tuple[float, float]]) -> None:
    """Add an event's scalars to `points`; the first event of a resumed session removes those from its step on."""
    if event.session_log.status == SessionLog.START:
        for key in [key for key in points if key[1] >= event.step]:
            del points[key]
    for value in event.summary.value:
        if value.WhichOneof("value") == "simple_value":
            points[value.tag, event.step] = value.simple_value, event.wall_time
        elif value.metadata.plugin_data.plugin_name == "scalars":
            points[value.tag, event.step] = float(make_ndarray(value.tensor)), event.wall_time


if __name__ == "__main__":
    run_script(main, LogsConfig, config)
