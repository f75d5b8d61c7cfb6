"""Wrong flags of every script: one sentence, before anything is read, written or computed."""

import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest

from utils.config import Config, UserError, make_config, repo_path
from utils.scripts import parse_flags

KINDS = {
    "selfsup_task.train_barlow_twins": "PretrainConfig",
    "selfsup_task.scan_optimal_lr": "RatesConfig",
    "selfsup_task.scan_best_hyperparameters": "GridConfig",
    "selfsup_task.scan_best_transformations": "RecipesConfig",
    "selfsup_task.check_bt_resources": "ResourcesConfig",
    "downstream_task.trained_vs_no_trained_compare": "CompareConfig",
    "downstream_task.train_models_with_frozen_parts": "FrozenPartsConfig",
    "downstream_task.scan_best_supervised_hyperparameters": "SearchConfig",
    "downstream_task.confusion_matrix": "ScoreConfig",
    "downstream_task.train_on_all_films": "FinalConfig",
    "downstream_task.predict": "PredictConfig",
    "interpretability.grad_cam": "MapsConfig",
    "interpretability.shortcut_audit": "AuditConfig",
    "utils.make_report": "ReportConfig",
    "selfsup_task.share_weights": "ShareConfig",
}
# keys that a scan gives itself; each trial has its own
OWN = {"scheduler": "constant", "warmup_epochs": 0, "barlow_lambda": 0.0, "projector_dims": [2], "recipe": "none"}
OWN |= {"random_seed": 0}
OWN |= {"backbone": "resnet18", "in_channels": 1, "img_res": 32, "store_res": 0, "batch_size": 64, "also": []}
OWN |= {"exclude": [], "start": "random", "num_epochs": 1}
TRAIN, SCAN, SEARCH = "train_barlow_twins", "scan_best_transformations", "scan_best_supervised_hyperparameters"
COMPARE, FROZEN, RATES = "trained_vs_no_trained_compare", "train_models_with_frozen_parts", "scan_optimal_lr"


def config_of(script: str, *arguments: str) -> Config:
    """The checked config of a script that is called with these arguments."""
    name = next(name for name in KINDS if name.endswith(f".{script}"))
    module = importlib.import_module(name)
    kind = getattr(module, KINDS[name])
    values = parse_flags(module.config, {}, "", arguments, getattr(module, "real_xrays", {}))
    own = {key: value for key, value in OWN.items() if key in kind.__dataclass_fields__}
    return make_config(kind, {**own, **values})


@pytest.mark.parametrize("script", [name.rpartition(".")[2] for name in KINDS])
def test_the_defaults_are_accepted_and_impossible_values_are_not(script: str) -> None:
    config = vars(config_of(script))
    impossible = {int: [str(10**30), str(10**400)], float: ["nan", "inf"], str: ["x" * 5000, "a\udcff"]}
    for key, value in config.items():
        flag = f"--{key.replace('_', '-')}"
        for word in impossible.get(type(value), []) if key not in OWN else []:
            with pytest.raises(UserError) as refused:
                config_of(script, flag, word)
            assert str(refused.value).startswith(f"{key} is ")
    if "threads" in config:
        for number in ("-1", "1000000"):
            with pytest.raises(UserError, match=r"threads is .*; it must be from 0 to 1024"):
                config_of(script, "--threads", number)


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        (TRAIN, "--projector-dims 1", "expected widths from 2 to"),
        (TRAIN, "--projector-dims 512 1000000000", "expected widths from 2 to"),
        (TRAIN, "--projector-dims", "expected widths from 2 to"),
        (TRAIN, "--backbone timm/tf_efficientnet_lit0", "timm does not have; did you mean 'tf_efficientnet_lite0'"),
        ("predict", "--in-channels 2", "in_channels is 2; an X-ray has 1, a network for colour images 3"),
        (TRAIN, "--precision float", "did you mean 'float32'"),
        (TRAIN, "--img-res 1", "img_res is 1; it must be from 8 to 4096"),
        (TRAIN, "--lr 0", "lr is 0.0; it must be above 0"),
        (TRAIN, "--views 1000000", "views is 1000000; it must be from 2 to 64"),
        (TRAIN, "--micro-batch-size 1", "micro_batch_size is 1; it must be 0 or a divisor, larger than 1, of the 64"),
        (TRAIN, "--micro-batch-size 20", "micro_batch_size is 20; it must be 0 or a divisor"),
        (TRAIN, "--random-seed -3", "random_seed is -3; it must be at least 0"),
        (SCAN, "--finetune.num-labels -1", "num_labels is -1; it must be at least 0"),
        (SCAN, "--fold 5", "fold is 5; there are the folds 0 to 4"),
        (SCAN, "--finetune.lr 0", "lr is 0.0; it must be above 0"),
        (SCAN, "--finetune.backbone-lr-factor nan", "backbone_lr_factor is nan"),
        (RATES, "--range-steps 1000000000000", "range_steps is 1000000000000; it must be from 10"),
        (RATES, "--lr-to 1e-9", "lr_to is 1e-09; it must be from"),
        (COMPARE, "--random-seed -3", "random_seed is -3; it must be at least 0"),
        (COMPARE, "--num-labels", "num_labels is empty"),
        (COMPARE, "--num-labels 20 al", "num_labels holds 'al'; expected numbers, shares such as 0.1, or"),
        (COMPARE, "--num-labels 0 20", "num_labels holds 0;"),
        (COMPARE, "--num-labels 1.5", "num_labels holds 1.5;"),
        (COMPARE, "--num-labels nan", "num_labels "),
        (COMPARE, "--num-labels 20 20", "give each value once"),
        (COMPARE, "--folds 0 1 5 --draws 3", "folds is 5; there are the folds 0 to 4"),
        (COMPARE, "--folds 0 1 --draws 3", "give draws a multiple of 2"),
        (COMPARE, "--draws 1000000000", "draws is 1000000000; it must be from 1 to 1000"),
        (COMPARE, "--ways liner", "did you mean 'linear'"),
        (COMPARE, "--ways linear --optimizer adm", "did you mean 'adam'"),
        (COMPARE, "--min-steps 0", "min_steps is 0; it must be at least 1"),
        (COMPARE, "--epochs -1", "epochs is -1"),
        (FROZEN, "--random-seed -3", "random_seed is -3; it must be at least 0"),
        (FROZEN, "--lr 0", "lr is 0.0; it must be above 0"),
        (FROZEN, "--num-labels -1", "num_labels is -1"),
        (SEARCH, "--batch-sizes 0", "batch_sizes is 0; it must be at least 2"),
        (SEARCH, "--batch-sizes 16 -1", "batch_sizes is -1; it must be at least 2"),
        (SEARCH, "--lr-range 1e-3", "lr_range is [0.001]; expected the smallest and the largest value, both above 0"),
        (SEARCH, "--encoder features:x.csv", "encoder is features:x.csv; expected a network"),
        (SEARCH, "--head zero", "did you mean 'zeros'"),
        (SEARCH, "--lr-range 1e-3 inf", "lr_range is inf"),
        ("grad_cam", "--method grad_cm", "did you mean 'grad_cam'"),
        (FROZEN, "--parts fc layer5+fc", "parts is 'layer5+fc', which does not exist; did you mean 'layer4+fc'"),
        ("predict", "--classes a a --img-res 16", "give each value once"),
        ("predict", "--img-res -3", "img_res is -3; it must be 0, or from 8 to 4096"),
        (SEARCH, "--random-seed -3", "random_seed is -3; it must be at least 0"),
    ],
)
def test_a_wrong_flag_is_one_sentence(script: str, arguments: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        config_of(script, *shlex.split(arguments))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_paths_that_cannot_be_resolved_are_one_sentence(script: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"~nobody_here/x cannot be resolved"):
        repo_path("~nobody_here/x")
    (tmp_path / "runs").mkdir()
    for output in ("/proc/x", "~nobody_here/x", str(Path(__file__))):
        done = script("utils/make_report.py", "--runs", str(tmp_path / "runs"), "--output", output)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
