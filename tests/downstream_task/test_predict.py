"""predict.py: calibrated probabilities for tables, folders and state_dicts; inputs that cannot be used."""

import importlib
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from finetuning_config import finetuning_config
from PIL import Image
from radiographs import write_radiograph
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logit, softmax

from dataset_loader.phantoms.dataset import COVID_ROOT
from downstream_task.clinic import export
from downstream_task.clinic.films import PATH
from downstream_task.finetuning import finetune
from utils.config import RUNS_ROOT

PREDICT = "downstream_task/predict.py"


@pytest.fixture(scope="module")
def trained(phantoms: Path) -> Path:
    """A finished linear probe under runs/."""
    small = {"method": "linear", "img_res": 32, "num_labels": 40, "run_name": "predict/trained", "threads": 1}
    return finetune(finetuning_config(**small, data_root=str(phantoms / COVID_ROOT))).folder


@pytest.fixture
def predicted(trained: Path, script: Any) -> Any:
    """predicted(name, *flags): both tables and the output of a call of the script; asserts that it succeeds."""

    def run(name: str, *flags: str) -> tuple[pd.DataFrame, pd.DataFrame, str]:
        done = script(PREDICT, "--run-name", f"predict/{name}", "--threads", "1", *flags)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.split()[-1])
        assert folder.parent == RUNS_ROOT / "predict" and folder.name.startswith(name)
        read = partial(pd.read_csv, keep_default_na=False)
        return read(folder / "predictions.csv"), read(folder / "rejected.csv"), done.stdout

    return run


def likeliest_temperature(val: pd.DataFrame) -> tuple[float, np.ndarray]:
    """The temperature and log probabilities [M, C] of a table of predictions, by a general minimiser."""
    log_p = np.log(val.filter(like="p ").to_numpy())
    rows, labels = np.arange(len(val)), pd.Categorical(val["label"]).codes

    def loss(log_t: float) -> float:
        return -log_softmax(log_p / np.exp(log_t), axis=1)[rows, labels].mean()

    found: Any = minimize_scalar(loss, bounds=(-4, 4), method="bounded")
    return float(np.exp(found.x)), log_p


def test_a_table_gets_probabilities_at_the_temperature_of_validation(
    phantoms: Path, trained: Path, predicted: Any, tmp_path: Path
) -> None:
    val: Any = pd.read_csv(trained / "predictions.csv").query("part == 'val'")
    files = [str(phantoms / COVID_ROOT / file) for file in val["file"]]
    (tmp_path / "broken.png").write_bytes(b"not an image")
    table = pd.DataFrame({"file": [*files, "broken.png"], "patient": [f"p{n}" for n in range(len(files) + 1)]})
    table.to_csv(tmp_path / "films.csv", index=False)
    flags = ("--classifier", "runs/predict/trained", "--images", str(tmp_path / "films.csv"))
    found, rejected, printed = predicted("table", *flags)
    temperature, log_p = likeliest_temperature(val)
    assert temperature != pytest.approx(1, rel=0.01)
    np.testing.assert_allclose(found.filter(like="p "), softmax(log_p / temperature, axis=1), atol=1e-3)
    names = np.array([column[2:] for column in found.filter(like="p ")])
    assert all(float(f"{p:.6g}") == p for p in found.filter(like="p ").to_numpy().ravel())
    assert found["predicted"].tolist() == names[log_p.argmax(1)].tolist()
    assert found["file"].tolist() == files
    assert found["patient"].tolist() == table["patient"].tolist()[:-1]
    assert found[PATH].tolist() == files
    assert rejected.to_numpy().tolist() == [["broken.png", str(tmp_path / "broken.png"), "broken", "not an image"]]
    assert "1 files are left out (1 broken)" in printed
    assert "it could learn from" not in printed
    train = pd.read_csv(trained / "split.csv").query("part == 'train'")["file"]
    own = predicted("own", *flags[:2], "--images", str(phantoms / COVID_ROOT / train.iloc[0]))
    assert "1 of them are X-rays that it could learn from" in own[2]
    again = predicted("table", *flags)[2]
    assert again == f"nothing is new since {RUNS_ROOT / 'predict' / 'table'} was written:\n{printed}"
    table.assign(patient="p9").to_csv(tmp_path / "films.csv", index=False)
    assert predicted("table", *flags)[2].split()[-1] == f"{RUNS_ROOT / 'predict' / 'table-2'}/"


def test_the_mean_of_two_classifiers(trained: Path, phantoms: Path, predicted: Any) -> None:
    small = {"method": "linear", "img_res": 24, "num_labels": 60, "run_name": "predict/other", "threads": 1}
    finetune(finetuning_config(**small, data_root=str(phantoms / COVID_ROOT)))
    names, images = ["runs/predict/trained", "runs/predict/other"], str(phantoms / COVID_ROOT / "Normal")
    one, other = (predicted("alone", "--classifier", name, "--images", images)[0] for name in names)
    both, _, printed = predicted("mean", "--classifier", *names, "--images", images)
    expected = (one.filter(like="p ") + other.filter(like="p ")) / 2
    np.testing.assert_allclose(both.filter(like="p "), expected, rtol=2e-5)
    assert "by predict/trained+other" in printed and "each network's temperature, then averaged" in printed


def test_a_folder_by_a_state_dict_from_elsewhere(trained: Path, phantoms: Path, predicted: Any, tmp_path: Path) -> None:
    val: Any = pd.read_csv(trained / "predictions.csv").query("part == 'val'")
    classes = [column[2:] for column in val.filter(like="p ")]
    shutil.copy(trained / "resnet18_final_state_dict.pt", tmp_path / "weights.ckpt")
    flags = ("--classifier", str(tmp_path / "weights.ckpt"), "--img-res", "32", "--classes", *classes)
    found, _, printed = predicted("elsewhere", *flags, "--images", str(phantoms / COVID_ROOT))
    assert "it could learn from" not in printed, "nobody knows"
    assert not found["file"].str.contains("masks").any()
    both = val.merge(found, on="file", suffixes=("", " there"))
    assert len(both) == len(val)
    for name in classes:
        np.testing.assert_allclose(both[f"p {name} there"], both[f"p {name}"], atol=1e-6)
    findings, _, _ = predicted("findings", *flags, "--multilabel", "--images", str(phantoms / COVID_ROOT))
    assert "predicted" not in findings
    first, second = f"p {classes[0]}", f"p {classes[1]}"
    differences = logit(findings[first]) - logit(findings[second])  # of the same logits
    np.testing.assert_allclose(differences, np.log(found[first] / found[second]), atol=5e-5)


def test_a_folder_of_a_clinic_day_by_day(trained: Path, phantoms: Path, predicted: Any, tmp_path: Path) -> None:
    day = tmp_path / "in the morning"
    day.mkdir()
    file = next((phantoms / COVID_ROOT).glob("Normal/images/*.png"))
    gray = np.asarray(Image.open(file))
    shutil.copy(file, day / "plain.png")
    write_radiograph(day / "IM0001", gray, bits=8, PatientID="0715", AccessionNumber="A77", ViewPosition="PA")
    write_radiograph(day / "IM0002", gray, bits=8, ViewPosition="LATERAL")
    write_radiograph(day / "IM0003", gray, bits=8, Modality="CT")
    write_radiograph(day / "report.dcm", gray, bits=8, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22")
    Image.fromarray(gray).save(day / "plain_mask.png")
    (day / "cut.png").write_bytes(file.read_bytes()[:-100])
    flags = ("--classifier", "runs/predict/trained", "--images", str(day))
    found, rejected, printed = predicted("daily", *flags)
    rows = found.set_index("file")
    assert rows.index.tolist() == ["IM0001", "plain.png"]
    assert rows.loc["IM0001", ["patient", "accession", "view"]].tolist() == ["0715", "A77", "PA"]
    assert rows.loc["plain.png", ["patient", "accession", "view"]].tolist() == ["", "", ""]
    assert rows.loc["IM0001", PATH] == str(day / "IM0001")
    kinds = {"IM0002": "lateral", "IM0003": "no X-ray", "report.dcm": "no X-ray", "plain_mask.png": "no X-ray"}
    assert dict(zip(rejected["file"], rejected["kind"], strict=True)) == {**kinds, "cut.png": "broken"}
    assert (rejected["reason"] != "").all()
    assert "5 files are left out (3 no X-ray, 1 lateral, 1 broken)" in printed
    shutil.copy(file, day / "new.png")
    found, _, printed = predicted("daily", *flags, "--laterals")
    assert found["file"].tolist() == ["IM0001", "IM0002", "new.png", "plain.png"]
    assert printed.split()[-1] == f"{RUNS_ROOT / 'predict' / 'daily-2'}/"
    hidden, rejected, _ = predicted("hidden", *flags, "--ids", "none")
    assert hidden["file"].tolist() == ["file-1", "file-2", "file-3"] and PATH not in hidden
    assert (hidden[["patient", "accession"]] == "").all(axis=None)
    assert not rejected["file"].isin(kinds).any() and PATH not in rejected


@pytest.mark.parametrize(("method", "known"), [("linear", 0), ("spread", 3)])
def test_films_without_a_label_are_known_where_labels_spread_to_them(
    method: str, known: int, phantoms: Path, predicted: Any, tmp_path: Path
) -> None:
    root, ways = tmp_path / "films", {"method": method, "img_res": 32, "num_labels": 20, "threads": 1}
    files = sorted((phantoms / COVID_ROOT).glob("*/images/*.png"))
    for number, file in enumerate(files):
        folder = root / ("later" if number % 80 == 0 else file.parts[-3])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / f"{number}.png")
    rows = [(file.relative_to(root), file.parent.name) for file in root.glob("*/*.png") if file.parent.name != "later"]
    pd.DataFrame(rows, columns=["file", "label"]).to_csv(root / "labels.csv", index=False)
    name = f"predict/{method}"
    run = finetune(finetuning_config(**ways, dataset="folder", data_root=str(root), run_name=name, ids="hashed"))
    flags = ("--classifier", f"runs/{name}", "--images", str(root / "later"))
    found, _, printed = predicted(f"of-{method}", *flags)
    assert run.summary is not None and len(found) == 3
    assert (f"{known} of them are X-rays that it could learn from" in printed) == (known > 0)
    assert ("it could learn from" in printed) == (known > 0)


def test_answers_that_hardly_differ_are_marked() -> None:
    answers_of: Any = importlib.import_module("downstream_task.predict").answers_of
    network: Any = SimpleNamespace(classes=["a", "b", "c"], multilabel=False)
    found = answers_of(network, np.array([[0.5, 0.42, 0.08], [0.3, 0.1, 0.6], [0.1, 0.44, 0.46]]))
    assert found["predicted"].tolist() == ["a", "c", "c"]
    assert found["close call"].tolist() == ["a or b", "", "c or b"]
    network.multilabel = True
    found = answers_of(network, np.array([[0.46, 0.54, 0.9], [0.1, 0.2, 0.44]]))
    assert found["close call"].tolist() == ["a; b", ""]
    assert "predicted" not in found and found["p c"].tolist() == [0.9, 0.44]


def test_a_network_for_other_programs_lies_in_a_folder_of_its_own(
    trained: Path, phantoms: Path, predicted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_graph", lambda *_: b"the graph")  # test_export.py looks at a real one
    monkeypatch.setattr(export, "NEEDED", ())
    films = str(phantoms / COVID_ROOT / "COVID")
    predicted("exported", "--classifier", "runs/predict/trained", "--images", films, "--onnx")
    files = {path.name: path.read_bytes() for path in (RUNS_ROOT / "predict" / "exported" / "onnx").iterdir()}
    assert set(files) == {"classifier.onnx", "predict_onnx.py", "reference.png", "reference.json"}
    assert files["classifier.onnx"] == b"the graph"
    assert sum(json.loads(files["reference.json"]).values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--images", "nowhere.png"], "does not exist"),
        (["--images", "{tmp}"], "no image below"),
        (["--images", "{tmp}/no_file.csv"], "expected a column file"),
        (["--images", "{tmp}/films.xlsx"], "save its table as CSV"),
        (["--images", "{tmp}/gone.csv"], r"none of the 1 files can be used (1 missing); gone.png: no file is there"),
        (["--classifier", "{tmp}/weights.pt"], "give --classes"),
        (["--classifier", "{tmp}/absent.ckpt", "--classes", "a", "b", "--img-res", "32"], "there is no "),
        (
            ["--classifier", "{tmp}/weights.pt", "--classes", "a", "b", "--img-res", "32"],
            "has 4 outputs, but there are 2",
        ),
        (["--img-res", "64"], "leave out --classes and --img-res"),
    ],
)
def test_wrong_inputs_get_one_sentence(
    flags: list[str], sentence: str, trained: Path, phantoms: Path, script: Any, tmp_path: Path
) -> None:
    (tmp_path / "no_file.csv").write_text("name\nx.png\n")
    (tmp_path / "gone.csv").write_text("file\ngone.png\n")
    shutil.copy(trained / "resnet18_final_state_dict.pt", tmp_path / "weights.pt")
    given = [flag.format(tmp=tmp_path) for flag in flags]
    usual = ["--classifier", "runs/predict/trained", "--images", str(phantoms / COVID_ROOT)]
    done = script(PREDICT, "--run-name", "predict/wrong", *usual, *given)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (RUNS_ROOT / "predict" / "wrong").exists()
