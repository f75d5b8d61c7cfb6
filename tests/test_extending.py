"""docs/EXTENDING.md: its changes apply to the repo, and a pretraining with all of them runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils.config import REPO_ROOT

PAGE = (REPO_ROOT / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
FOLDERS = ["augmentations", "dataset_loader", "downstream_task", "self_sup_classes", "selfsup_task", "utils"]
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
FLAGS = (
    "--dataset padchest --recipe base+gamma --img-res 16 --batch-size 16 --views 2 --num-epochs 1 --warmup-epochs 0 "
    "--backbone resnet18 --start random --projector-dims 16 --run-name x --threads 1 --device cpu"
)


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the code with the changes of the page."""
    root = tmp_path / "repo"
    for folder in FOLDERS:
        shutil.copytree(REPO_ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for change in re.findall(r"```diff\n(.*?)```", PAGE, re.S):
        command = ["git", "apply", "--unidiff-zero", "--directory", "", "-"]
        done = subprocess.run(command, cwd=root, input=change, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{change[:300]}"
    return root


def padchest(folder: Path) -> Path:
    """48 films of 12 bits in PadChest's layout, some of them lateral."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for film in range(48):
        Image.fromarray(rng.integers(0, 4096, (80, 80)).astype(np.uint16)).save(folder / f"{film}.png")
        words = ["nodule", " pneumonia"][: film % 3] or ["normal"]
        rows.append([f"{film}.png", f"s{film}", f"p{film // 2}", "M", "L" if film % 8 == 7 else "PA", str(words)])
    names = ["ImageID", "StudyID", "PatientID", "PatientSex_DICOM", "Projection", "Labels"]
    pd.DataFrame(rows, columns=pd.Index(names)).to_csv(folder / TABLE, index=False)
    return folder


def test_a_pretraining_with_every_change_of_the_page(extended: Path, tmp_path: Path) -> None:
    """The pretraining and then the report, in one process."""
    words = [*FLAGS.split(), "--data-root", str(padchest(tmp_path / "films"))]
    own = {"CXR_RUNS": str(tmp_path / "runs"), "CXR_DATASETS": str(tmp_path / "data"), "PYTHONPATH": str(extended)}
    both = "import runpy, sys; runpy.run_path('selfsup_task/train_barlow_twins.py', run_name='__main__')\n"
    both += f"sys.argv[1:] = ['--output', {str(tmp_path / 'report')!r}]\n"
    both += "runpy.run_path('utils/make_report.py', run_name='__main__')"
    command, env = [sys.executable, "-c", both, *words], {**os.environ, **own}
    done = subprocess.run(command, cwd=extended, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "x"
    losses = {"train/loss", "train/invariance", "train/variance", "train/covariance"}
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert losses < set.union(*map(set, logged))
    assert losses < set(pd.read_csv(run / "metrics.csv"))
    assert "diagonal" not in done.stdout and "6 (" in done.stderr  # the laterals
    assert len(pd.read_csv(run / "split.csv")) == 42
    last = {key.removeprefix("train/"): value for key, value in logged[-2].items()}
    assert last["loss"] == pytest.approx(25 * last["invariance"] + 25 * last["variance"] + last["covariance"], rel=1e-4)
    assert "filters of the first layer" in (tmp_path / "report" / "index.html").read_text()
