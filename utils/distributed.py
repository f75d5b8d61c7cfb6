"""One process or several (torchrun): this process's rank, and batches gathered across processes with gradients."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.config import UserError


def world_size() -> int:
    """Return the number of processes that train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def launched_processes() -> int:
    """Return the number of processes that torchrun has started, whether they have joined yet or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started (nccl on GPUs, gloo on CPUs); do nothing without torchrun."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    # the others wait while the first decodes a data set or probes, which may take longer than torch's ten minutes
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in the first process of each machine, then in the others: for work that leaves a file."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if dist.is_initialized() and not first:
        dist.barrier()
    try:
        yield
    finally:  # if the block failed, the others fail at it too instead of waiting
        if dist.is_initialized() and first:
            dist.barrier()


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
        ctx.mine = slice(rank() * len(z), (rank() + 1) * len(z))
        gathered = z.new_empty(world_size() * len(z), *z.shape[1:])
        dist.all_gather_into_tensor(gathered, z.contiguous())
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
