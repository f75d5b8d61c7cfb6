"""Scripts on every data set, as a newcomer calls them: no other flags than the data's and those of the budget."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_readme import SCRIPTS

from dataset_loader import xrays
from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT, ensure_phantoms
from interpretability import faithfulness
from selfsup_task import resources
from utils.config import RUNS_ROOT

pytestmark = pytest.mark.usefixtures("narrow", "quick", "few_resamples", "no_figures")

COMPARE, RESOURCES = "downstream_task/trained_vs_no_trained_compare.py", "selfsup_task/check_bt_resources.py"
ONE = "--threads 1 --jobs 1"
FEW = f"{ONE} --num-labels 20"
STEPS = "--min-steps 1 --epochs 0 --img-res 16 --backbone resnet18"
OWN = "--backbone resnet18 --start random"  # a real data set has a larger network, and weights that are downloaded
JUDGED = f"--finetune.min-steps 1 --img-res 16 --seeds 0 {OWN}"
PASS = "--batch-size 16 --num-epochs 1 --views 2"
ON_DATA = {
    "selfsup_task/train_barlow_twins.py": f"{PASS} --warmup-epochs 0 --projector-dims 8 --img-res 16 --threads 1 {OWN}",
    RESOURCES: "--backbones resnet18 --resolutions 16 --batch-sizes 16 --projector-dims 8 --threads 1",
    "selfsup_task/scan_optimal_lr.py": f"{PASS} {JUDGED} {ONE} --projector-dims 8 --range-steps 10 --schedulers cosine",
    "selfsup_task/scan_best_transformations.py": f"{PASS} {JUDGED} {ONE} --projector-dims 8 --recipes none",
    "selfsup_task/scan_best_hyperparameters.py": f"{PASS} {JUDGED} {ONE} --lambdas 0.005 --projectors 8",
    COMPARE: f"{STEPS} {ONE} --num-labels all --folds 0 --draws 1 --ways probe --encoders random --features-res 0",
    "downstream_task/train_models_with_frozen_parts.py": f"{STEPS} {FEW} --draws 1 --parts fc --encoders random",
    "downstream_task/scan_best_supervised_hyperparameters.py": (
        f"{FEW} --img-res 16 --num-trials 1 --epochs-range 1 1 --backbone resnet18 --encoder random"
    ),
}
ON_RUNS = {
    "downstream_task/confusion_matrix.py": "--runs runs/{compared}",
    "downstream_task/train_on_all_films.py": "--comparison runs/{compared}",
    "downstream_task/predict.py": "--classifier runs/{trial} --images {root}",
    "interpretability/grad_cam.py": "--checkpoints runs/{trial} --per-class 1",
    "interpretability/shortcut_audit.py": "--checkpoints runs/{trial}",
}


# On findings every script runs; the tests of each script have classes.
MAIN = {"selfsup_task/train_barlow_twins.py", COMPARE, "downstream_task/confusion_matrix.py"}
MAIN |= {"downstream_task/predict.py", "interpretability/grad_cam.py"}


def classes(root: Path, phantoms: Path) -> pd.DataFrame:
    """Copy 20 images of each class into its folder; return their files and labels."""
    rows = []
    for name in ("COVID", "Normal"):
        (root / name / "images").mkdir(parents=True)
        for image in sorted((phantoms / COVID_ROOT / name / "images").iterdir())[:20]:
            shutil.copy(image, root / name / "images")
            rows.append((f"{name}/images/{image.name}", name))
    return pd.DataFrame(rows, columns=["file", "label"])


def covid(root: Path, phantoms: Path) -> str:
    classes(root, phantoms)
    return f"--dataset covid --data-root {root}"


def class_folders(root: Path, phantoms: Path) -> str:
    classes(root, phantoms)
    return f"--dataset folder --labels folders --data-root {root}"


def folder_with_findings(root: Path, phantoms: Path) -> str:
    table = classes(root, phantoms)
    findings = table.assign(Opacity=(table["label"] != "Normal") * 1, Rare=0)
    findings.drop(columns="label").to_csv(root / "labels.csv", index=False)
    return f"--dataset folder --data-root {root}"


def nih(root: Path, phantoms: Path) -> str:
    table, names = classes(root, phantoms), {"COVID": "Effusion|Mass", "Normal": "No Finding"}
    entries = {
        "Image Index": table["file"].str.rpartition("/")[2],
        "Finding Labels": [names[label] for label in table["label"]],
        "Patient ID": range(1, 41),
    }
    pd.DataFrame(entries).to_csv(root / "Data_Entry_2017.csv", index=False)
    return f"--dataset nih --data-root {root}"


def chexpert(root: Path, phantoms: Path) -> str:
    return f"--dataset chexpert --data-root {phantoms / CHEXPERT_ROOT}"


def phantom(root: Path, phantoms: Path) -> str:
    return f"--dataset phantom --data-root {root}"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer phantoms, random networks and measured steps."""
    fewer = functools.partial(ensure_phantoms, images=60, unlabelled=8, size=64)
    monkeypatch.setattr(xrays, "ensure_phantoms", lambda folder, planted_marker, **_: fewer(folder))
    monkeypatch.setattr(faithfulness, "RANDOM_NETWORKS", 2)
    monkeypatch.setattr(resources, "measure_apart", resources._costs)
    monkeypatch.setattr(resources, "STEPS", 1)
    monkeypatch.setattr(resources, "STEP_SECONDS", 0.0)


DATA = [folder_with_findings, phantom, covid, class_folders, nih, chexpert]


@pytest.mark.parametrize("data", DATA, ids=lambda data: data.__name__)
def test_the_scripts_run(data: Callable[..., str], tmp_path: Path, phantoms: Path, small: None, script: Any) -> None:
    assert {*ON_DATA, *ON_RUNS} == SCRIPTS - {
        "utils/make_report.py",
        "utils/load_tb_logs.py",
        "selfsup_task/share_weights.py",
    }
    scripts = {*ON_DATA, *ON_RUNS} if data is folder_with_findings else MAIN
    root, name = tmp_path / "data", f"every/{data.__name__}"
    flags = data(root, phantoms)
    for path in (path for path in ON_DATA if path in scripts):
        done = script(path, *f"{flags} {ON_DATA[path]} --run-name {name}/{Path(path).stem}".split())
        assert done.returncode == 0, f"{path}: {done.stderr[-2000:]}"
    compared = f"{name}/{Path(COMPARE).stem}"
    trial = next(folder.parent for folder in (RUNS_ROOT / compared).glob("*/predictions.csv"))
    places = {"compared": compared, "trial": trial.relative_to(RUNS_ROOT), "root": root if root.exists() else phantoms}
    for path in (path for path in ON_RUNS if path in scripts):
        done = script(path, *ON_RUNS[path].format(**places).split(), "--threads", "1")
        assert done.returncode == 0, f"{path}: {done.stderr[-2000:]}"
    made = [str(folder) for folder in (RUNS_ROOT / name, *RUNS_ROOT.glob(f"*/{name}")) if folder.is_dir()]
    done = script("utils/make_report.py", *made, "--output", str(tmp_path / "report"))
    assert done.returncode == 0 and "Folders skipped: 0." in done.stdout, done.stdout + done.stderr
    not_run = [line for line in done.stdout.splitlines() if line.startswith("not run yet") and " --" not in line]
    assert scripts == MAIN or not not_run
