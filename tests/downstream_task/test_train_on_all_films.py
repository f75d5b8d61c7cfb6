"""The classifier of all films: trained on the test part too, with the scores of the comparison before."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_compare_networks import COMPARE, SMALL, TEST, as_flags

from dataset_loader.phantoms.dataset import COVID_ROOT
from self_sup_classes.provenance import provenance_of
from self_sup_classes.weights import read_state_dict
from utils.config import RUNS_ROOT

pytestmark = pytest.mark.usefixtures("narrow", "few_resamples", "no_figures")
FINAL = "downstream_task/train_on_all_films.py"


def test_all_films_are_trained_on_and_the_scores_are_the_comparisons(
    phantoms: Path, tmp_path: Path, name: str, script: Any
) -> None:
    root = tmp_path / "covid"
    shutil.copytree(phantoms / COVID_ROOT, root)
    flags = {"dataset": "covid", "data_root": root, **SMALL, "encoders": ["random"], "draws": 2, "folds": [0]}
    flags |= {"num_labels": ["all"], "ways": ["zeros"], "run_name": name, "ids": "hashed", "features_res": 0}
    compared = script(COMPARE, *as_flags(flags))
    assert compared.returncode == 0, compared.stderr
    assert script(FINAL, "--comparison", f"runs/{name}").stderr.count("error") == 0  # before the test part is read
    final, summaries = RUNS_ROOT / "final" / name, []
    summaries.append(json.loads((final / "summary.json").read_text()))
    assert script(TEST, "--runs", f"runs/{name}", "--threads", "1").returncode == 0
    shutil.rmtree(final)
    done = script(FINAL, "--comparison", f"runs/{name}")
    assert done.returncode == 0, done.stderr
    assert "on the test part is that of random in the comparison" in done.stdout and "240 labelled films" in done.stdout
    summaries.append(json.loads((final / "summary.json").read_text()))
    for summary, folder, part in zip(summaries, ("", "test"), ("validation", "test"), strict=True):
        curves = pd.read_csv(RUNS_ROOT / folder / name / ("all" if folder else "") / "curves.csv")
        assert summary["part"] == part and summary["score"] == curves.query("headline")["mean"].item()
        assert summary["labels"] == 240 and not [key for key in summary if key.startswith("val/")]
    assert set(pd.read_csv(final / "split.csv")["part"]) == {"train"}
    provenance = provenance_of(read_state_dict(final / "resnet18_final_state_dict.pt"))
    assert provenance is not None and len(provenance.seen) == 240
    assert script(FINAL, "--comparison", f"runs/{name}").stdout == done.stdout

    for folder in (RUNS_ROOT / name, RUNS_ROOT / "test" / name, final):
        named = [path for path in folder.rglob("*.*") if path.suffix in (".csv", ".json", ".txt")]
        assert named and not [path for path in named if "/images/" in path.read_text()], "a run names films"
    films = ["--images", str(root / "Normal"), "--run-name", f"{name}/predicted", "--threads", "1"]
    predicted = script("downstream_task/predict.py", "--classifier", str(final), *films)
    assert predicted.returncode == 0, predicted.stderr
    assert summaries[1]["note"] in predicted.stdout and "96 of them are X-rays that it could learn" in predicted.stdout
    readers = {
        (TEST, "--runs"): "has no test rows, as after training on all films",
        ("interpretability/shortcut_audit.py", "--checkpoints"): "was trained on all labelled films",
    }
    for (reader, flag), reason in readers.items():
        refused = script(reader, flag, str(final))
        assert refused.returncode == 1 and reason in refused.stderr
    refused = script(FINAL, "--comparison", f"runs/{name}", "--arm", "radnom")
    assert refused.returncode == 1 and "did you mean 'random'" in refused.stderr
    assert "no finished comparison" in script(FINAL, "--comparison", str(final)).stderr
