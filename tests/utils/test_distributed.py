"""Two processes give the loss and the gradients of one process with the whole batch.

torch's SyncBatchNorm runs on GPUs only, so on these CPU processes BatchNorm is in eval mode: what is tested
is the gathering of embeddings, the loss over the global batch, and the averaging of gradients.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.config import REPO_ROOT

WORKER = """
import sys
import torch
from self_sup_classes.backbones import Backbone
from self_sup_classes.barlow import BarlowTwins
from utils import distributed

with distributed.process_group(torch.device("cpu")):
    torch.manual_seed(0)
    model = BarlowTwins(Backbone("resnet18", 1), [int(sys.argv[2])], 5e-3).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    views = torch.randn(int(sys.argv[3]), 8, 1, 32, 32)
    n, rank = distributed.local_batch_size(8), distributed.rank()
    mine = slice(n * rank, n * (rank + 1))
    twins = distributed.data_parallel(model)
    loss = twins(*views[:, mine]).loss
    loss.backward()
    if rank == distributed.world_size() - 1:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.save({"loss": loss.detach(), **gradients}, sys.argv[1])
"""


# the loss by the D x D matrix, and by the N x N Gram matrices; of two views, and of more
@pytest.mark.parametrize(("width", "views"), [(6, 2), (64, 2), (64, 3)])
def test_two_processes_equal_one(tmp_path: Path, width: int, views: int) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    results = []
    for command in ([sys.executable], [*launch, "2"]):
        result = tmp_path / f"{len(command)}.pt"
        arguments = [*command, str(worker), str(result), str(width), str(views)]
        environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(arguments, check=True, capture_output=True, env=environment, timeout=200)
        results.append(torch.load(result, weights_only=True))
    one, two = results
    assert one.keys() == two.keys()
    assert len(one) > 60
    for name, expected in one.items():
        assert (two[name] - expected).norm() <= 1e-5 * expected.norm(), name
