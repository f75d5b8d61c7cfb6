"""What did all runs log? TensorBoard's event files as one tidy table, with the configs joined.

    python utils/load_tb_logs.py runs --csv out.csv
    python utils/load_tb_logs.py runs/compare/covid --csv covid.csv --tags val/balanced_accuracy best/balanced_accuracy

A row a scalar: run, tag, step, value, wall_time (UTC), then a column config.<key> for each key of the runs' configs. A
file that is broken or cut off is read up to the break and named on stderr. Points that a resumed run wrote again
replace those that it had written before it was stopped. In a notebook: `read_scalars(Path("runs"))`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]  # made by protobuf
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.util.tensor_util import make_ndarray

from utils.config import UserError, repo_path
from utils.files import write_text
from utils.scripts import run_script

COLUMNS = ["run", "tag", "step", "value", "wall_time"]

config: dict[str, Any] = {
    "runs": "runs",  # a folder of runs, or a run; every folder below it is looked at
    "csv": "",  # where the table goes; "" prints what there is
    "tags": [],  # to keep; [] keeps all
}


def main(config: dict[str, Any]) -> None:
    """Read, join the configs, write the CSV or print an overview."""
    folder = repo_path(config["runs"])
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name one that holds runs, such as runs.")
    scalars, broken = read_scalars(folder)
    for reason in broken:
        print(f"warning: {reason}", file=sys.stderr)
    if config["tags"]:
        scalars = scalars.loc[scalars["tag"].isin(config["tags"])]
    if scalars.empty:
        raise UserError(f"found no scalars in {folder}; expected event files of finished or running trainings there.")
    if config["csv"]:
        write_text(repo_path(config["csv"]), with_configs(scalars, folder).to_csv(index=False, lineterminator="\n"))
    print(scalars.groupby("tag").agg(runs=("run", "nunique"), points=("value", "size")).to_string())
    print(f"{len(set(scalars['run']))} runs, {len(scalars):,} points   {config['csv'] or 'give --csv to keep them'}")


def read_scalars(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """COLUMNS of every run in or below `folder`, in order of run, tag and step; and why files were cut short.

    run is the folder of the event file, relative to `folder` ("." for itself). wall_time is UTC.
    """
    tables, broken = [], []
    for run in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        points: dict[tuple[str, int], tuple[float, float]] = {}
        for path in sorted(run.glob("events.out.tfevents.*")):  # their names begin with the time of their making
            try:
                for event in _events(path):
                    _take(event, points)
            except (errors.DataLossError, DecodeError, OSError, ValueError) as error:
                reason = str(getattr(error, "message", error)).replace(f"{path} ", "")
                broken.append(f"{path}: {reason}; what stands before it was read")
        name = run.relative_to(folder).as_posix()
        rows = [(name, tag, step, value, time) for (tag, step), (value, time) in sorted(points.items())]
        tables.append(pd.DataFrame(rows, columns=COLUMNS))
    scalars = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    scalars["wall_time"] = pd.to_datetime(scalars["wall_time"].astype(float), unit="s", utc=True)
    return scalars, broken


def with_configs(scalars: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The scalars with a column config.<key> for each key of the runs' config.json; empty where a run lacks it."""
    configs = []
    for run in scalars["run"].unique():
        try:
            config = json.loads((folder / run / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            config = {}
        flat = pd.json_normalize(config if isinstance(config, dict) else {}).add_prefix("config.")
        configs.append(flat.assign(run=run))
    return scalars.merge(pd.concat(configs, ignore_index=True), on="run", how="left") if configs else scalars


def _events(path: Path) -> Iterator[Event]:
    """The events of a file; DataLossError where it breaks off or does not fit its checksums."""
    reader = PyRecordReader_New(str(path))
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            return
        yield Event.FromString(reader.record())


def _take(event: Event, points: dict[tuple[str, int], tuple[float, float]]) -> None:
    """Add an event's scalars; one that begins a resumed session strikes out what follows its step."""
    if event.session_log.status == SessionLog.START:
        for key in [key for key in points if key[1] >= event.step]:
            del points[key]
    for value in event.summary.value:
        if value.WhichOneof("value") == "simple_value":
            points[value.tag, event.step] = value.simple_value, event.wall_time
        elif value.metadata.plugin_data.plugin_name == "scalars":
            points[value.tag, event.step] = float(make_ndarray(value.tensor)), event.wall_time


if __name__ == "__main__":
    run_script(main, config, __doc__, first="runs")
