"""What a machine lacks is said: memory, and a GPU that torch does not find or cannot use."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from utils import hardware, scripts
from utils.config import Config, UserError
from utils.hardware import choose_device, choose_precision, memory_for, prepare
from utils.software import software

REFUSALS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ..."),
    MemoryError("Unable to allocate 3.00 GiB for an array"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def test_algorithms_are_deterministic_unless_a_config_says_otherwise() -> None:
    try:
        for wanted in (False, True):
            prepare("cpu", 0, wanted)
            assert torch.are_deterministic_algorithms_enabled() is wanted
            assert torch.backends.cudnn.benchmark is not wanted
    finally:
        prepare("cpu", 0)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_memory_that_runs_out_is_one_sentence(refusal: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    expected = r"batch_size is 48, and memory ran out .*; try batch_size 24"
    with pytest.raises(UserError, match=expected) as raised, memory_for(48):
        raise refusal
    assert "\n" not in str(raised.value)

    def main(config: Config) -> None:
        raise refusal

    with pytest.raises(SystemExit) as ended:
        scripts.run_script(main, Config, {})
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert re.match(r"error: memory ran out \(.*\); try a smaller batch_size", said)


def test_each_process_of_torchrun_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"3 processes on this machine, which has 2 GPU.*--nproc-per-node 2, or --dev"):
        choose_device("auto")
    assert choose_device("cpu") == torch.device("cpu")


def test_an_unusable_gpu_is_not_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "zeros", fails)
    said = r"cannot use the GPU \(CUDA error: no kernel image .* the device\); install a torch for it"
    with pytest.raises(UserError, match=f"device is 'cuda', but torch .*{said}.*--device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
    assert re.search(f"warning: the CPU is used.*{said}", capsys.readouterr().err)


def test_bfloat16_is_not_chosen_where_torch_no_longer_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: True, raising=False)
        assert choose_precision("auto", torch.device("cpu")) == torch.bfloat16
        monkeypatch.delattr(torch.cpu, probe)
    assert choose_precision("auto", torch.device("cpu")) == torch.float32


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_for(48):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("program", "built_for", "hidden", "said"),
    [
        ("/usr/bin/nvidia-smi", None, None, "built for the CPU alone: install torch for CUDA"),
        ("/usr/bin/nvidia-smi", "12.8", None, "built for CUDA 12.8: update the driver"),
        ("/usr/bin/nvidia-smi", "12.8", "", ""),
        (None, None, None, ""),
    ],
)
def test_a_gpu_that_torch_does_not_find_is_said_once(
    program: Any, built_for: Any, hidden: Any, said: str, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(shutil, "which", lambda _: program)
    monkeypatch.setattr(hardware, "NVIDIA_DRIVER", Path("absent"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    hardware._warn_of_unused_gpu.cache_clear()
    for _ in range(2):
        assert choose_device("auto") == torch.device("cpu")
    warning = capsys.readouterr().err
    assert said in warning and warning.count("warning:") == bool(said)


def test_the_command_can_be_pasted_whatever_its_words_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["a/script.py", "--encoders", "runs/fold*/x.pt", "--data-root", "my films"]
    monkeypatch.setattr("sys.argv", words)
    command = str(software()["command"])
    assert shlex.split(command)[1:] == words and "'runs/fold*/x.pt'" in command
