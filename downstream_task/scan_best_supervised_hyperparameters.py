"""Which learning rate, weight decay, batch size, number of epochs, flip and crop? A search over supervised training.

    python downstream_task/scan_best_supervised_hyperparameters.py
    python downstream_task/scan_best_supervised_hyperparameters.py --dataset covid \\
        --num-trials 55 --run-name search/covid --encoder random
    python downstream_task/scan_best_supervised_hyperparameters.py --storage mysql://user@host/optuna --num-trials 200

Optuna (TPE after ten random trials, median pruner) maximises the validation score of a fine-tuning. The study is
runs/<run_name>/study.db, or in a database that several machines share. runs/<run_name>/ holds summary.csv (one row per
trial), best.json (for `trained_vs_no_trained_compare.py --from`) and figures/search.png; trials keep no weights. 55
trials take minutes on two cores by default. The same command goes on, with a new trial in place of one that was
stopped; a larger num_trials adds trials; several processes may share one.
"""

from typing import Annotated, Any

from downstream_task.shared_keys import DATA, FILES, MACHINE, TARGETS
from utils.scripts import command, flags, run_script

config: dict[str, Any] = {
    # data
    **DATA,  # dataset_loader/data_keys.py: dataset, data_root, split_seed, ...
    **TARGETS,  # downstream_task/shared_keys.py: findings, uncertain, blank, class_weights
    "fold": 0,  # 0 to 4: the fifth of the images that is held out as the test part, where the data do not name one
    # run
    "run_name": "search/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "random_seed": 0,  # of the search, the labels and the weights
    "num_trials": 55,  # in all, with those of earlier calls
    "storage": "",  # where optuna keeps the study: any database URL that it takes; "" is study.db in the run's folder
    # network
    "encoder": "random",  # "random" | "imagenet" | "imagenet:FILE" | "shared" | a file of weights
    "trainable": "all",  # "all", "fc", or blocks with the head, such as "layer3-4+fc"
    "backbone": "resnet18",  # torchvision's name, such as densenet121, or timm/NAME
    "in_channels": 1,  # 1 (gray) | 3
    "allow_seen": False,  # True: take an encoder that has seen held-out images, and say so in every result
    # what is searched, on a log scale for lr and weight decay; flip and crop are on or off
    "lr_range": [1e-4, 1e-2],  # smallest and largest learning rate
    "weight_decay_range": [1e-6, 1e-2],  # smallest and largest weight decay
    "epochs_range": [4, 16],  # fewest and most passes over the labelled images, each a whole schedule
    "batch_sizes": [16, 32, 64, 96],  # batch sizes to choose from
    # training
    "num_labels": 300,  # labels to learn from
    "img_res": 32,  # pixels per side of what the network sees
    "head": "zeros",  # starts from the linear "probe" (LP-FT) | "zeros"
    "optimizer": "adam",  # "adam" | "adamw" | "sgd"
    "backbone_lr_factor": 1.0,  # the backbone learns at this share of the head's rate
    **MACHINE,  # downstream_task/shared_keys.py: precision, device, threads, jobs
}

# What changes when `dataset` is not a phantom; flags win over both.
real_xrays: dict[str, Any] = {
    "encoder": "imagenet",  # downloaded once, 19 MB; without a network imagenet:FILE, or random
    "backbone": "timm/tf_efficientnet_lite0",
    "img_res": 128,
    "epochs_range": [5, 30],
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__, *FILES, real_xrays=real_xrays)  # before the slow imports

import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from dataset_loader.xrays import FoldConfig, XRays, open_xrays
from downstream_task.classifier import Trainable
from downstream_task.features import FEATURES
from downstream_task.finetuning import EVALUATIONS, FinetuneConfig, Head, finetune, labelled_subset
from downstream_task.targets import TargetConfig, check_learnable, read_targets
from self_sup_classes.backbones import BackboneName, Channels
from self_sup_classes.initialisation import start_from, weights_hashes
from self_sup_classes.provenance import check_unseen
from utils import plots
from utils.config import (
    PACE,
    PLACES,
    VERSION,
    Count,
    Distinct,
    Natural,
    NotNegative,
    UserError,
    as_dict,
    bound,
    differences,
    part_of,
    up_to_date,
)
from utils.hardware import Precision, prepare
from utils.jobs import JobsConfig, with_jobs
from utils.logging_utils import Run
from utils.optimisation import BatchSize, Optimizer
from utils.scripts import progress_bar
from utils.seeds import mixed_seed
from utils.sweeps import errors_of, with_reasons
from utils.wording import metric_name

RECIPES = {(False, False): "none", (True, False): "supervised", (False, True): "crop", (True, True): "supervised+crop"}
RANDOM_START = 10  # trials before TPE replaces random draws, and before a trial may be pruned
LOG_PARAMETERS = ("lr", "weight_decay")
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
span = bound(
    lambda ends: len(ends) == 2 and 0 < ends[0] <= ends[1],
    "expected the smallest and the largest value, both above 0",
)
network = bound(
    lambda encoder: not encoder.startswith(FEATURES), "expected a network; a table of features can only be probed"
)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(FoldConfig, TargetConfig, JobsConfig):
    """The config above, checked."""

    random_seed: Natural
    num_trials: Count
    storage: str
    encoder: Annotated[str, network]
    trainable: Trainable
    backbone: BackboneName
    in_channels: Channels
    allow_seen: bool
    lr_range: Annotated[list[float], span]
    weight_decay_range: Annotated[list[float], span]
    epochs_range: Annotated[list[int], span]
    batch_sizes: Distinct[BatchSize]
    num_labels: Natural
    head: Head
    optimizer: Optimizer
    backbone_lr_factor: NotNegative
    precision: Precision

    @property
    def trials(self) -> int:
        """Return how many there are at most."""
        return self.num_trials


def main(config: SearchConfig) -> None:
    """Search, draw, print the winner ready to paste."""
    own = {key: value for key, value in as_dict(config).items() if key != "num_trials"}
    run = Run(config.run_name, own, "search", keys_of=SearchConfig)
    xrays = open_xrays(config, prepare(config.device, config.threads))
    labels = count_labels(config, xrays)
    run.start(alone=False, data=xrays.facts(), weights=weights_hashes([config.encoder]))
    identity = {"version": VERSION, **own, "split": xrays.split_hash}
    study = open_study(config.storage, config.run_name, run.folder, identity)
    ended = len(study.get_trials(states=ENDED))
    with progress_bar(config.num_trials, str(run), ended, unit="trial") as bar:

        def after_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            bar.update()
            run.save_table("summary", trials_table(study))

        study.optimize(
            lambda trial: train(trial, config, xrays),
            n_trials=max(0, config.num_trials - ended),
            catch=(Exception,),  # a trial that fails is recorded and the others continue
            callbacks=[after_trial, optuna.study.MaxTrialsCallback(config.num_trials, states=ENDED)],
        )
    conclude(study, config, labels, xrays, run)


def train(trial: optuna.Trial, config: SearchConfig, xrays: XRays) -> float:
    """Fine-tune with the settings that the study draws; return the score of the last weights on validation."""
    trial.study.sampler = sampler_of(config.random_seed, trial.number)
    params = {
        "lr": trial.suggest_float("lr", *config.lr_range, log=True),
        "weight_decay": trial.suggest_float("weight_decay", *config.weight_decay_range, log=True),
        "batch_size": trial.suggest_categorical("batch_size", config.batch_sizes),
        "epochs": trial.suggest_int("epochs", *config.epochs_range),
        "flip": trial.suggest_categorical("flip", [True, False]),
        "crop": trial.suggest_categorical("crop", [True, False]),
    }
    chosen = finetuning(config, settings(params), f"trial_{trial.number:03d}")

    def report(epoch: int, score: float) -> None:
        trial.report(score, epoch)
        if epoch < EVALUATIONS and trial.should_prune():
            raise optuna.TrialPruned

    run = Run(chosen.run_name, chosen, "trial")
    try:
        finetune(chosen, xrays, run, show_progress=False, after_evaluation=report)
    except optuna.TrialPruned:
        raise
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        trial.set_user_attr("error", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        raise
    finally:  # a trial that is stopped is not resumed: the next call draws another one in its place
        run.drop_checkpoint()
        run.unlock()
    assert run.summary is not None
    return run.summary["score"]


def settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a fine-tuning that a trial's parameters stand for."""
    return {
        "lr": params["lr"],
        "optimizer_weight_decay": params["weight_decay"],
        "batch_size": params["batch_size"],
        "epochs": params["epochs"],
        "recipe": RECIPES[params["flip"], params["crop"]],
    }


def finetuning(config: SearchConfig, chosen: Mapping[str, Any], name: str) -> FinetuneConfig:
    """Return the config of a trial's fine-tuning."""
    shared = {**part_of(config, FinetuneConfig), "run_name": f"{config.run_name}/{name}"}
    fixed = {"method": "finetune", "label_draw": 0, "min_steps": 1, "batch_norm": "train", "keep_weights": False}
    fixed |= {"arm": config.encoder.partition(":")[0], "way": config.head, "start": 0}
    return FinetuneConfig(**shared, **chosen, **fixed)


def count_labels(config: SearchConfig, xrays: XRays) -> int:
    """Return how many labels the trials have; UserError if they or the encoder cannot be used."""
    targets = read_targets(xrays, config)
    train = labelled_subset(xrays, targets, config.num_labels, 0, config.split_seed)
    check_learnable(targets, {"the labelled subset": train, "the validation part": xrays.indices("val")})
    start = start_from(config.encoder, config.backbone, config.in_channels, config.random_seed)
    check_unseen(start.provenance, xrays, config.allow_seen, config.encoder)
    return len(train)


def conclude(study: optuna.Study, config: SearchConfig, labels: int, xrays: XRays, run: Run) -> None:
    """Write the table, the winner and the figure; print the winner. UserError if trials failed."""
    table = trials_table(study)
    run.save_table("summary", table)
    states = table["state"].tolist()
    counts = {state: states.count(state) for state in ("complete", "pruned", "failed")}
    failed = errors_of(table, table["trial"].tolist())
    if not counts["complete"]:
        raise UserError(f"no trial in {run} was completed: {with_reasons(failed) or 'all were pruned'}.")
    chosen = {**settings(study.best_trial.params), "optimizer": config.optimizer}
    way = {"head": config.head, "backbone_lr_factor": config.backbone_lr_factor}
    best = {**chosen, **way}
    run.save_json("best", {"finetuning": chosen, **way})
    metric, shares = read_targets(xrays, config).metric, importances(study)
    facts = {"synthetic": xrays.synthetic, "metric": metric, "labels": labels, "score": study.best_value}
    run.finish({**facts, "best": best, "importances": shares, **counts})

    shown = f"{metric_name(metric)} on validation"
    title = plots.marked(f"Search over supervised training, {labels:,} labels", xrays.synthetic)
    run.save_figure("search", search_figure(table, shares, shown, title))
    print(f"\n{len(table)} trials, {counts['pruned']} pruned; best {shown}, chosen among them: {study.best_value:.3f}")
    print("\n".join(f'    "{key}": {json.dumps(value)},' for key, value in best.items()))
    print(f"\ntable, best.json and figure   {run}/")
    where = {key: getattr(config, key) for key in DATA}
    use = command("downstream_task/trained_vs_no_trained_compare.py", where, DATA)
    print(f"next   {use} --from {run}/best.json")
    print("       it sets lr for every arm; to set it for this kind of start alone, change LEARNING_RATES there")
    if failed:
        raise UserError(f"{len(failed)} of {len(table)} trials failed: {with_reasons(failed)}.")


def open_study(storage: str, name: str, folder: Path, identity: dict[str, Any]) -> optuna.Study:
    """Return the study `name`, to be maximised, in the database `storage`, "" for `folder`/study.db.

    Raises UserError if it cannot be opened, or has another identity (plain JSON values that all its processes share).
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    where = storage or f"sqlite:///{folder / 'study.db'}"
    try:
        study = optuna.create_study(
            storage=where,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=RANDOM_START, n_warmup_steps=1, interval_steps=1, n_min_trials=1
            ),
        )
        known = study.user_attrs.get("config", identity)
        study.set_user_attr("config", known)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the study in {where} cannot be opened ({str(error).splitlines()[0]}); restore it, wait if it is busy, or "
            "give another --storage."
        ) from error
    there = {**known, **up_to_date(SearchConfig, known)}
    if differences({key: there.get(key) for key in identity}, identity, leave_out=(*PLACES, *PACE, "version")):
        raise UserError(f"the study {name!r} in {where} has another config or other images; choose another run_name.")
    return study


def sampler_of(seed: int, number: int) -> optuna.samplers.TPESampler:
    """Return what draws the values of a trial: each has its own stream, whichever process it falls to."""
    return optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_START,
        n_ei_candidates=24,
        seed=mixed_seed("search", seed, number) % 2**32,
        multivariate=False,  # as are the next, the default of optuna 4.9, which 5.0 has changed
        group=False,
        constant_liar=False,
    )


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial that ended or failed: trial, its parameters, score, state, error or "".

    The score is that of the last weights, of a pruned trial the last that was measured, and blank for a failed one.
    """
    return pd.DataFrame(
        {
            "trial": trial.number,
            **trial.params,
            "score": np.nan if trial.value is None else trial.value,
            "state": "failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
            "error": trial.user_attrs.get("error", ""),
        }
        for trial in study.get_trials(states=(*ENDED, TrialState.FAIL))
    )


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the share of the score's variance that each parameter explains (fANOVA, Hutter et al. 2014), or {}."""
    scores = [trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])]
    if len(scores) < RANDOM_START or len(set(scores)) < 2:
        return {}
    seed = mixed_seed("importances") % 2**32
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=64, max_depth=64, seed=seed)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def search_figure(table: pd.DataFrame, shares: Mapping[str, float], metric: str, title: str) -> Figure:
    """Draw the score over the trials, and over each parameter, with the share of its variance that this explains.

    table  as trials_table returns it
    """
    names = [str(name) for name in table if name not in ("trial", "score", "state", "error")]
    figure = Figure(figsize=(2.2 * len(names), 8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    mosaic: Any = [["trial"] * len(names), names]
    axes = figure.subplot_mosaic(mosaic, sharey=True)
    for name, ax in axes.items():
        for state, colour, marker in (("complete", plots.BLUE, "o"), ("pruned", plots.ORANGE, "x")):
            rows: Any = table.loc[table["state"] == state].sort_values(name)
            values = rows[name].map({True: "on", False: "off"}) if name in ("flip", "crop") else rows[name]
            ax.scatter(values, rows["score"], color=colour, marker=marker, s=18, label=state)
        explains = f", explains {shares[name]:.0%}" if name in shares else ""
        ax.set_xlabel(f"{name}{explains}")
        ax.grid(alpha=0.3)
        if name in LOG_PARAMETERS:
            ax.set_xscale("log")
    best = table.loc[table["state"] == "complete"]
    axes["trial"].step(
        best["trial"], best["score"].cummax(), where="post", color=plots.BLACK, linewidth=1, label="best"
    )
    axes["trial"].set_ylabel(metric)
    axes["trial"].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run_script(with_jobs(main), SearchConfig, config)
