"""Finished runs, asked again: after their data changed, moved or vanished, and after the version changed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from dataset_loader.phantoms.dataset import COVID_ROOT
from self_sup_classes.backbones import save_backbone
from self_sup_classes.initialisation import random_backbone
from self_sup_classes.provenance import NOTHING_SEEN
from utils.config import RUNS_ROOT
from utils.files import write_json

pytestmark = pytest.mark.usefixtures("narrow", "quick", "few_resamples", "no_figures")

COMPARE = "downstream_task/trained_vs_no_trained_compare.py"
PRETRAIN = "selfsup_task/train_barlow_twins.py"
TEST = "downstream_task/confusion_matrix.py"
PREDICT = "downstream_task/predict.py"
AUDIT = "interpretability/shortcut_audit.py"
NAME = "asked_again"
SMALL = ["--img-res", "32", "--backbone", "resnet18", "--threads", "1"]
ARMS = ["--encoders", "random", "--features-res", "0", "--ways", "linear", "--num-labels", "20", "--draws", "1"]
ARMS += ["--folds", "0", "--jobs", "1"]
TRAINING = ["--start", "random", "--lr", "1e-3", "--num-epochs", "1", "--warmup-epochs", "0", "--batch-size", "8"]
TRAINING += ["--views", "2", "--projector-dims", "32"]
TRIAL = f"runs/{NAME}/compare/random_linear_n20_d0"


@pytest.fixture
def clinic(tmp_path: Path, phantoms: Path) -> Iterator[Path]:
    """A folder of 48 films of two classes and 12 without a label; what is run on it is deleted afterwards."""
    root, files = tmp_path / "films", sorted((phantoms / COVID_ROOT).glob("Normal/images/*.png"))
    root.mkdir()
    for number, file in enumerate(files[:60]):
        shutil.copy(file, root / f"{number:02d}.png")
    rows = [(f"{n:02d}.png", "sick" if n % 2 else "well", ["train", "train", "val", "test"][n % 4]) for n in range(48)]
    rows = [(file, label, part if n % 8 > 3 else "train") for n, (file, label, part) in enumerate(rows)]
    rows[2], rows[3] = ("02.png", "well", "test"), ("03.png", "sick", "val")
    pd.DataFrame(rows, columns=["file", "label", "part"]).to_csv(root / "labels.csv", index=False)
    yield root
    for kind in ("", "test", "predict", "audit"):
        shutil.rmtree(RUNS_ROOT / kind / NAME, ignore_errors=True)


def relabelled(root: Path, **labels: str) -> None:
    table = pd.read_csv(root / "labels.csv").set_index("file")
    for name, label in labels.items():
        table.loc[f"{name[1:]}.png", "label"] = label
    table.to_csv(root / "labels.csv")


def compare(script: Any, root: Path | str, *flags: str) -> Any:
    return script(
        COMPARE, "--dataset", "folder", "--data-root", str(root), "--run-name", f"{NAME}/compare", *SMALL, *ARMS, *flags
    )


def pretrain(script: Any, root: Path | str, *flags: str) -> Any:
    name = f"{NAME}/pretrain"
    return script(
        PRETRAIN, "--dataset", "folder", "--data-root", str(root), "--run-name", name, *SMALL, *TRAINING, *flags
    )


def test_what_changed_is_one_sentence_wherever_a_result_depends_on_it(clinic: Path, script: Any) -> None:
    also = clinic.parent / "more"
    shutil.copytree(clinic, also, ignore=lambda folder, names: [name for name in names if not name.startswith("5")])
    commands = {
        "compare": lambda: compare(script, clinic),
        "audit": lambda: script(AUDIT, "--checkpoints", TRIAL, "--run-name", f"audit/{NAME}", "--threads", "1"),
        "pretrain": lambda: pretrain(script, clinic, "--also", str(also)),
    }
    said = {name: command() for name, command in commands.items()}
    assert [done.returncode for done in said.values()] == [0] * 3, [done.stderr for done in said.values()]
    before = (clinic / "labels.csv").read_bytes()

    def again(*names: str) -> dict[str, str]:
        """What each command refuses, "" where it printed the stored result."""
        found = {name: commands[name]() for name in names}
        for name, done in found.items():
            assert (done.stdout == said[name].stdout) == (done.returncode == 0), done.stderr
        return {name: done.stderr.partition("error: ")[2] for name, done in found.items()}

    relabelled(clinic, _00="sick")
    changed = "labels (48 then and now, but not the same ones; sick 24 then, 25 now; well 24 then, 23 now)"
    for line in again(*commands).values():
        assert changed in line and "delete that folder" in line

    (clinic / "labels.csv").write_bytes(before.replace(b"47.png,sick", b"47.png,"))
    assert all(
        "labels (48 then, 47 now; sick 24 then, 23 now)" in line for line in again("compare", "pretrain").values()
    )
    (clinic / "labels.csv").write_bytes(before.replace(b"00.png,well,train", b"00.png,well,test"))
    assert all(": parts (" in line for line in again("compare", "pretrain").values())
    (clinic / "labels.csv").write_bytes(before)

    shutil.copy(clinic / "59.png", clinic / "60.png")  # without a label: only pretraining takes it
    lines = again(*commands)
    assert "files (60 then, 61 now)" in lines.pop("pretrain") and set(lines.values()) == {""}
    (clinic / "60.png").unlink()
    (also / "50.png").unlink()
    assert "also 1 (10 then, 9 now)" in again("pretrain")["pretrain"]


def test_labels_that_spread_to_films_without_one_depend_on_these(clinic: Path, script: Any) -> None:
    done = compare(script, clinic, "--ways", "spread")
    assert done.returncode == 0, done.stderr
    trial = TRIAL.replace("linear", "spread")
    audit = script(AUDIT, "--checkpoints", trial, "--run-name", f"audit/{NAME}", "--threads", "1")
    assert audit.returncode == 0 and "have changed" not in audit.stderr, audit.stderr
    shutil.copy(clinic / "59.png", clinic / "60.png")
    again = compare(script, clinic, "--ways", "spread")
    assert again.returncode == 1 and "files without a label (12 then, 13 now)" in again.stderr


def test_a_retrained_encoder_and_another_file_of_a_pattern_are_other_arms(clinic: Path, script: Any) -> None:
    encoder, name = (
        RUNS_ROOT / NAME / "a" / "resnet18_final_state_dict.pt",
        f"runs/{NAME}/*/resnet18_final_state_dict.pt",
    )

    def saved(seed: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_backbone(path, random_backbone("resnet18", 1, seed), NOTHING_SEEN)

    saved(0, encoder)
    assert compare(script, clinic, "--encoders", "random", name).returncode == 0
    second = RUNS_ROOT / NAME / "b" / encoder.name
    saved(1, second)
    done = compare(script, clinic, "--encoders", "random", name)
    assert done.returncode == 1 and "was made from other data: arms.pretrained" in done.stderr
    second.unlink()
    saved(2, encoder)
    done = compare(script, clinic, "--encoders", "random", name)
    assert done.returncode == 1 and f"weights in runs/{NAME}/a/resnet18_final" in done.stderr


def test_moved_data_are_known_by_what_they_hold(clinic: Path, script: Any) -> None:
    first, trained = compare(script, clinic), pretrain(script, clinic)
    assert first.returncode == trained.returncode == 0, first.stderr + trained.stderr
    link = clinic.with_name("link")
    link.symlink_to(clinic)
    for spelled in (f"{clinic}/", f"{clinic}/../films", link):
        assert compare(script, spelled).stdout == first.stdout

    new = clinic.rename(clinic.with_name("new disk"))
    link.unlink()
    gone = compare(script, clinic)
    assert gone.stdout == first.stdout and f"found no folder {clinic}" in gone.stderr
    assert compare(script, clinic.with_name("typo")).returncode == 1
    assert compare(script, new).stdout == first.stdout
    assert pretrain(script, new).stdout.splitlines()[:6] == trained.stdout.splitlines()[:6]

    tested = script(TEST, "--runs", f"runs/{NAME}/compare")  # reads predictions alone, wherever the data are
    assert tested.returncode == 0, tested.stderr
    audit = [AUDIT, "--checkpoints", TRIAL, "--run-name", f"audit/{NAME}", "--threads", "1"]
    lost = script(*audit)
    assert lost.returncode == 1 and f"found no folder {clinic}; if it was moved, --data-root" in lost.stderr
    assert script(*audit, "--data-root", str(new)).returncode == 0
    assert script(*audit).returncode == 0

    predicted = script(PREDICT, "--classifier", TRIAL, "--images", str(new), "--run-name", f"predict/{NAME}")
    assert predicted.returncode == 0 and f"{clinic} is not there any more" in predicted.stdout

    shutil.rmtree(RUNS_ROOT / "audit" / NAME)
    for file in new.glob("*.png"):  # other films under the same names
        with Image.open(file) as image:
            turned = image.transpose(Image.Transpose.ROTATE_90)
        turned.save(file)
    other = script(*audit, "--data-root", str(new))
    assert other.returncode == 1 and "show something else" in other.stderr


# What config.json of a pretraining and a linear probe held in the first version, by hand.
PRETRAINED: dict[str, Any] = {
    "device": "auto", "threads": 1, "num_epochs": 1, "optimizer": "adamw", "lr": 0.001, "optimizer_weight_decay": 1e-4,
    "scheduler": "cosine", "warmup_epochs": 0, "random_seed": 0, "batch_size": 8, "gradient_clip": 0.0,
    "precision": "auto", "checkpoint_every": 500, "dataset": "folder", "data_root": "", "store_res": 0, "img_res": 32,
    "split_seed": 0, "in_channels": 1, "recipe": "solarize", "views": 2, "probe_every": 2,
    "run_name": f"{NAME}/pretrain", "pretrain_on": "train", "also": [], "positives": "image", "backbone": "resnet18",
    "start": "random", "barlow_lambda": 0.005, "projector_dims": [32], "micro_batch_size": 0,
    "deterministic": True, "keep_all": False,
}  # fmt: skip
VERSION_1: dict[str, Any] = {
    "device": "auto", "threads": 1, "findings": ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema",
    "Pleural Effusion"], "uncertain": "ignore", "blank": "zero", "class_weights": True, "recipe": "supervised",
    "choose_by": "validation", "evaluate_every": 25, "patience": 12, "min_steps": 1200, "passes": 10,
    "batch_size": 32, "optimizer": "adam", "optimizer_weight_decay": 1e-05, "dataset": "folder", "data_root": "",
    "store_res": 0, "img_res": 32, "split_seed": 0, "random_seed": 0, "backbone": "resnet18", "in_channels": 1,
    "allow_seen": False, "precision": "auto", "a_key_of_then": 3,
}  # fmt: skip
FINETUNED = {
    "head": "probe", "lr": 0.0, "backbone_lr_factor": 1.0, "batch_norm": "train", "encoder": "random",
    "method": "linear", "trainable": "all", "label_fraction": 1.0, "label_draw": 0,
    "run_name": TRIAL.removeprefix("runs/"),
}  # fmt: skip


def test_runs_of_the_first_version_still_open_but_are_not_scored(clinic: Path, script: Any) -> None:
    first, trained = compare(script, clinic, "--laterals"), pretrain(script, clinic, "--laterals")
    assert first.returncode == trained.returncode == 0, first.stderr + trained.stderr
    for config in (VERSION_1 | FINETUNED, PRETRAINED):
        path = RUNS_ROOT / config["run_name"]
        write_json(path / "config.json", {**config, "data_root": str(clinic)})
        facts = json.loads((path / "environment.json").read_text())
        del facts["data"]["listed"]
        facts.pop("weights", None)
        write_json(path / "environment.json", facts)
    run = RUNS_ROOT / TRIAL.removeprefix("runs/")
    table: Any = pd.read_csv(run / "predictions.csv")
    columns = ["file", "group", "label", "p sick", "p well"]
    table.loc[table["part"] == "val", columns].to_csv(run / "predictions_val.csv", index=False)
    (run / "predictions.csv").unlink()
    (run / "resnet18_final_state_dict.pt").rename(run / "resnet18_best_state_dict.pt")
    summary = RUNS_ROOT / PRETRAINED["run_name"] / "summary.json"
    summary.write_text(summary.read_text().replace("_at_start", "_random_network"))

    assert pretrain(script, clinic, "--laterals").stdout == trained.stdout
    other = pretrain(script, clinic)  # which would leave laterals out, where the first version took them
    assert other.returncode == 1 and "laterals (true there, false now)" in other.stderr
    audit = script(AUDIT, "--checkpoints", TRIAL, "--run-name", f"audit/{NAME}", "--threads", "1")
    assert audit.returncode == 0, audit.stderr
    tested = script(TEST, "--runs", TRIAL)
    assert tested.returncode == 1 and "was trained under the earlier protocol" in tested.stderr
