"""The comparison of pretrainings by quality and time: its clock and ratios by hand, and a tiny run."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_time_to_quality as bench
import contenders
import numpy as np
import pandas as pd
import pytest
import torch
from classic_loop import ClassicBarlowTwins
from contenders import IMAGENET_MEAN, IMAGENET_STD, InColour, Pretraining
from quality_curves import minutes_to_reach, time_ratios
from torch import nn

from augmentations.transform_utils import plain_view
from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import open_xrays
from self_sup_classes.initialisation import random_backbone
from utils.config import REPO_ROOT, UserError, make_config


def tiny(phantoms: Path, folder: Path, *only: str) -> dict[str, Any]:
    """Return the benchmark's config for a few steps of the variants `only` on small phantoms."""
    small = {"img_res": 32, "batch_size": 8, "lightly_batch_size": 64, "workers": 0, "threads": 1}
    short = {"minutes": 0.01, "probes": 1, "draws": 2, "num_labels": 80}
    data = {"data_root": str(phantoms / COVID_ROOT), "folder": str(folder), "only": list(only)}
    return bench.config | small | short | data


def run_here(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> pd.DataFrame:
    """Return the scores of a run in this process, since starting others is slow."""
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, *arguments: function(*arguments))
    bench.main(make_config(bench.QualityConfig, values))
    return pd.read_csv(Path(values["folder"]) / "scores.csv")


def test_ours_and_the_classic_loop(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny(phantoms, tmp_path, "ours", "classic")
    table = run_here(monkeypatch, values)
    minutes, scores = table["minutes"].tolist(), table["score"].tolist()
    assert list(table) == ["variant", "minutes", "score", "std", "steps"]
    assert list(table["variant"]) == ["ours", "ours", "classic", "classic"]
    assert minutes[0] == minutes[2] == 0
    assert min(minutes[1], minutes[3]) >= 0.01
    assert 0 < min(scores) <= max(scores) < 1
    assert scores[0] == pytest.approx(scores[2], abs=0.02)  # the same random weights
    assert (tmp_path / "scores.png").stat().st_size > 10_000
    assert "classic: 0.0 min for its final score" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds the scores of an earlier run"):
        run_here(monkeypatch, values)


def test_our_learning_rate_follows_the_clock(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    monkeypatch.setattr(contenders, "gradient_step", lambda model, optimizer, forward, lr, *rest: rates.append(lr))
    config = bench.our_config(make_config(bench.QualityConfig, tiny(phantoms, tmp_path, "ours")))
    take = contenders.ours(config, open_xrays(config, torch.device("cpu"))).step
    for progress in (0.025, 0.05, 0.525, 1.0):  # the warmup is 1 of 20 epochs
        take(progress)
    assert rates == pytest.approx([0.5 * config.lr, config.lr, 0.5 * config.lr, 0.0], rel=1e-3, abs=1e-9)


def test_lightly(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightly")
    table = run_here(monkeypatch, tiny(phantoms, tmp_path, "lightly"))
    assert list(table["variant"]) == ["lightly", "lightly"]
    assert table["steps"].tolist()[1] > 0


@pytest.mark.slow
def test_as_a_user_calls_it(phantoms: Path, tmp_path: Path) -> None:
    values = tiny(phantoms, tmp_path, "classic") | {"workers": 1}
    command = [sys.executable, "tests/benchmarks/bench_time_to_quality.py"]
    for key, value in values.items():
        command += [f"--{key.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)])]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPO_ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "classic: balanced accuracy" in ended.stdout
    assert (tmp_path / "scores.csv").is_file()


def test_a_network_that_has_diverged_scores_as_a_guess(phantoms: Path, tmp_path: Path) -> None:
    class Diverged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(torch.nan))

        def forward(self, y: torch.Tensor) -> torch.Tensor:
            return y.mean((2, 3)) * self.weight

    config = make_config(bench.QualityConfig, tiny(phantoms, tmp_path, "ours"))
    xrays = open_xrays(bench.our_config(config), torch.device("cpu"))
    assert bench.probe_scores(Diverged(), xrays, config) == [0.25, 0.25]


def test_without_lightly_the_others_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert bench.installed(["ours", "lightly"]) == ["ours"]
    assert "pip install -r tests/benchmarks/requirements.txt" in capsys.readouterr().out
    with pytest.raises(UserError, match="no variant left"):
        bench.installed(["lightly"])


def test_a_curve_reaches_a_score_where_its_line_does() -> None:
    minutes, scores = np.array([0.0, 1.0, 3.0, 7.0]), np.array([0.4, 0.5, 0.7, 0.6])
    assert minutes_to_reach(minutes, scores, 0.45) == pytest.approx(0.5)
    assert minutes_to_reach(minutes, scores, 0.55) == pytest.approx(1.5)  # a quarter of the way from 1 to 3
    assert minutes_to_reach(minutes, scores, 0.65) == pytest.approx(
        2.5
    )  # the first time, although it falls below again
    assert minutes_to_reach(minutes, scores, 0.7) == pytest.approx(3.0)
    assert minutes_to_reach(minutes, scores, 0.3) == 0
    assert minutes_to_reach(minutes, scores, 0.71) is None


def test_ratios_compare_the_others_final_scores_with_our_curve() -> None:
    curves = {
        "ours": ([0, 10, 30], [0.4, 0.6, 0.8]),
        "slow": ([0, 10, 30], [0.4, 0.4, 0.5]),
        "better": ([0, 10, 30], [0.4, 0.8, 0.9]),
        "worse": ([0, 10, 30], [0.4, 0.5, 0.3]),
    }
    rows = [(name, *point) for name, curve in curves.items() for point in zip(*curve, strict=True)]
    assert time_ratios(pd.DataFrame(rows, columns=["variant", "minutes", "score"])) == [
        "slow: 30.0 min for its final score 0.500; ours reached it after 5.0 min: x6.0",
        "better: 30.0 min for its final score 0.900; ours has not reached it",
        "worse: 30.0 min for its final score 0.300; ours has it with random weights, so a ratio says nothing",
    ]


def test_the_clock_counts_setup_and_steps_but_not_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shares = [50.0], []

    def step(progress: float) -> None:
        now[0] += 1
        shares.append(progress)

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    seen = []
    stub = Pretraining(nn.Identity(), step, setup_seconds=1.0)
    for seconds, steps in bench.train_by_the_clock(stub, np.array([2.0, 4.0]), torch.device("cpu")):
        seen.append((seconds, steps))
        now[0] += 100  # a probe
    assert seen == [(0, 0), (2, 1), (4, 3)]
    assert shares == [0.25, 0.5, 0.75]


def test_the_classic_network_starts_from_our_weights() -> None:
    theirs = ClassicBarlowTwins(8, seed=3).net.state_dict()
    for name, tensor in random_backbone("resnet18", 1, seed=3).net.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_colour_network_sees_gray_in_its_own_normalisation() -> None:
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    seen = InColour(nn.Identity())(plain_view(images, 8, 1))
    for channel, mean, std in zip(range(3), IMAGENET_MEAN, IMAGENET_STD, strict=True):
        torch.testing.assert_close(seen[:, channel], (images[:, 0] / 255 - mean) / std)
