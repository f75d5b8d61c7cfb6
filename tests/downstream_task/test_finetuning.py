"""finetune(config): frozen parts, refused configs, files on disk, learning rates, resuming."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from finetuning_config import finetuning_config
from sklearn.metrics import roc_auc_score

from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT
from dataset_loader.xrays import open_xrays
from downstream_task import finetuning
from downstream_task.classifier import Classifier
from downstream_task.finetuning import engine_config, labelled_subset
from downstream_task.targets import read_targets
from downstream_task.train_on_all_films import AllFilms
from self_sup_classes.backbones import Backbone, save_backbone
from self_sup_classes.initialisation import random_backbone
from self_sup_classes.provenance import Provenance, provenance_of
from self_sup_classes.weights import read_state_dict
from utils import hardware, logging_utils
from utils.config import UserError
from utils.load_tb_logs import read_scalars

pytestmark = pytest.mark.usefixtures("narrow")

SMALL = {
    **{"img_res": 32, "store_res": 32, "batch_size": 16, "min_steps": 4, "epochs": 0},
    **{"num_labels": 40, "run_name": "run"},
}
Finetune = Callable[..., logging_utils.Run]


@pytest.fixture
def finetune(phantoms: Path, tmp_path: Path) -> Finetune:
    """finetune() of the small config with changes; its runs lie in this test's folder."""

    def run(after_evaluation: Callable[[int, float], None] = lambda epoch, score: None, **changes: Any) -> Any:
        config = finetuning_config(**{**SMALL, "data_root": str(phantoms / COVID_ROOT), **changes})
        one = logging_utils.Run(config.run_name, config, "fine-tuning", tmp_path / "runs")
        try:
            return finetuning.finetune(config, run=one, show_progress=False, after_evaluation=after_evaluation)
        finally:
            one.unlock()

    return run


def weights(run: logging_utils.Run) -> dict[str, torch.Tensor]:
    return torch.load(run.folder / "resnet18_final_state_dict.pt", weights_only=True)


def part(run: logging_utils.Run, name: str) -> Any:
    table: Any = pd.read_csv(run.folder / "predictions.csv")
    return table[table["part"] == name].reset_index(drop=True)


@pytest.mark.usefixtures("torchvisions")
def test_a_finished_run_holds_predictions_and_the_last_weights(finetune: Finetune) -> None:
    run = finetune(fold=2, arm="a", way="b", label_draw=1)
    assert run.summary is not None and run.summary["labels"] == 40
    split = pd.read_csv(run.folder / "split.csv")
    everything = pd.read_csv(run.folder / "predictions.csv")
    known = everything[["fold", "draw", "arm", "way", "labels", "start"]].drop_duplicates()
    assert known.to_numpy().tolist() == [[2, 1, "a", "b", 40, 0]]
    for name in ("val", "test"):
        assert part(run, name)["file"].tolist() == split["file"][split["part"] == name].tolist()
    assert set(split["fold"][split["part"] == "test"]) == {2}
    np.testing.assert_allclose(everything.filter(like="p ").sum(axis=1), 1, atol=1e-6)
    predictions = part(run, "val")
    names = [column[2:] for column in predictions.filter(like="p ")]
    called = np.array(names)[predictions.filter(like="p ").to_numpy().argmax(1)]
    recalls = [(called[predictions["label"] == name] == name).mean() for name in names]
    assert run.summary["score"] == pytest.approx(np.mean(recalls))
    assert run.summary["score"] == pytest.approx(run.rows[-1]["val/balanced_accuracy"])
    last = read_scalars(run.folder)[0].query("tag == 'final/balanced_accuracy'")
    np.testing.assert_allclose(last["value"], [run.summary["score"]], rtol=1e-6)
    assert weights(run)["fc.weight"].shape == (4, 512)
    assert [path.name for path in run.folder.glob("*.pt")] == ["resnet18_final_state_dict.pt"]
    before = (run.folder / "summary.json").read_bytes()
    assert finetune(fold=2, arm="a", way="b", label_draw=1).summary == run.summary
    assert (run.folder / "summary.json").read_bytes() == before
    thrifty = finetune(run_name="thrifty", keep_weights=False, method="linear")
    assert not list(thrifty.folder.glob("*.pt")) and (thrifty.folder / "predictions.csv").exists()


def test_a_killed_fine_tuning_resumes_to_the_same_bits(finetune: Finetune) -> None:
    small = {"min_steps": 4, "head": "zeros"}

    def kill(epoch: int, score: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    whole = finetune(run_name="whole", **small)
    with pytest.raises(KeyboardInterrupt):
        finetune(kill, run_name="killed", **small)
    resumed = finetune(run_name="killed", **small)
    timeless = [{key: value for key, value in row.items() if "time" not in key} for row in resumed.rows]
    assert timeless == [{key: value for key, value in row.items() if "time" not in key} for row in whole.rows]
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[key]), key


def test_the_budget_is_fixed_whatever_validation_says(finetune: Finetune, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps are those of the config; the rate rises for a tenth of them, then falls to zero."""
    run = finetune(min_steps=40, lr=1e-3, head="zeros")
    rates = read_scalars(run.folder)[0].query("tag == 'lr'")["value"].tolist()
    assert run.rows[-1]["step"] == 40 and len(run.rows) == 11
    assert max(rates) == pytest.approx(1e-3) and rates[-1] < 1e-4
    with monkeypatch.context() as patched:
        patched.setattr(finetuning, "main_score", lambda values, probabilities: 0.3)
        again = finetune(min_steps=40, lr=1e-3, head="zeros", run_name="again")
    left, right = (pd.read_csv(one.folder / "predictions.csv") for one in (run, again))
    pd.testing.assert_frame_equal(left, right)


@pytest.mark.parametrize(("labels", "steps"), [(1, 25), (400, 25), (416, 26), (1600, 100)])
def test_the_budget_is_passes_over_the_labels_or_more(labels: int, steps: int) -> None:
    config = finetuning_config(min_steps=25, epochs=2, batch_size=32)
    assert config.steps(labels) == steps
    engine = engine_config(config, labels)
    assert engine.num_epochs <= 10 and engine.scheduler == "cosine"


def test_more_training_is_not_stopped_early_and_random_weights_converge(finetune: Finetune) -> None:
    """A constant rate and a patience left random weights at chance, where their baseline was weak."""
    run = finetune(min_steps=200, lr=1e-2, head="zeros", num_labels=0, recipe="none")
    losses = [row["train/loss"] for row in run.rows[1:]]
    assert losses[-1] < losses[0] / 4


def test_the_head_from_the_probe_is_fitted_to_what_training_shows(finetune: Finetune) -> None:
    """On the initial statistics of random weights the loss in train mode was 118 to 19,619 instead of about ln 4."""
    run = finetune(min_steps=1, head="probe", lr=1e-9, num_labels=0, batch_size=128)
    assert run.rows[-1]["train/loss"] < 2


def test_labels_outside_the_subset_change_no_prediction(
    phantoms: Path, finetune: Finetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After split and subsets are drawn, all other labels are garbled: the same bits, from each kind of way."""
    config = finetuning_config(**{**SMALL, "data_root": str(phantoms / COVID_ROOT)})
    xrays = open_xrays(config, torch.device("cpu"), [])
    subset = labelled_subset(xrays, read_targets(xrays, config), 40, 0, 0)
    labels = (xrays.columns.labels + 1) % 4
    labels[subset] = xrays.columns.labels[subset]
    garbled = dataclasses.replace(xrays, columns=dataclasses.replace(xrays.columns, labels=labels))
    for method in ("linear", "spread", "finetune"):
        left = finetune(run_name=f"{method}-left", method=method)
        with monkeypatch.context() as patched:
            patched.setattr(finetuning, "labelled_subset", lambda *_: subset)
            patched.setattr(finetuning, "open_xrays", lambda *_: garbled)
            right = finetune(run_name=f"{method}-right", method=method)
        a, b = (pd.read_csv(run.folder / "predictions.csv") for run in (left, right))
        assert not np.any(a["label"].to_numpy() == b["label"].to_numpy())
        pd.testing.assert_frame_equal(a.drop(columns="label"), b.drop(columns="label"), check_exact=True)


def test_labels_spread_to_train_images_and_to_those_without_a_label(
    phantoms: Path, tmp_path: Path, finetune: Finetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((phantoms / COVID_ROOT).rglob("images/*.png"))
    for number, file in enumerate(files):
        (tmp_path / f"{number:03d}.png").symlink_to(file)
    table = pd.DataFrame({"file": [f"{number:03d}.png" for number in range(0, len(files), 2)]})
    table.assign(label=[file.parts[-3] for file in files[::2]]).to_csv(tmp_path / "labels.csv", index=False)
    own = {"dataset": "folder", "data_root": str(tmp_path), "num_labels": 20}
    run = finetune(**own, method="spread")
    xrays = open_xrays(finetuning_config(**SMALL | own), torch.device("cpu"), [])
    learned, provenance = xrays.image_ids(xrays.pretraining_indices("train")), provenance_of(weights(run))
    assert len(learned) > 120 and provenance is not None
    assert set(map(bytes, provenance.seen)) == set(map(bytes, learned))
    assert len(part(run, "test")) == len(xrays.indices("test"))
    alone = finetune(**own, method="linear", run_name="linear")
    assert not part(run, "test")["p COVID"].equals(part(alone, "test")["p COVID"])
    monkeypatch.setattr(finetuning, "MAX_IMAGES", 20)  # as many as have labels: the graph would grow beyond it
    full = finetune(**own, method="spread", run_name="full")
    assert part(full, "test")["p COVID"].equals(part(alone, "test")["p COVID"])


def test_few_evaluations_few_files_and_no_checkpoint(finetune: Finetune, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 720 validation images a training looks at 500, before it and ten times, and at all of them at its end."""
    looked_at: list[int] = []
    saved: list[object] = []
    look = finetuning.forward_all

    def with_more_to_watch(*arguments: Any) -> AllFilms:
        xrays = open_xrays(*arguments)
        own = {one.name: getattr(xrays, one.name) for one in dataclasses.fields(xrays)}
        return AllFilms(**own, watched=np.tile(xrays.indices("val"), 30))

    monkeypatch.setattr(finetuning, "open_xrays", with_more_to_watch)
    monkeypatch.setattr(finetuning, "forward_all", lambda *args: (looked_at.append(len(args[2])), look(*args))[1])
    monkeypatch.setattr(logging_utils.Run, "save_checkpoint", lambda _, state: saved.append(state))
    run = finetune(min_steps=30, head="zeros", keep_weights=False)
    assert looked_at == [500] * 11 + [720 + len(part(run, "test"))] and len(part(run, "val")) == 720
    assert not saved, "they are written every five minutes and when a signal comes"
    written = {re.sub("tfevents.*", "tfevents", path.name) for path in run.folder.glob("[!.]*")}
    tables = {"config.json", "environment.json", "metrics.csv", "predictions.csv", "summary.json"}
    assert written == {*tables, "events.out.tfevents"}, "split.csv is the comparison's"


def test_fixed_norms_keep_their_statistics_and_train_the_rest(finetune: Finetune, networks: list[Classifier]) -> None:
    start = random_backbone("resnet18", 1, 0).net.state_dict()
    for batch_norm, moves in (("train", True), ("eval", False)):
        finetune(batch_norm=batch_norm, run_name=batch_norm)
        after = networks[-1].net.state_dict()
        assert torch.equal(after["bn1.running_mean"], start["bn1.running_mean"]) != moves
        assert not torch.equal(after["layer1.0.conv1.weight"], start["layer1.0.conv1.weight"])


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Classifier]:
    """Every classifier that is trained during the test, with its last weights."""
    built: list[Classifier] = []

    def placed(classifier: Classifier, device: torch.device) -> Classifier:
        built.append(hardware.placed(classifier, device))
        return built[-1]

    monkeypatch.setattr(finetuning, "placed", placed)
    return built


def test_the_backbone_learns_at_its_share_of_the_rate(finetune: Finetune, networks: list[Classifier]) -> None:
    for factor in (0.0, 0.1, 1.0):  # the second step is the first to move the backbone: the head starts from zeros
        finetune(backbone_lr_factor=factor, head="zeros", min_steps=2, run_name=f"{factor}")
    start = random_backbone("resnet18", 1, 0).net.state_dict()["conv1.weight"]
    never, slowly, fully = ((one.net.conv1.weight - start).abs().max().item() for one in networks)  # type: ignore[union-attr,operator]
    assert never == 0
    assert fully == pytest.approx(10 * slowly, rel=0.05)
    assert all(one.head.weight.any() for one in networks)


def test_frozen_parts_do_not_move_whether_computed_once_or_each_time(
    finetune: Finetune, networks: list[Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = {"trainable": "layer4+fc", "head": "zeros"}
    finetune(**frozen, recipe="supervised", run_name="views")
    once = finetune(**frozen, recipe="none", run_name="once")
    monkeypatch.setattr(finetuning, "MAX_ACTIVATIONS", 0)
    each_time = finetune(**frozen, recipe="none", run_name="each_time")
    start = random_backbone("resnet18", 1, 0).net.state_dict()
    for network in networks:
        for key, value in network.net.state_dict().items():
            stays = key.split(".")[0] in ("conv1", "bn1", "layer1", "layer2", "layer3")
            assert key.startswith("fc") or torch.equal(value, start[key]) == stays, key
    losses = [[row["train/loss"] for row in run.rows[1:]] for run in (once, each_time)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    for key, value in networks[1].state_dict().items():
        torch.testing.assert_close(value, networks[2].state_dict()[key], rtol=1e-3, atol=1e-4)


def test_a_contaminated_encoder_is_refused_before_anything_is_written(
    finetune: Finetune, phantoms: Path, tmp_path: Path
) -> None:
    xrays = open_xrays(finetuning_config(**SMALL, data_root=str(phantoms / COVID_ROOT)), torch.device("cpu"))
    seen = Provenance("abc", xrays.image_ids(xrays.indices("all")))
    save_backbone(tmp_path / "encoder.pt", Backbone("resnet18", 1), seen)
    encoder = str(tmp_path / "encoder.pt")
    with pytest.raises(UserError, match="was trained on 68 of the 68 images"):
        finetune(encoder=encoder, method="linear")
    assert not (tmp_path / "runs").exists()
    run = finetune(encoder=encoder, method="linear", allow_seen=True)
    assert run.summary is not None
    assert run.summary["transductive"]


def test_a_network_of_unknown_origin_stays_one_after_fine_tuning(finetune: Finetune, tmp_path: Path) -> None:
    torch.save(Backbone("resnet18", 1).net.state_dict(), tmp_path / "unknown.pt")
    with pytest.raises(UserError, match="does not say which images"):
        finetune(encoder=str(tmp_path / "unknown.pt"), method="linear")
    run = finetune(encoder=str(tmp_path / "unknown.pt"), method="linear", allow_seen=True)
    assert provenance_of(read_state_dict(run.folder / "resnet18_final_state_dict.pt")) is None
    known = finetune(method="linear", run_name="known")
    provenance = provenance_of(read_state_dict(known.folder / "resnet18_final_state_dict.pt"))
    assert provenance is not None
    assert known.summary is not None
    assert len(provenance.seen) == known.summary["labels"]


def test_a_classifier_from_elsewhere_is_scored_as_it_is(finetune: Finetune, tmp_path: Path) -> None:
    trained = finetune(method="linear", run_name="trained")
    state = {name: tensor for name, tensor in weights(trained).items() if tensor.dtype != torch.uint8}
    torch.save(state, tmp_path / "elsewhere.pt")
    elsewhere: dict[str, Any] = {"method": "as_is", "encoder": str(tmp_path / "elsewhere.pt"), "allow_seen": True}
    adopted = finetune(**elsewhere, run_name="adopted")
    a, b = (pd.read_csv(run.folder / "predictions.csv").drop(columns="labels") for run in (adopted, trained))
    pd.testing.assert_frame_equal(a, b, rtol=1e-5)
    assert (adopted.folder / "split.csv").read_text() == (trained.folder / "split.csv").read_text()
    assert trained.summary and adopted.summary
    assert adopted.summary["score"] == trained.summary["score"] and adopted.summary["labels"] == 0
    with pytest.raises(UserError, match="does not fit"):
        finetune(**elsewhere, run_name="x", backbone="resnet34")


def test_findings_are_scored_by_their_mean_auroc(finetune: Finetune, phantoms: Path) -> None:
    root, findings = str(phantoms / CHEXPERT_ROOT), ["Lung Opacity", "Cardiomegaly"]
    run = finetune(dataset="chexpert", data_root=root, findings=findings, num_labels=0, method="linear")
    assert run.summary is not None
    assert (run.summary["metric"], run.summary["multilabel"]) == ("auroc", True)
    predictions = part(run, "val")
    known = [predictions.dropna(subset=f"label {name}") for name in findings]
    areas = [roc_auc_score(t[f"label {n}"], t[f"p {n}"]) for t, n in zip(known, findings, strict=True)]
    assert run.summary["score"] == pytest.approx(np.mean(areas))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_labels": 3}, "3 labels are asked for"),
        ({"num_labels": 1000}, "1,000 labels are asked for"),
        ({"encoder": "no/such.pt"}, "there is no file"),
        ({"trainable": "layer5"}, "trainable is 'layer5'"),
        ({"batch_norm": "evaluate"}, "did you mean 'eval'"),
        ({"img_res": 64}, "store_res"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    finetune: Finetune, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        finetune(**changes)
    assert not (tmp_path / "runs").exists()
