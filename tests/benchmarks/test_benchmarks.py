"""Each benchmark runs, at a tiny size."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import measuring
import pytest

from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT

TINY = "--batch-size 4 --rounds 1"
CALLS = {
    "bench_step": f"{TINY} --backbones resnet18 --sizes 32 --projector-dims 8 --images 8 --steps 1 --device cpu "
    "--variants float32",
    "bench_collection": "--images 30 --searched 50 --checked 50",
    "bench_time_to_quality": "--data-root {covid} --img-res 32 --batch-size 8 --workers 0 --minutes 0.01 --probes 1 "
    "--draws 2 --num-labels 80 --threads 1 --only ours classic --folder {folder}",
}
LAST = {
    "bench_step": "float32",
    "bench_collection": "leak check",
}


@pytest.mark.parametrize("name", CALLS)
def test_a_benchmark(name: str, phantoms: Path, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = (phantoms / CHEXPERT_ROOT / "train.csv").read_bytes()
    (tmp_path / "chexpert_labels").mkdir()
    (tmp_path / "chexpert_labels" / "train.csv.gz").write_bytes(gzip.compress(table, mtime=0))
    shutil.copytree(phantoms / CHEXPERT_ROOT / "train", tmp_path / "train")
    monkeypatch.setenv("CXR_DATA", str(tmp_path))
    monkeypatch.setattr(measuring, "in_fresh_process", lambda function, *arguments: function(*arguments))
    flags = CALLS[name].format(covid=phantoms / COVID_ROOT, folder=tmp_path / "quality")
    ended = script(f"tests/benchmarks/{name}.py", *flags.split())
    assert ended.returncode == 0, ended.stderr
    assert LAST.get(name, "one run of one seed") in ended.stdout.splitlines()[-1]
