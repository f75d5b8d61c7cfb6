"""Two processes give the loss and the gradients of one process with the whole batch.

torch's SyncBatchNorm runs on GPUs only, so on these CPU processes BatchNorm is in eval mode: what is tested
is the gathering of embeddings, the loss over the global batch, and the averaging of gradients.
"""

import os
import socket
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from self_sup_classes.backbones import Backbone
from self_sup_classes.barlow import BarlowTwins
from utils import distributed
from utils.config import UserError

# the loss by the D x D matrix, and by the N x N Gram matrices; of two views, and of more; 2 x 2 micro-batches and 1 x 4
CASES = ("6-2-0", "64-2-0", "64-3-0", "64-3-2")


def save_loss_and_gradients(folder: Path, case: str) -> None:
    """Save the loss of a "width-views-micro_batch_size" and its gradients into a file of that name."""
    width, views, micro = map(int, case.split("-"))
    torch.manual_seed(0)
    model = BarlowTwins(Backbone("resnet18", 1), [width], 5e-3, micro).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.get_buffer("running_var").uniform_(0.5, 2)
    images = torch.randn(views, 8, 1, 32, 32)
    n, rank = distributed.local_batch_size(8), distributed.rank()
    twins = distributed.data_parallel(model)
    loss = twins(*images[:, n * rank : n * (rank + 1)])["loss"]
    loss.backward()
    if rank == distributed.world_size() - 1:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.save({"loss": loss.detach(), **gradients}, folder / f"{case}.pt")


def work(rank: int, processes: int, port: int, folder: Path) -> None:
    """Save all cases, as the process `rank` that torchrun would have started."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place |= {"GROUP_WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ |= {name: str(value) for name, value in place.items()}
    with distributed.process_group(torch.device("cpu")):
        for case in CASES:
            save_loss_and_gradients(folder, case)


@pytest.fixture(scope="module")
def results(narrow: None, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folder with the results of one process, and of two."""
    found = {processes: tmp_path_factory.mktemp(f"processes{processes}") for processes in (1, 2)}
    for processes, folder in found.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # forks import nothing again, but cannot go backwards where autograd has threads for GPUs
        how = "fork" if hasattr(os, "fork") and not torch.cuda.is_available() else "spawn"
        start_processes(work, (processes, port, folder), nprocs=processes, start_method=how)
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


def test_restarts_on_several_machines_need_a_store_for_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"RANK": "0", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    for name, value in {**facts, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        distributed.process_group(torch.device("cpu")),
    ):
        pass
