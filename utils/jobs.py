"""Several processes for one sweep, which share its trials by locks: one for each GPU, or for each processor core."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, TypeVar

import torch

from utils.config import RUNS_ROOT, between
from utils.files import read_json
from utils.hardware import MachineConfig, choose_device, usable_cores
from utils.messages import say

MAX_JOBS = 256
JOB_BYTES = 3 * 2**30  # that a process on a CPU may take, most of it for activations and their gradients
MEMORY = Path("/proc/meminfo")  # on Linux
GROUPS = {  # there too: the limits that containers and clusters set, in bytes, and what is used; cgroups 2 and 1
    Path("/sys/fs/cgroup"): ("memory.max", "memory.current", "inactive_file"),
    Path("/sys/fs/cgroup/memory"): ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
OWN_GROUPS = Path("/proc/self/cgroup")
SHOWN = 2000  # characters of what a process that failed has said


@dataclass(frozen=True, kw_only=True)
class JobsConfig(MachineConfig):
    """The run of a sweep, and the number of processes that share it; 0 is one for each GPU or else for each core."""

    run_name: str
    jobs: Annotated[int, between(0, MAX_JOBS)]

    @property
    def trials(self) -> int:
        """Return how many trials there are at most: further processes would find none."""
        return MAX_JOBS


AnyJobs = TypeVar("AnyJobs", bound=JobsConfig)


def with_jobs(main: Callable[[AnyJobs], object]) -> Callable[[AnyJobs], None]:
    """Return `main` of a sweep, run by several processes unless its run is finished and no arm was left out."""

    def shared(config: AnyJobs) -> None:
        summary = read_json(RUNS_ROOT / config.run_name / "summary.json")
        finished = summary is not None and not summary.get("left_out")
        with nullcontext() if finished else shared_by_jobs(config):
            main(config)

    return shared


@contextmanager
def shared_by_jobs(config: JobsConfig) -> Iterator[None]:
    """Start the other processes of a sweep, by this script's own command.

    On a CPU each, this one too, has one thread unless `threads`, or a single job, says otherwise: threads of busy
    processes wait for each other, and how many fit must not decide by how many threads a trial is resumed. When the
    block ends, waits for the others, or stops them if it ends by an exception, and shows what one that failed has said.
    """
    device, threads = choose_device(config.device), config.threads
    jobs = min(config.jobs or _number_of_jobs(device, threads), config.trials)
    if config.jobs != 1 and device.type == "cpu":
        threads = threads or 1
        torch.set_num_threads(threads)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    with ExitStack() as stack:
        others = []
        for number in range(1, jobs):
            said = stack.enter_context(tempfile.TemporaryFile())
            others.append((_started(threads, number % gpus if gpus else None, said, stack), said))
        if others:
            where = f"on {gpus} GPU(s)" if gpus else f"of {threads} CPU thread(s) each"
            say(f"{jobs} processes {where} share the trials")
        yield
        for process, said in others:
            if process.wait():
                said.seek(0)
                text = said.read().decode(errors="replace")[-SHOWN:]
                say(f"warning: one of the {jobs} processes failed; it said:\n{text}")


def _number_of_jobs(device: torch.device, threads: int) -> int:
    """Return one for each GPU, or for so many threads of the cores as memory has room for."""
    if device.type != "cpu":
        return max(1, torch.cuda.device_count())
    cores = usable_cores() // max(1, threads)
    room = _free_memory() // JOB_BYTES
    if room < cores:
        say(
            f"memory has room for {max(1, room)} of {cores} processes ({JOB_BYTES / 2**30:.0f} GiB each); --jobs sets "
            "their number"
        )
    return max(1, min(cores, room, MAX_JOBS))


def _free_memory() -> int:
    """Return the bytes of memory that are available, or a guess of half of what there is."""
    if MEMORY.exists() and (found := re.search(r"^MemAvailable: *(\d+) kB", MEMORY.read_text(), re.MULTILINE)):
        return min([int(found[1]) * 1024, *_left_by_limits()])
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return JOB_BYTES  # Windows: one process, unless jobs says more


def _left_by_limits() -> Iterator[int]:
    """Yield the bytes that each limit leaves on this process's control group and on those above it."""
    groups = OWN_GROUPS.read_text() if OWN_GROUPS.exists() else ""
    own = re.findall(r"^\d+:(?:|.*\bmemory\b.*):/(.*)$", groups, re.MULTILINE)
    for root, (limit, used, cached) in GROUPS.items():
        mine = [root / path for path in ["", *own]]  # in a container `own` may be the host's, and "" its own
        for folder in {folder for group in mine for folder in (group, *group.parents)}:
            try:
                most, now = int((folder / limit).read_text()), int((folder / used).read_text())
                files = re.search(rf"^{cached} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            except (OSError, ValueError):  # no such group, or no limit: "max"
                continue
            yield most - now + (int(files[1]) if files else 0)  # what only caches files is given up when needed


def _started(threads: int, gpu: int | None, said: IO[bytes], stack: ExitStack) -> "subprocess.Popen[bytes]":
    """Start this script's command once more, until `stack` closes; what it prints goes to the file `said`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": visible.split(",")[gpu] if visible else str(gpu)}
    command = [sys.executable, *sys.argv, "--jobs", "1", "--threads", str(threads)]
    process = stack.enter_context(
        subprocess.Popen(command, env={**os.environ, **own}, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    )  # which waits for it at the end ...
    stack.callback(process.terminate)  # ... after it was asked to stop, if it has not ended by itself
    return process
