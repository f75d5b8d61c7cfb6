"""Event files as a table: what a run logged, to the point, however the files ended."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.load_tb_logs import COLUMNS, read_scalars, with_configs
from utils.logging_utils import Run


def logged(root: Path, name: str, steps: int = 5, **config: object) -> Run:
    run = Run(name, {"lr": 0.1, **config}, "pretraining", root)
    run.start()
    for step in range(1, steps + 1):
        run.log(step, {"train/loss": 1.0 / step, "lr": 0.1})
    run.add_row({"epoch": 1, "step": steps})
    run.finish({"loss": 1.0 / steps})
    return run


def events(run: Run) -> Path:
    return next(run.folder.glob("events.out.tfevents.*"))


def test_the_table_is_what_tensorboard_shows(tmp_path: Path) -> None:
    runs = [logged(tmp_path, "a/first"), logged(tmp_path, 'b/with a "name" & <tags>', steps=3)]
    table, broken = read_scalars(tmp_path)
    assert broken == []
    assert list(table.columns) == COLUMNS
    for run in runs:
        shown = EventAccumulator(str(run.folder)).Reload()
        for tag in ("train/loss", "lr"):
            rows: Any = table[(table["run"] == run.name) & (table["tag"] == tag)]
            assert rows[["step", "value"]].to_numpy().tolist() == [[e.step, e.value] for e in shown.Scalars(tag)]
            seconds = (rows["wall_time"] - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
            assert seconds.tolist() == pytest.approx([e.wall_time for e in shown.Scalars(tag)], abs=1e-3)


def test_configs_are_joined_nested_keys_and_missing_ones_too(tmp_path: Path) -> None:
    logged(tmp_path, "a", finetune={"lr": 0.5})
    logged(tmp_path, "b", batch_size=64)
    (logged(tmp_path, "c").folder / "config.json").write_text("{broken")
    table = with_configs(read_scalars(tmp_path)[0], tmp_path).groupby("run").first()
    assert table.loc["a", "config.finetune.lr"] == 0.5
    assert table.loc["b", "config.batch_size"] == 64
    assert pd.isna(table.loc["a", "config.batch_size"])
    assert pd.isna(table.loc["c", "config.lr"])


@pytest.mark.parametrize("content", ["cut", "garbage"])
def test_a_partial_file_is_read_up_to_its_end_and_named(tmp_path: Path, content: str) -> None:
    run, whole = logged(tmp_path, "a"), logged(tmp_path, "b")
    path, written = events(run), events(run).read_bytes()
    path.write_bytes(written[: len(written) // 2 + 5] if content == "cut" else b"not an event file")
    table, partial = read_scalars(tmp_path)
    assert [str(path) in reason for reason in partial] == [True]
    kept = table[(table["run"] == "a") & (table["tag"] == "train/loss")]["value"].tolist()
    assert kept == [pytest.approx(1.0 / step) for step in range(1, len(kept) + 1)]
    assert (0 < len(kept) < 5) == (content == "cut")
    assert len(table[table["run"] == whole.name]) == 10


def test_no_point_is_sampled_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(event_accumulator.DEFAULT_SIZE_GUIDANCE, "scalars", 2)
    logged(tmp_path, "a")
    assert len(read_scalars(tmp_path)[0]) == 10


def test_the_script_writes_a_csv_and_refuses_what_is_not_there(tmp_path: Path, script: Any) -> None:
    logged(tmp_path / "runs", "a")
    out = tmp_path / "out.csv"
    ended = script("utils/load_tb_logs.py", str(tmp_path / "runs"), "--csv", str(out), "--tags", "train/loss")
    assert ended.returncode == 0, ended.stderr
    assert set(pd.read_csv(out)["tag"]) == {"train/loss"}
    assert "1 runs, 5 points" in ended.stdout
    missing = script("utils/load_tb_logs.py", str(tmp_path / "none"))
    assert missing.returncode == 1
    assert "there is no folder" in missing.stderr
    (tmp_path / "empty").mkdir()
    assert "found no scalars" in script("utils/load_tb_logs.py", str(tmp_path / "empty")).stderr
