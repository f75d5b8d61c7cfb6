"""Two processes, started by torchrun as users do: on one machine, on two, and after one of them was killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_pretraining import TRAIN, same_result, training

from utils.config import REPO_ROOT, RUNS_ROOT

ONE_MACHINE = ("--standalone", "--nproc-per-node", "2")
RESTARTS = ("--max-restarts", "3")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def launched(name: str, images: Path, *flags: str, **variables: str) -> subprocess.Popen[str]:
    """Start torchrun with these flags on the small pretraining."""
    script = [str(REPO_ROOT / TRAIN), *training(name, images), "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "--", *script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for its end; return what it printed."""
    output, _ = process.communicate(timeout=300)
    return output


def kill_last_after_first_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert workers and not (folder / "summary.json").exists()
    os.kill(int(workers[-1]), signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two processes."""
    name = f"slow/{tmp_path_factory.getbasetemp().name}-two"
    process = launched(name, images, *ONE_MACHINE)
    output = ended(process)
    assert process.returncode == 0, output
    return RUNS_ROOT / name


def test_a_killed_process_ends_the_others_and_the_same_command_gives_the_same_bits(
    undisturbed: Path, images: Path, tmp_path: Path
) -> None:
    name = f"slow/{tmp_path.parent.name}-{tmp_path.name}"
    process = launched(name, images, *ONE_MACHINE)
    kill_last_after_first_checkpoint(process, RUNS_ROOT / name)
    start = time.monotonic()
    output = ended(process)
    assert process.returncode == 1
    assert time.monotonic() - start < 60
    assert "another process of this training has ended" in output or "stopped; the same command resumes" in output
    process = launched(name, images, *ONE_MACHINE)
    output = ended(process)
    assert process.returncode == 0, output
    assert "resuming" in output
    assert same_result(undisturbed, RUNS_ROOT / name)


@pytest.mark.parametrize("flags", [ONE_MACHINE, ("--nproc-per-node", "2")], ids=["standalone", "static"])
@pytest.mark.parametrize("attempt", range(3))  # without a store for each attempt, two of three wait for ever
def test_restarts_give_the_same_bits(
    undisturbed: Path, images: Path, tmp_path: Path, flags: tuple[str, ...], attempt: int
) -> None:
    name = f"slow/{tmp_path.parent.name}-{tmp_path.name}"
    process = launched(name, images, *RESTARTS, *flags)
    kill_last_after_first_checkpoint(process, RUNS_ROOT / name)
    output = ended(process)
    assert process.returncode == 0, output
    assert "resuming" in output
    assert same_result(undisturbed, RUNS_ROOT / name)


def two_machines(name: str, images: Path, *flags: str, **variables: str) -> list[subprocess.Popen[str]]:
    """Start torchrun on two addresses, with a process on each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    place = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, *flags]
    return [launched(name, images, *place, "--local-addr", f"127.0.0.{host}", **variables) for host in (1, 2)]


def test_two_machines_end_with_the_bits_of_one(undisturbed: Path, images: Path, tmp_path: Path) -> None:
    name = f"slow/{tmp_path.parent.name}-{tmp_path.name}"
    machines = two_machines(name, images)
    outputs = [ended(process) for process in machines]
    assert [process.returncode for process in machines] == [0, 0], outputs
    assert same_result(undisturbed, RUNS_ROOT / name)


def test_two_machines_restart_with_a_store_for_each_attempt_and_are_refused_without(
    undisturbed: Path, images: Path, tmp_path: Path
) -> None:
    name = f"slow/{tmp_path.parent.name}-{tmp_path.name}"
    for process in two_machines(name, images, "--max-restarts", "1"):
        assert "need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in ended(process)
        assert process.returncode == 1
    machines = two_machines(name, images, *RESTARTS, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    kill_last_after_first_checkpoint(machines[1], RUNS_ROOT / name)
    outputs = [ended(process) for process in machines]
    assert [process.returncode for process in machines] == [0, 0], outputs
    assert same_result(undisturbed, RUNS_ROOT / name)
