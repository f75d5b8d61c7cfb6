"""How much memory does a large batch need in micro-batches, and what does it cost in time?

    python tests/benchmarks/bench_micro_batches.py

Optimiser steps of a Barlow Twins pretraining on random pixels, whole and in micro-batches, each batch size in a process
of its own: its peak memory, and the median time of a step after the first one. On a CPU memory is that of the process,
with Python and torch, and time that of the processor, which other programs do not change. A training keeps what it
frees, since that is faster, and glibc leaves holes in it (GB); what a step needs is the peak of a slower process that
gives back what it frees (needed). Not a test.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "backbone": "resnet18",
    "img_res": 64,
    "views": 2,
    "projector_dims": [1024, 1024],
    "recipe": "solarize",
    "batch_sizes": [128, 256, 512, 1024],
    "micro_batch_size": 128,
    "max_whole": 512,  # largest batch that is measured whole too
    "steps": 3,  # the first of which warms up; one step measures memory, and a cold time
    "precision": "auto",
    "threads": 1,
    "device": "auto",
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import ctypes
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch

from selfsup_task.pretraining import PretrainConfig
from selfsup_task.resources import to_measure
from selfsup_task.scan_base import PRETRAINING, without
from utils.config import Config, make_config, part_of
from utils.hardware import describe_device, peak_memory, prepare


@dataclass(frozen=True, kw_only=True)
class MicroBatchesConfig(Config):
    """The keys of the dict at the top."""

    backbone: str
    img_res: int
    views: int
    projector_dims: list[int]
    recipe: str
    batch_sizes: list[int]
    micro_batch_size: int
    max_whole: int
    steps: int
    precision: str
    threads: int
    device: str


def measure(config: PretrainConfig, steps: int, give_back: bool) -> tuple[float, int]:
    """Return seconds of a step, and the peak memory of this process in bytes, which may give back what it frees."""
    device = prepare(config.device, config.threads)
    if give_back and sys.platform == "linux":
        ctypes.CDLL("libc.so.6").mallopt(-3, 2**20)  # M_MMAP_THRESHOLD of malloc.h
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    pixels = torch.randint(256, (config.batch_size, 1, config.stored_size, config.stored_size), dtype=torch.uint8)
    pixels = pixels.to(device)
    take, seconds = to_measure(config, lambda rows: pixels[rows.to(device)], device).take, []
    for number in range(steps):
        start = clock()
        take(number)["loss"].item()
        seconds.append(clock() - start)
    return statistics.median(seconds[1:] or seconds), peak_memory(device)


def main(config: MicroBatchesConfig) -> None:
    """Print one line per batch size, whole and in micro-batches."""
    device = prepare(config.device, config.threads)
    fresh = multiprocessing.get_context("fork" if hasattr(os, "fork") and device.type == "cpu" else "spawn")
    given = {**without(PRETRAINING, "only"), **part_of(config, PretrainConfig)}
    base = make_config(PretrainConfig, {**given, "run_name": "unused", "batch_size": 1024})
    print(f"{describe_device(device)}, torch {torch.__version__}, {config.backbone}, {config.img_res} px")
    print(f"{'batch':>6} {'micro':>6} {'needed':>7} {'GB':>6} {'s/step':>7}")
    for batch_size in config.batch_sizes:
        for micro in (0, config.micro_batch_size):
            if micro or batch_size <= config.max_whole:
                cell = replace(base, batch_size=batch_size, micro_batch_size=micro)
                with ProcessPoolExecutor(1, fresh) as pool:  # this process has not computed anything
                    _, needed = pool.submit(measure, cell, 2, True).result()
                with ProcessPoolExecutor(1, fresh) as pool:
                    seconds, peak = pool.submit(measure, cell, config.steps, False).result()
                gigabytes = f"{needed / 1e9:7.2f} {peak / 1e9:6.2f}"
                print(f"{batch_size:6} {micro or '-':>6} {gigabytes} {seconds:7.2f}", flush=True)


if __name__ == "__main__":
    run_script(main, MicroBatchesConfig, config)
