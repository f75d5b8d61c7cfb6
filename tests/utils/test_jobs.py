"""Several processes of one sweep: started by the script's own command, waited for, stopped with it."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from utils import jobs
from utils.jobs import JobsConfig, shared_by_jobs, with_jobs


def config(**changes: Any) -> JobsConfig:
    return JobsConfig(**{"run_name": "sweep", "jobs": 3, "device": "cpu", "threads": 0, **changes})


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that writes down its flags, and waits, succeeds or fails as its first flag says."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / f'{os.getpid()}.said').write_text(' '.join(sys.argv[1:]))\n"
        "time.sleep(600 if sys.argv[1] == 'wait' else 0)\n"
        "sys.exit('it went wrong' if sys.argv[1] == 'fail' else 0)\n"
    )
    monkeypatch.setattr(sys, "argv", [str(script), "end"])
    return script


def test_the_others_get_the_same_flags_and_one_thread_each(command: Path) -> None:
    with shared_by_jobs(config()):
        assert torch.get_num_threads() == 1
    said = sorted(path.read_text() for path in command.parent.glob("*.said"))
    assert said == ["end --jobs 1 --threads 1"] * 2


def test_there_are_no_more_processes_than_trials(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobsConfig, "trials", 2)
    with shared_by_jobs(config()):
        pass
    assert len(list(command.parent.glob("*.said"))) == 1


def test_what_a_failed_process_said_is_shown(command: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.argv[1] = "fail"
    with shared_by_jobs(config(jobs=2)):
        pass
    assert "one of the 2 processes failed; it said:\nit went wrong" in capsys.readouterr().err


def test_an_exception_stops_the_others(command: Path) -> None:
    sys.argv[1], started = "wait", time.monotonic()
    with pytest.raises(KeyError), shared_by_jobs(config()):
        raise KeyError
    assert time.monotonic() < started + 60


def test_a_finished_run_starts_nobody_and_memory_bounds_their_number(
    command: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "RUNS_ROOT", tmp_path)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "summary.json").write_text("{}")
    seen: list[JobsConfig] = []
    with_jobs(seen.append)(config())
    assert seen == [config()]
    monkeypatch.setattr(jobs, "usable_cores", lambda: 8)
    monkeypatch.setattr(jobs, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(jobs, "OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(jobs, "GROUPS", {tmp_path / "v2": next(iter(jobs.GROUPS.values()))})
    jobs.MEMORY.write_text(f"MemTotal: 1 kB\nMemAvailable: {2 * jobs.JOB_BYTES // 1024 + 1} kB\n")
    with shared_by_jobs(config(jobs=0)):
        pass
    assert len(list(tmp_path.glob("*.said"))) == 1
    assert "memory has room for 2 of 8 processes" in capsys.readouterr().err
    jobs.OWN_GROUPS.write_text("4:cpuset,memory:/job_7\n0::/slurm/job_7/step\n")
    (tmp_path / "v2" / "slurm" / "job_7" / "step").mkdir(parents=True)
    for folder, limit in {"slurm/job_7/step": "max", "slurm/job_7": str(2 * jobs.JOB_BYTES - 1)}.items():
        (tmp_path / "v2" / folder / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "v2" / folder / "memory.current").write_text("100\n")
        (tmp_path / "v2" / folder / "memory.stat").write_text("anon 10\ninactive_file 90\n")
    assert jobs._free_memory() == 2 * jobs.JOB_BYTES - 11  # what the job's limit leaves, without cached files

    jobs.MEMORY.write_text("MemTotal: 1 kB\n")  # as some containers have it
    assert jobs._free_memory() > 2**20
