"""What this machine has: the device, the precision that pays on it, and how to keep its memory."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from utils.config import UserError, check_choice
from utils.memory import keep_freed_memory

Module = TypeVar("Module", bound=nn.Module)

DEVICES = ["auto", "cuda", "mps", "cpu"]
PRECISIONS = ["auto", "float32", "bfloat16"]


def prepare(device: str, threads: int) -> torch.device:
    """Set what every training and measurement shares: CPU threads (0 leaves them to torch), memory, determinism.

    Returns the device of that name; raises UserError if it is not there.
    """
    if threads > 0:
        torch.set_num_threads(threads)
    keep_freed_memory()
    make_deterministic()
    return choose_device(device)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a CUDA GPU, else an Apple GPU, else the CPU.

    Under torchrun each process takes the GPU of its local rank. Raises UserError if the device is not there.
    """
    check_choice("device", name, DEVICES)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if not there[name]:
        raise UserError(f'device is {name!r}, but torch finds none here; use "auto" or "cpu".')
    if name != "cuda":
        return torch.device(name)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def placed(module: Module, device: torch.device) -> Module:
    """The module on the device, its weights in the layout that convolutions are fastest in."""
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device, at_least: float = 0.0) -> float:
    """Of a piece of work, the device's included, done `repeats` times or more, until `at_least` seconds have passed.

    A first time, which allocates, does not count.
    """
    seconds: list[float] = []
    while len(seconds) < 1 + repeats or sum(seconds[1:]) < at_least:
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The autocast dtype; "auto" is bfloat16 where the hardware multiplies it faster than float32."""
    check_choice("precision", name, PRECISIONS)
    if name == "auto":
        return torch.bfloat16 if _has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # AMX tiles or AVX512-BF16; elsewhere torch emulates it slowly
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def describe_device(device: torch.device) -> str:
    """A name for a person: the GPU's own, or the processor with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = platform.processor() or platform.machine()
    return f"{kind} {device.type}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> int:
    """Bytes that were allocated at most: on a CUDA GPU, or else by this process so far; 0 where that is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def make_deterministic() -> None:
    """The same bits from the same run on the same machine, on GPUs too."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # a check for bugs that costs a pass over memory; torch's stubs do not know it
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
