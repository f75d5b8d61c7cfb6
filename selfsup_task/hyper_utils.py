"""What the scans share: a trial is a pretraining, judged by a linear probe and a full fine-tuning on validation.

A setting is what a scan varies; it has one trial for each seed.
"""

import gc
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dataset_loader.data_keys import DATA
from dataset_loader.xrays import open_xrays
from downstream_task.finetuning import BudgetConfig, FinetuneConfig, StartConfig, finetune, labelled_subset
from downstream_task.targets import check_learnable, read_targets
from self_sup_classes.backbones import weights_file
from self_sup_classes.initialisation import start_from
from self_sup_classes.provenance import check_unseen
from selfsup_task.pretraining import PretrainConfig, build_model, loss_of_views, partners_of, pretraining_step, train
from utils.config import Count, Distinct, Natural, Positive, UserError, as_dict, part_of
from utils.distributed import exclusive_lock
from utils.hardware import placed, prepare
from utils.jobs import JobsConfig
from utils.logging_utils import Run
from utils.scripts import command
from utils.sweeps import check_all_finished, check_trial_names, run_trials
from utils.training_utils import check_batch_size
from utils.wording import metric_name


@dataclass(frozen=True, kw_only=True)
class FinetunePart(BudgetConfig, StartConfig):
    """How a scan fine-tunes: what FinetuneConfig has and the pretraining does not say."""

    lr: Positive
    num_labels: Natural


@dataclass(frozen=True, kw_only=True)
class ScanConfig(PretrainConfig, JobsConfig):
    """The keys of all scans, and of their trials; scan_base.py says what each means."""

    finetune: FinetunePart
    num_epochs: Count
    seeds: Distinct[Natural]
    halving: bool
    keep_all: bool
    only: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrain_on != "train":
            raise UserError(
                f"pretrain_on is {self.pretrain_on!r}, but trials are ranked by validation images, which must be "
                'unseen; set it to "train".'
            )

    @property
    def first_epochs(self) -> int:
        """After how many epochs the worse half of the settings is dropped: a third of them; 0 is never."""
        return self.num_epochs // 3 if self.halving else 0

    def pretraining(self) -> PretrainConfig:
        """Return the pretraining of a trial."""
        return PretrainConfig(**{**part_of(self, PretrainConfig), "run_name": f"{self.run_name}/pretrain"})


class Scan:
    """The settings of a scan that are to be run now, on X-rays that are opened once."""

    def __init__(self, config: ScanConfig, settings: Mapping[str, Mapping[str, Any]], lists: Sequence[str]):
        """Prepare the settings {name: the values that it varies}; `lists` are the keys that they were made from.

        With other lists or seeds the same folder resumes. Raises UserError, before anything is written, for a config
        that cannot be used, and for a folder that holds a scan or a trial with another config.
        """
        check_trial_names([*settings], config.only)
        self.config, self.settings = config, {name: settings[name] for name in config.only or settings}
        varied = {key for values in settings.values() for key in values}
        left_out = {*varied, *lists, "only", "run_name", "seeds", "random_seed"}
        shared = {key: value for key, value in as_dict(config).items() if key not in left_out}
        self.run = Run(config.run_name, {"varied": [*lists], **shared}, "scan", keys_of=type(config))
        self.trials: dict[str, ScanConfig] = {}
        self.of_trial: dict[str, tuple[str, int]] = {}  # setting and seed
        self.runs: dict[str, Run] = {}
        for name, seed in itertools.product(self.settings, config.seeds):
            trial = f"{name}_s{seed}"
            own = {**settings[name], "random_seed": seed, "run_name": f"{config.run_name}/{trial}"}
            self.of_trial[trial], self.trials[trial] = (name, seed), replace(config, **own)
            self.runs[trial] = Run(own["run_name"], {**shared, **own}, "trial", keys_of=type(config))
        self.xrays = open_xrays(config, prepare(config.device, config.threads, config.deterministic), config.also)
        self.xrays = self.xrays.without(config.exclude)
        start = start_from(config.start, config.backbone, config.in_channels, config.random_seed)
        check_unseen(start.provenance, self.xrays, allow_seen=False, encoder=config.start)  # trials are fine-tuned
        tuning = finetuning(config, "finetune", "random")
        targets = read_targets(self.xrays, tuning)
        labelled = labelled_subset(self.xrays, targets, tuning.num_labels, tuning.label_draw, config.split_seed)
        check_learnable(targets, {"the labelled subset": labelled, "the validation part": self.xrays.indices("val")})
        self.num_labels = len(labelled)
        for trial in self.trials.values():
            check_batch_size(trial.batch_size, len(self.xrays.pretraining_indices("train")))

    def run_trials(self) -> pd.DataFrame:
        """Run what is not finished; return the finished settings, the best first, as `by_setting` does.

        Raises UserError with the failed trials if none is finished.
        """
        self.run.start(alone=False, data=self.xrays.facts())
        self.dropped = self._halve() if self.config.first_epochs else {}
        self.table = run_trials(self.run, self.runs, self._judge)
        finished = self.table.loc[self.table["error"] == ""].drop(columns="error")
        if finished.empty:
            check_all_finished(self.table, [*self.runs])
        self.start = self._start_scores()
        ranking = by_setting(finished, self.start)
        self.run.save_table("ranking", ranking)
        return ranking

    def print_results(self, ranking: pd.DataFrame) -> None:
        """Print the ranking, and whether it beats the start; write best.json. UserError with the trials that failed."""
        best: Any = ranking.iloc[0]
        shown = ranking.drop(columns=["metric", "synthetic"]).dropna(axis="columns", how="all")
        print(f"\n{shown.to_string(index=False, float_format='{:.3f}'.format, na_rep='')}")
        seeds, kind = max(ranking["seeds"]), "synthetic " if self.xrays.synthetic else ""
        metric = f"{metric_name(best['metric'])} on {kind}validation images"
        print(f"\nlinear: {metric}, of a linear probe with {self.num_labels:,} labels; full: of a fine-tuning on these")
        print("one run each" if seeds == 1 else f"means of {seeds} seeds; spread: highest minus lowest")
        print(f"best by linear: {best['setting']}")
        print(f"the start ({self.config.start}), linear: {np.mean(self.start):.3f}")
        if not best["linear"] > np.mean(self.start):
            print("No setting is better than the start: pretrain for longer, or on more X-rays, before you choose.")
        print(f"tables and figure   {self.run}/")
        if best["setting"] in self.settings:  # other calls add to the same folder
            self.run.save_json("best", {"pretraining": dict(self.settings[best["setting"]])})
        where = {key: getattr(self.config, key) for key in DATA}
        use = command("selfsup_task/train_barlow_twins.py", where, DATA)
        print(f"next                {use} --from {self.run}/best.json")
        check_all_finished(self.table, [*self.runs])

    def _halve(self) -> dict[str, float]:
        """Pretrain all for a third of the epochs; return the trials of the worse half of the settings, with scores.

        Successive halving (Jamieson and Talwalkar 2016), one round.
        """
        early = {
            trial: Run(f"{self.run.name}/early/{trial}", {"trial": trial, "epochs": self.config.first_epochs}, "early")
            for trial in self.trials
        }
        run_trials(self.run, early, self._begin)
        scores = {trial: one.summary["linear"] for trial, one in early.items() if one.summary is not None}
        of_trials = pd.Series(scores, dtype=float).reindex([*self.trials])  # NaN for those that failed
        of_settings = of_trials.groupby(lambda trial: self.of_trial[trial][0], sort=False)
        means: Any = of_settings.agg(lambda own: own.mean(skipna=False))
        worse = means.sort_values(ascending=False, kind="stable").index[-(-len(means) // 2) :]
        return {trial: scores[trial] for trial, (name, _) in self.of_trial.items() if name in worse and trial in scores}

    def _begin(self, one: Run) -> None:
        """Pretrain for the first third of the epochs, and record the probe by which settings are dropped."""
        name = one.folder.name
        trial, whole = self.trials[name], self.runs[name]
        whole.start()
        one.start()
        run, scores = self._pretrain(trial.pretraining(), until=trial.first_epochs)
        run.unlock()
        whole.unlock()
        if "probe/linear" not in scores:
            raise UserError("too few labelled images for a probe, so it is not dropped; set halving to False.")
        one.finish({"linear": scores["probe/linear"]})

    def _judge(self, one: Run) -> None:
        """Pretrain on the train part, then score a linear probe and a full fine-tuning on validation.

        The summary has what the trial varies and linear and full (balanced accuracy, or mean AUROC of findings), by
        which trials may be ranked. Loss and rank may not rank them: their scale depends on lambda, batch and projector.
        """
        trial, (name, seed) = self.trials[one.folder.name], self.of_trial[one.folder.name]
        one.start()
        cells = {k: "-".join(map(str, v)) if isinstance(v, list) else v for k, v in self.settings[name].items()}
        facts = {"setting": name, **cells, "seed": seed}  # widths [512, 1024] as 512-1024
        if one.folder.name in self.dropped:
            Run(f"{trial.run_name}/pretrain", trial.pretraining(), "pretraining").drop_weights()
            score = {"early": self.dropped[one.folder.name], "dropped_after": trial.first_epochs}
            one.finish({**facts, **score, "synthetic": self.xrays.synthetic})
            return
        pretrained, _ = self._pretrain(trial.pretraining())
        gc.collect()  # on a GPU the graphs of that training refer to themselves, and hold memory
        encoder = f"{pretrained}/{weights_file(trial.backbone)}"
        judged = [finetune(finetuning(trial, method, encoder), self.xrays) for method in ("linear", "finetune")]
        if not trial.keep_all:
            for run in (pretrained, *judged):
                run.drop_weights()
        start, linear, full = (run.summary or {} for run in (pretrained, *judged))
        scores = {"linear": linear["score"], "full": full["score"], "metric": linear["metric"]}
        health = {"loss": start["loss_last_epoch"], "rank": start["rank"]}
        one.finish({**facts, **scores, **health, "synthetic": self.xrays.synthetic})

    def _pretrain(self, config: PretrainConfig, until: int | None = None) -> tuple[Run, dict[str, float]]:
        run = Run(config.run_name, config, "pretraining")
        if run.summary is not None:
            return run, {}
        partners = partners_of(self.xrays, config)
        model = placed(build_model(config), self.xrays.store.device)
        step = pretraining_step(loss_of_views(model, config), self.xrays.batch, config, partners)
        return run, train(model, step, self.xrays, config, run, until)

    def _start_scores(self) -> list[float]:
        """The linear probe's scores of the weights that the trials start from, one for each seed if they are random."""
        one, scores = next(iter(self.trials.values())), []  # trials differ in nothing that a linear probe reads
        for seed in self.config.seeds if one.start == "random" else self.config.seeds[:1]:
            trial = replace(one, run_name=f"{self.run.name}/start_s{seed}", random_seed=seed)
            with exclusive_lock(self.run.folder / ".start.lock", "probing the start"):
                run = finetune(finetuning(trial, "linear", trial.start), self.xrays)
            if not trial.keep_all:
                run.drop_weights()
            scores.append((run.summary or {})["score"])
        return scores


def by_setting(trials: pd.DataFrame, start: Sequence[float]) -> pd.DataFrame:
    """Return one row for each setting: what it varies, mean and spread of its seeds' scores, a note; the best first.

    trials  one row for each finished trial, as `Scan._judge` writes it
    start   scores of the weights that they start from

    The spread is the highest score less the lowest. Raises UserError if all settings were dropped.
    """
    scored = trials.dropna(subset="linear") if "linear" in trials else trials.iloc[:0]
    if scored.empty:
        raise UserError("all settings were dropped before one was finished; run the scan again without --only.")
    by_seed: Any = scored.groupby("setting")
    found = {"seeds": by_seed.size()}
    for score in ("linear", "full"):
        found |= {score: by_seed[score].mean(), f"{score}_spread": by_seed[score].agg(np.ptp)}
    table = trials.groupby("setting", sort=False).first().drop(columns=["trial", "seed", "linear", "full"])
    if "early" in table:
        found["early"] = trials.groupby("setting")["early"].mean()
    table = table.assign(**found, metric=scored["metric"].iloc[0])
    table["seeds"] = table["seeds"].fillna(0).astype(int)
    table = table.sort_values("linear", ascending=False, kind="stable")
    return table.assign(note=_notes(table, scored, np.array(start))).reset_index()


def _notes(table: pd.DataFrame, scored: pd.DataFrame, start: np.ndarray) -> list[str]:
    """Return for each setting whether its score may be that of the best, or of the start, and whether it was dropped.

    Two means may be the same if they differ by less than the least significant difference (Fisher 1935): the 97.5th
    percentile of Student's t times the standard error, from the variance of the seeds, pooled over all settings.
    """
    scores = [group.to_numpy() for _, group in scored.groupby("setting")["linear"]] + [start]
    freedom = sum(len(one) - 1 for one in scores)
    if not freedom:  # one seed each: nobody knows
        told = 0.0
    else:
        variance = sum(((one - one.mean()) ** 2).sum() for one in scores) / freedom
        told = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    others = {"best": (table["linear"].iloc[0], table["seeds"].iloc[0]), "start": (start.mean(), len(start))}
    notes = []
    for row, (mean, seeds) in enumerate(zip(table["linear"], table["seeds"], strict=True)):
        if not seeds:
            notes.append(f"dropped after {table['dropped_after'].iloc[row]:.0f} epochs")
            continue
        like = [name for name, (other, n) in others.items() if abs(mean - other) < told * np.sqrt(1 / seeds + 1 / n)]
        notes.append(", ".join(f"like the {name}" for name in like if row or name != "best"))
    return notes


def finetuning(trial: ScanConfig, method: str, encoder: str) -> FinetuneConfig:
    """Return the fine-tuning that judges a trial's encoder."""
    fixed = {"trainable": "all", "label_draw": 0, "allow_seen": False, "keep_weights": trial.keep_all}
    fixed |= {"arm": "trial", "way": method, "start": 0}
    named = {"run_name": f"{trial.run_name}/{method}", "encoder": encoder, "method": method}
    return FinetuneConfig(**{**part_of(trial, FinetuneConfig), **as_dict(trial.finetune), **fixed, **named})
