"""Two processes give the loss and the gradients of one process with the whole batch.

torch's SyncBatchNorm runs on GPUs only, so on these CPU processes BatchNorm is in eval mode: what is tested
is the gathering of embeddings, the loss over the global batch, and the averaging of gradients.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from utils.config import REPO_ROOT

# For each "width-views-micro_batch_size" of its arguments: the loss, and the gradients, into a file of that name.
WORKER = """
import sys
import torch
from self_sup_classes.backbones import Backbone
from self_sup_classes.barlow import BarlowTwins
from utils import distributed


def save_loss_and_gradients(folder, width, number_of_views, micro):
    torch.manual_seed(0)
    model = BarlowTwins(Backbone("resnet18", 1), [width], 5e-3, micro).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    views = torch.randn(number_of_views, 8, 1, 32, 32)
    n, rank = distributed.local_batch_size(8), distributed.rank()
    mine = slice(n * rank, n * (rank + 1))
    twins = distributed.data_parallel(model)
    loss = twins(*views[:, mine]).loss
    loss.backward()
    if rank == distributed.world_size() - 1:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.save({"loss": loss.detach(), **gradients}, f"{folder}/{width}-{number_of_views}-{micro}.pt")


with distributed.process_group(torch.device("cpu")):
    for case in sys.argv[2:]:
        save_loss_and_gradients(sys.argv[1], *map(int, case.split("-")))
"""
# the loss by the D x D matrix, and by the N x N Gram matrices; of two views, and of more; 2 x 2 micro-batches and 1 x 4
CASES = ("6-2-0", "64-2-0", "64-3-0", "64-3-2")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folder with the results of one process, and of two."""
    folder = tmp_path_factory.mktemp("distributed")
    worker = folder / "worker.py"
    worker.write_text(WORKER)
    found = {processes: folder / str(processes) for processes in (1, 2)}
    for one in found.values():
        one.mkdir()
    with mock.patch("sys.argv", [str(worker), str(found[1]), *CASES]):
        runpy.run_path(str(worker))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(worker), str(found[2]), *CASES]
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=300)
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(results: dict[int, Path], case: str) -> None:
    one, two = (torch.load(results[processes] / f"{case}.pt", weights_only=True) for processes in (1, 2))
    assert one.keys() == two.keys()
    assert len(one) > 60
    whole = torch.load(results[1] / f"{case[:-2]}-0.pt", weights_only=True)
    for name, expected in one.items():
        assert (whole[name] - expected).norm() <= 1e-5 * expected.norm(), name
        assert (two[name] - expected).norm() <= 1e-5 * expected.norm(), name
