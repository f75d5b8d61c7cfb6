"""One process or several: ranks, batches gathered with gradients (torchrun); locks between those that share a folder.

The operating system releases the lock of a process that ends, however it ends.
"""

import functools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from utils.config import UserError
from utils.messages import say

# Waiting for another process's part of a step, or its probes; and for the first, which decodes a whole data set.
STEP_TIMEOUT, DECODING_TIMEOUT = timedelta(minutes=30), timedelta(days=1)
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Timed out waiting")


def world_size() -> int:
    """Return the number of processes that train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@functools.cache
def note_once(text: str) -> None:
    """Print a note on stderr, from one process and once: each trial of a comparison reads the same files."""
    if rank() == 0:
        say(f"note: {text}")


class Shard(NamedTuple):
    """Where images are in a batch that several processes share: its `rows`, of `total`."""

    rows: slice
    total: int


def own_shard(count: int) -> Shard:
    """Return where this process's `count` images are in the batch of all processes."""
    return Shard(slice(rank() * count, (rank() + 1) * count), world_size() * count)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started (nccl on GPUs, gloo on CPUs); do nothing without torchrun.

    Raises UserError if the connection to another one is lost inside the block, and for restarts that would not work.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    backend, (store, rank, processes) = "nccl" if device.type == "cuda" else "gloo", _meeting_point()
    dist.init_process_group(backend, timeout=STEP_TIMEOUT, store=store, rank=rank, world_size=processes)
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error) for text in LOST):
            raise
        raise UserError(
            "another process of this training has ended or does not answer; the same command resumes from the last "
            "checkpoint, and with torchrun --max-restarts 3 that happens by itself."
        ) from error
    finally:
        dist.destroy_process_group()


def _meeting_point() -> tuple[Store, int, int]:
    """Return the store where the processes find each other, this one's rank, and their number.

    A process that torchrun has restarted would find there the addresses of those that have ended, and wait for them
    for ever (pytorch/pytorch, issue 135712). So each attempt has a part of its own, by its number, which the processes
    of several machines do not share: there torchrun must be told to open a store for each attempt.
    """
    machines, restarts = (int(os.environ.get(key, "0")) for key in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if machines > 1 and restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UserError(
            "restarts on several machines need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --rdzv-backend c10d; set the "
            "variable before torchrun on each machine, or leave --max-restarts out."
        )
    store, rank, processes = next(rendezvous("env://", timeout=STEP_TIMEOUT))
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if machines == 1 else ""
    return PrefixStore(f"training {attempt}", store), rank, processes


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in the first process of each machine, then in the others: for work that leaves a file."""
    if not dist.is_initialized():
        yield
        return
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    patient: Any = dist.new_group(backend="gloo", timeout=DECODING_TIMEOUT)
    if not first:
        dist.barrier(patient)
    try:
        yield
    finally:  # if the block failed, the others fail at it too instead of waiting
        if first:
            dist.barrier(patient)


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def any_process(value: bool, device: torch.device) -> bool:
    """Return whether `value` is true in any process."""
    found = torch.tensor(int(value), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


def local_batch_size(batch_size: int) -> int:
    """Return this process's share of the global batch; UserError if it cannot be shared evenly."""
    if batch_size % world_size():
        raise UserError(
            f"batch_size is {batch_size}, which {world_size()} processes cannot share evenly; "
            f"make it a multiple of {world_size()}."
        )
    return batch_size // world_size()


def gather_with_gradient(z: Tensor) -> Tensor:
    """Return the rows of all processes [N, D] in the order of ranks, for local rows [n, D].

    The gradient of a row is summed over the processes, each of which computes the same loss. It is therefore
    world_size times too large here; DistributedDataParallel's mean over processes corrects it.
    """
    return _Gather.apply(z) if world_size() > 1 else z  # type: ignore[return-value]  # apply is untyped


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.mine, total = own_shard(len(z))
        gathered = z.new_empty(total, *z.shape[1:])
        dist.all_gather(list(gathered.split(len(z))), z.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        gradient = grad_outputs[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.mine]


def data_parallel(module: nn.Module) -> nn.Module:
    """Return `module` for this process: with several processes, gradients are averaged and BatchNorm synchronised.

    torch's SyncBatchNorm only exists on GPUs; on CPUs each process keeps the statistics of its own rows.
    """
    if world_size() == 1:
        return module
    device = next(module.parameters()).device
    if device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def holder(note: Path) -> str:
    """Return which process holds the lock that has this `note`, as far as it is known."""
    with suppress(OSError, ValueError):
        return note.read_text(encoding="utf-8") or "another process"
    return "another process"


def try_lock(path: Path, note: Path | None = None) -> FileLock | None:
    """Return the lock file `path`, held until its release(); None while another process holds it.

    The file `note` then says which process holds it; the locked file cannot be read everywhere.
    Raises UserError if the folder cannot be written to, or its file system has no locks.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not lock.acquire(blocking=False):
            return None
        if note is not None:
            note.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        return lock
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        raise UserError(
            f"cannot lock {path} ({error}); choose a folder on a local disk that you may write to."
        ) from error


@contextmanager
def exclusive_lock(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process holds it, and say so once. Raises as try_lock does."""
    lock = try_lock(path)
    if lock is None:
        say(f"another process is {waiting_for}; waiting for it")
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
