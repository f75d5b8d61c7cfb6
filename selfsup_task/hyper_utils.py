"""What the scans share: a trial is a pretraining, judged by a linear probe and a full fine-tuning on validation."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from dataset_loader.xrays import open_xrays
from downstream_task.finetune_config import BudgetConfig, StartConfig
from downstream_task.finetuning import FinetuneConfig, finetune, labelled_subset
from downstream_task.targets import check_learnable, read_targets
from self_sup_classes.initialisation import start_from
from self_sup_classes.provenance import check_unseen
from selfsup_task.pretraining import PretrainConfig, build_model, partners_of, passes_of, train, twin_step
from utils.config import UserError, as_dict, part_of
from utils.distributed import exclusive_lock
from utils.hardware import placed, prepare
from utils.jobs import JobsConfig
from utils.logging_utils import Run
from utils.sweeps import check_all_finished, check_trial_names, ranked, run_trials
from utils.training_utils import check_batch_size


@dataclass(frozen=True, kw_only=True)
class FinetunePart(BudgetConfig, StartConfig):
    """How a scan fine-tunes: what FinetuneConfig has and the pretraining does not say."""

    num_labels: int


@dataclass(frozen=True, kw_only=True)
class ScanConfig(PretrainConfig, JobsConfig):
    """The keys of all scans, and of their trials; scan_base.py says what each means."""

    finetune: FinetunePart
    keep_all: bool
    only: list[str]
    least_epochs = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrain_on != "train":
            raise UserError(
                f"pretrain_on is {self.pretrain_on!r}, but trials are ranked by validation images, which must be "
                'unseen; set it to "train".'
            )
        finetuning(self, "finetune", "random")  # checks its values

    def pretraining(self) -> PretrainConfig:
        """Return the pretraining of a trial."""
        return PretrainConfig(**{**part_of(self, PretrainConfig), "run_name": f"{self.run_name}/pretrain"})


class Scan:
    """The trials of a scan that are to be run now, on X-rays that are opened once."""

    def __init__(self, config: ScanConfig, trials: Mapping[str, Mapping[str, Any]], lists: Sequence[str]):
        """Prepare the trials {name: the values that it varies}; `lists` are the keys that `trials` was made from.

        With other lists the same folder resumes. Raises UserError, before anything is written, for a config that
        cannot be used, and for a folder that holds a scan or a trial with another config.
        """
        check_trial_names([*trials], config.only)
        self.varied = trials
        varied_keys = {key for values in trials.values() for key in values}
        left_out = {*varied_keys, *lists, "only", "run_name"}
        shared = {key: value for key, value in as_dict(config).items() if key not in left_out}
        self.run = Run(config.run_name, {"varied": [*lists], **shared}, "scan", keys_of=type(config))
        self.trials = {
            name: replace(config, run_name=f"{config.run_name}/{name}", **trials[name])
            for name in config.only or trials
        }
        self.runs = {
            name: Run(
                trial.run_name, {**shared, **trials[name], "run_name": trial.run_name}, "trial", keys_of=type(trial)
            )
            for name, trial in self.trials.items()
        }
        self.xrays = open_xrays(config, prepare(config.device, config.threads, config.deterministic), config.also)
        start = start_from(config.start, config.backbone, config.in_channels, config.random_seed)
        check_unseen(start.provenance, self.xrays, allow_seen=False, encoder=config.start)  # trials are fine-tuned
        part = finetuning(config, "finetune", "random")
        targets = read_targets(self.xrays, part)
        labelled = labelled_subset(self.xrays, targets, part.num_labels, part.label_draw, config.split_seed)
        check_learnable(targets, {"the labelled subset": labelled, "the validation part": self.xrays.indices("val")})
        for trial in self.trials.values():
            check_batch_size(trial.batch_size, len(self.xrays.pretraining_indices("train")))

    def run_trials(self) -> tuple[pd.DataFrame, float]:
        """Run what is not finished; return the finished trials, the best first, and the score of random weights.

        Raises UserError with the failed trials if none is finished.
        """
        self.run.start(alone=False, data=self.xrays.facts())
        self.table = run_trials(self.run, self.runs, self._judge)
        best = ranked(self.table, by="linear")
        if best.empty:
            check_all_finished(self.table, [*self.runs])
        return best, self._random_score()

    def print_results(self, best: pd.DataFrame, random: float) -> None:
        """Print the ranking, and whether it beats random weights; UserError with the trials that failed."""
        print(f"\n{best.to_string(index=False, float_format='{:.3f}'.format)}")
        note = ", synthetic" if self.xrays.synthetic else ""
        print(f"\nbest by linear on validation, one run each{note}: {best['trial'].iloc[0]}")
        print(f"random weights, linear: {random:.3f}")
        if best["linear"].iloc[0] <= random:
            print("No trial is better than random weights: pretrain for longer, or on more X-rays, before you choose.")
        print(f"table and figure   {self.run}/")
        print("next               put what you choose into the dict of selfsup_task/train_barlow_twins.py")
        check_all_finished(self.table, [*self.runs])

    def _judge(self, one: Run) -> None:
        """Pretrain on the train part, then score a linear probe and a full fine-tuning on validation.

        The summary has what the trial varies and linear and full (balanced accuracy, or mean AUROC of findings), by
        which trials may be ranked. Loss and rank may not rank them: their scale depends on lambda, batch and projector.
        """
        trial = self.trials[one.folder.name]
        one.start()
        pretrained = self._pretrain(trial.pretraining())
        gc.collect()  # on a GPU the graphs of that training refer to themselves, and hold memory
        encoder = f"{pretrained}/{trial.backbone}_final_state_dict.pt"
        judged = [finetune(finetuning(trial, method, encoder), self.xrays) for method in ("linear", "finetune")]
        if not trial.keep_all:
            for run in (pretrained, *judged):
                run.drop_weights()
        start, linear, full = (run.summary or {} for run in (pretrained, *judged))
        one.finish(
            {
                **{key: _cell(value) for key, value in self.varied[one.folder.name].items()},
                "linear": linear["score"],
                "full": full["score"],
                "metric": linear["metric"],
                "loss": start["loss_last_epoch"],
                "rank": start["rank"],
                "synthetic": self.xrays.synthetic,
            }
        )

    def _pretrain(self, config: PretrainConfig) -> Run:
        run = Run(config.run_name, config, "pretraining")
        if run.summary is None:
            partners = partners_of(self.xrays, config)
            model = placed(build_model(config), self.xrays.store.device)
            step = twin_step(passes_of(model, config), self.xrays.batch, config, partners)
            train(model, step, self.xrays, config, run)
        return run

    def _random_score(self) -> float:
        """The linear probe's score of random weights."""
        trial = next(iter(self.trials.values()))  # trials differ in nothing that a linear probe reads
        config = finetuning(replace(trial, run_name=f"{self.run.name}/random"), "linear", "random")
        with exclusive_lock(self.run.folder / ".random.lock", "probing random weights"):
            run = finetune(config, self.xrays)
        if not trial.keep_all:
            run.drop_weights()
        return (run.summary or {})["score"]


def finetuning(trial: ScanConfig, method: str, encoder: str) -> FinetuneConfig:
    """Return the fine-tuning that judges a trial's encoder."""
    fixed = {"trainable": "all", "label_draw": 0, "allow_seen": False, "keep_weights": trial.keep_all}
    fixed |= {"arm": encoder.partition(":")[0] if encoder == "random" else "trial", "way": method, "start": 0}
    named = {"run_name": f"{trial.run_name}/{method}", "encoder": encoder, "method": method}
    return FinetuneConfig(**{**part_of(trial, FinetuneConfig), **as_dict(trial.finetune), **fixed, **named})


def _cell(value: Any) -> Any:
    """A parameter as a cell of summary.csv: widths [512, 1024] as 512-1024."""
    return "-".join(map(str, value)) if isinstance(value, list) else value
