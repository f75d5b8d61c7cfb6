"""What this machine has and runs: device, precision, memory, processor cores, versions."""

import ctypes
import functools
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from torch import nn

from utils.config import MachineConfig as MachineConfig
from utils.config import UserError, one_of
from utils.messages import say
from utils.software import software

Module = TypeVar("Module", bound=nn.Module)

Precision = Annotated[str, one_of(["auto", "float32", "bfloat16"])]
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # on Linux
REFUSED_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


def prepare(device: str, threads: int, deterministic: bool = True) -> torch.device:
    """Set CPU threads (0 leaves them to torch), memory and algorithms; return the device of that name.

    Every training and measurement starts here. Raises UserError if the device is not available.
    """
    if threads > 0:
        torch.set_num_threads(threads)
    keep_freed_memory()
    choose_algorithms(deterministic)
    return choose_device(device)


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is a CUDA GPU that torch can use, else an Apple GPU, else the CPU.

    Under torchrun each process takes the GPU of its local rank. Raises UserError if the device is not available, if
    torch cannot compute on it, or if there are more processes than GPUs.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    chosen = next(device for device, available in there.items() if available) if name == "auto" else name
    if name == "auto" and chosen == "cpu":
        _warn_of_unused_gpu()
    if not there[chosen]:
        raise UserError(f'device is {name!r}, but torch does not find one here; use "auto" or "cpu".')
    if chosen != "cuda":
        return torch.device(chosen)
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        raise UserError(
            f"torchrun has started {processes} processes on this machine, which has {gpus} GPU(s); give "
            f"--nproc-per-node {gpus}, or --device cpu."
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        torch.zeros(1, device=device).cpu()
    except RuntimeError as error:
        if is_out_of_memory(error):  # another process has it, and may end
            raise
        reason = str(error).partition("\n")[0]
        lacking = f"torch {torch.__version__} cannot use the GPU ({reason}); install a torch for it (pytorch.org)"
        if name == "cuda":
            raise UserError(f"device is 'cuda', but {lacking}, or give --device cpu.") from error
        say(f"warning: the CPU is used, since {lacking}")
        return torch.device("cpu")
    torch.cuda.set_device(device)
    return device


@functools.cache
def _warn_of_unused_gpu() -> None:
    """Say once that there is an NVIDIA GPU, not hidden by CUDA_VISIBLE_DEVICES, that torch does not find."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if hidden or not (shutil.which("nvidia-smi") or NVIDIA_DRIVER.exists()):
        return
    why = (
        f"it is built for CUDA {torch.version.cuda}: update the driver of the GPU"
        if torch.version.cuda
        else "it is built for the CPU alone: install torch for CUDA (pytorch.org)"
    )
    say(f"warning: this machine has an NVIDIA GPU, but torch does not find it, so the CPU is used; {why}")


def placed(module: Module, device: torch.device) -> Module:
    """Return the module on the device, its weights in the layout in which convolutions are fastest."""
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def synchronise(device: torch.device) -> None:
    """Wait until the device has computed everything that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the autocast dtype; "auto" is bfloat16 where the hardware multiplies it faster than float32."""
    if name == "auto":
        return torch.bfloat16 if _has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # AMX tiles or AVX512-BF16; elsewhere torch emulates it slowly
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private, so they may go
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


def describe_device(device: torch.device) -> str:
    """Return a readable name: the GPU's own, or the processor with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = platform.processor() or platform.machine()
    return f"{kind} {device.type}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> int:
    """Return the peak in bytes: reserved on a CUDA GPU, or else of this process so far; 0 where it is unknown.

    Reserved, since what a CUDA graph needs counts as allocated only while it is captured.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return 0
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory was refused, by the GPU's allocator, the CPU's, or Python's; nothing else counts."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in REFUSED_MEMORY)


@contextmanager
def memory_for(batch_size: int) -> Iterator[None]:
    """Turn a refusal of memory inside the block, part of a training on `batch_size` images a step, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"batch_size is {batch_size}, and memory ran out ({str(error).partition(chr(10))[0][:150]}); try "
            f"batch_size {max(2, batch_size // 2)}, or a smaller img_res, under another run_name."
        ) from error


def choose_algorithms(deterministic: bool) -> None:
    """Make a run give the same bits again on the same machine, on GPUs too; or let a GPU take what it finds fastest.

    TF32 is left as torch has it, deterministic or not: on recent NVIDIA GPUs, precision "float32" rounds the inputs of
    convolutions to 10 bits of mantissa, and those of matrix products, the loss among them, not.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # a check for bugs that costs a pass over memory; torch's stubs do not know it
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a training step frees instead of returning it to the kernel.

    Activations are blocks of many megabytes. By default glibc gets each of them from the kernel with mmap and returns
    it when it is freed, so every step faults in gigabytes of zeroed pages. The thresholds below make glibc serve them
    from the heap and never trim it, so the peak is kept until the script ends. Does nothing without glibc.
    """
    if platform.system() != "Linux":
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return
    # older versions of glibc refuse more than 32 MB, and setting the other threshold alone would do harm
    if mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25):
        mallopt(trim_threshold, 2**31 - 1)


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Return what environment.json holds of a run that trains: the software and torch's threads."""
    return {**software(), "threads": torch.get_num_threads()}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return how two environments differ in what may change a result, such as "torch (2.7 before, 2.8 now)", or ""."""
    there, here = ({**one, **one.get("versions", {})} for one in (before, now))
    names = [name for name in ("commit", "python", "threads", *now["versions"]) if name in there]
    return ", ".join(f"{name} ({there[name]} before, {here[name]} now)" for name in names if there[name] != here[name])
