"""What comparisons share: arms, trials, and running them side by side on the same label subsets."""

import glob
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from dataset_loader.xrays import XRays, listed_facts, open_xrays
from downstream_task.features import FEATURES
from downstream_task.finetuning import FinetuneConfig, LastFeatures, TrainingConfig, finetune, labelled_subset
from downstream_task.predictions import CELL, FILE, read_predictions
from downstream_task.targets import Targets, check_learnable, predictions_table, read_targets
from self_sup_classes.initialisation import SHARED, SHARED_WEIGHTS, start_from, weights_hashes
from self_sup_classes.provenance import check_unseen
from utils.config import UserError, between, part_of, repo_path
from utils.facts import fact
from utils.files import check_files, content_hash, read_json, write_table
from utils.hardware import prepare
from utils.logging_utils import Run
from utils.messages import say
from utils.sweeps import check_all_finished, errors_of, run_trials, with_reasons

PREDICTIONS = "predictions:"  # before a folder of tables in a config
ROUNDING = 1e-4  # of probabilities, by which softmax may exceed 1
RANDOM, IMAGENET, PRETRAINED = KINDS = ["random", "imagenet", "pretrained"]  # of starts
NAMED = RANDOM, IMAGENET, SHARED  # starts that are no file of a run
FEW_IMAGES = 50  # of the validation part, whose scores then have intervals of 25 points and more
Draws = Annotated[int, between(1, 1000)]  # of label subsets


@dataclass(frozen=True)
class Arm:
    """An initialisation: the short name that tables and figures have for it, and its encoders, one per pretraining.

    fits  for each fold of a comparison, in its order, the places in `encoders` of those that have not seen what it
          holds out; unknown before the data are open
    """

    name: str
    encoders: tuple[str, ...]
    fits: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return which of KINDS it is, by which a way of training has its learning rate."""
        kind = self.encoders[0].partition(":")[0]
        return kind if kind in KINDS[:2] else PRETRAINED

    @property
    def has_network(self) -> bool:
        """Return whether it can be trained, and not only probed."""
        return not self.encoders[0].startswith(FEATURES)

    @property
    def has_head(self) -> bool:
        """Return whether it may have a head for the data's classes: a file of weights, whatever it holds."""
        return self.has_network and self.encoders[0].partition(":")[0] not in NAMED

    def start(self, draw: int) -> int:
        """Return the number of its start for a draw; random weights are drawn.

        Of the encoders that fit the draw's fold, it is the first of those that the draws before it took least.
        """
        taken, start = [0] * len(self.encoders), draw
        for fold in itertools.islice(itertools.cycle(self.fits), 0 if self.encoders == (RANDOM,) else draw + 1):
            start = min(self.fits[fold], key=taken.__getitem__)
            taken[start] += 1
        return start

    def encoder(self, draw: int) -> str:
        """Return the encoder of a draw."""
        return self.encoders[0 if len(self.encoders) == 1 else self.start(draw)]


@dataclass(frozen=True)
class Trial:
    """One run of a comparison: an arm, trained in one way on one draw of the labels.

    way       its name, and the keys of a fine-tuning that it sets: method, head, lr, ...
    draw      of the labels; `fold` is the one that it belongs to
    headline  whether this way headlines for this arm and number of labels
    """

    arm: Arm
    way: str
    keys: Mapping[str, Any]
    labels: int
    draw: int
    fold: int
    headline: bool = False
    trainable: str = "all"

    @property
    def name(self) -> str:
        """Return its folder inside the comparison's."""
        part = "" if self.trainable == "all" else f"_{self.trainable}"
        return trial_name(self.arm.name, f"{self.way}{part}", self.labels, self.draw)

    def config(self, shared: TrainingConfig) -> FinetuneConfig:
        """Return the config of its fine-tuning; draw k has the seed random_seed + k."""
        unused = {"method": "finetune", "head": "probe", "lr": 0.0, "backbone_lr_factor": 1.0, "batch_norm": "train"}
        own = {
            "run_name": f"{shared.run_name}/{self.name}",
            "random_seed": shared.random_seed + self.draw,
            "keep_weights": shared.keep_weights or (self.headline and self.draw == 0),
        }
        return FinetuneConfig(
            **{**part_of(shared, TrainingConfig), **unused, **self.keys, **own},
            encoder=self.arm.encoder(self.draw),
            arm=self.arm.name,
            way=self.way,
            start=self.arm.start(self.draw),
            trainable=self.trainable,
            num_labels=self.labels,
            label_draw=self.draw,
            fold=self.fold,
        )


def trial_name(arm: str, way: str, labels: int, draw: int) -> str:
    """Return the folder of one head inside a comparison's."""
    return f"{arm}_{way}_n{labels}_d{draw}"


def named_arms(encoders: Sequence[str]) -> list[Arm]:
    """Return an arm for each entry of `encoders`, named by its kind, the run that a file comes from, or a table's file.

    An entry with *, ? or [ is a pattern: its files are one arm, such as the pretrainings of several seeds. The only
    entry of files is named PRETRAINED. Raises UserError for equal names and a pattern without files.
    """
    files = [one for one in encoders if one.partition(":")[0] not in NAMED and not one.startswith(FEATURES)]
    arms: dict[str, Arm] = {}
    for encoder in encoders:
        name = PRETRAINED if files == [encoder] else _name_of(encoder)
        if name in arms:
            raise UserError(
                f"encoders holds {encoder!r} and {arms[name].encoders[0]!r}, both named {name!r}; keep one."
            )
        arms[name] = Arm(name, _matching(encoder))
    return list(arms.values())


def _name_of(encoder: str) -> str:
    kind, path = encoder.partition(":")[0], Path(encoder.removeprefix(FEATURES))
    if kind in NAMED:
        return kind
    if glob.has_magic(encoder):
        return re.sub(r"[^\w.+-]", "", "-".join(path.parent.parts[-2:])).strip("-_.")  # a/s* and b/s*
    in_a_run = path.name.endswith(("_state_dict.pt", SHARED_WEIGHTS)) and path.parent.name
    return path.parent.name if in_a_run else path.stem


def _matching(encoder: str) -> tuple[str, ...]:
    if not glob.has_magic(encoder):
        return (encoder,)
    parts = Path(encoder).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:fixed])  # as written, so that configs keep relative paths
    found = sorted(repo_path(folder).glob("/".join(parts[fixed:])))
    if not found:
        raise UserError(
            f"no file matches {encoder!r} in encoders: there is no {'/'.join(parts[fixed:])} below {repo_path(folder)} "
            "(CXR_RUNS says where runs/ is). Pretrain first: selfsup_task/train_barlow_twins.py, with --fold for each."
        )
    return tuple(str(folder / file.relative_to(repo_path(folder))) for file in found)


def usable_arms(
    config: TrainingConfig, arms: Sequence[Arm], xrays: XRays, folds: Sequence[int]
) -> tuple[list[Arm], dict[str, str]]:
    """Return the arms whose weights can be loaded, and why ImageNet's, which need a network, are left out if they are.

    Each arm knows then which of its encoders fit which fold: those that have seen no image that it holds out.
    Raises UserError for any other that cannot be loaded, a fold for which an arm has no encoder, and if no arm remains.
    """
    usable, left_out = [], {}
    for arm in arms:
        try:
            usable.append(replace(arm, fits=_fits(config, arm, xrays, folds)))
        except UserError as error:
            if arm.encoders != (IMAGENET,):
                raise
            say(f"warning: {arm.name} is left out: {error}")
            left_out[arm.name] = str(error)
    if arms and not usable:
        raise UserError(f"no arm of encoders can be run: {with_reasons(left_out)}.")
    return usable, left_out


def _fits(config: TrainingConfig, arm: Arm, xrays: XRays, folds: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return Arm.fits; with allow_seen, a fold that no encoder fits takes all of them."""
    notes: dict[int, dict[int, str]] = {fold: {} for fold in folds}  # of the encoders that a fold may take
    refused: dict[int, str] = {}
    known = False  # what some encoder was trained on
    for number, encoder in enumerate(arm.encoders):
        provenance = None
        if arm.has_network:
            provenance = start_from(encoder, config.backbone, config.in_channels, config.random_seed).provenance
        known = known or provenance is not None
        for fold in folds:
            try:
                notes[fold][number] = check_unseen(provenance, xrays.of_fold(fold), config.allow_seen, encoder)
            except UserError as error:
                refused[fold] = str(error)
    if lacking := [fold for fold in folds if not notes[fold]]:
        reason = refused[lacking[0]]
        if known and xrays.has_folds and len(folds) > 1:
            fitting = " ".join(str(fold) for fold in folds if notes[fold])
            instead = f", or compare with --folds {fitting}" if fitting else ""
            reason = (
                f"no encoder of {arm.name} fits fold {', '.join(map(str, lacking))}. Pretrain once with --fold for each"
                f"{instead}. Of fold {lacking[0]}: {reason}"
            )
        raise UserError(reason)
    fits = {fold: tuple(n for n in notes[fold] if not notes[fold][n]) or tuple(notes[fold]) for fold in folds}
    used = set(itertools.chain(*fits.values()))
    if unused := [encoder for number, encoder in enumerate(arm.encoders) if number not in used]:
        say(f"not used, because they have seen test images of the folds {list(folds)}: {', '.join(unused)}")
    return fits


def trained(entries: Sequence[str]) -> list[str]:
    """Return the entries that are trained here, and do not only bring tables of predictions."""
    return [entry for entry in entries if not entry.startswith(PREDICTIONS)]


def facts_of(entries: Sequence[str]) -> dict[str, Any]:
    """Return what a comparison records of its arms: their encoders, and hashes of files and tables."""
    encoders = {arm.name: list(arm.encoders) for arm in named_arms(trained(entries))}
    joined = {entry: fact(len(files), map(content_hash, files)) for entry, files in _tables(entries).items()}
    return {"arms": encoders, "weights": weights_hashes(itertools.chain(*encoders.values())), "tables": joined}


def run_comparison(
    config: Any, kind: str, compare: Callable[[Any, Run], None], tables: Sequence[str], then: Callable[[Run], str]
) -> None:
    """Run `compare`, unless that was finished with all arms; print its report, its folder and the next command.

    A finished one compares its data and arms with its records, without a look at a pixel; tables are those that it
    must still have. Raises UserError with the arms that had to be left out, and the reasons, if there are any.
    """
    run = Run(
        config.run_name,
        config,
        kind,
        look=lambda: {"data": listed_facts(config, config.also, apart=True), **facts_of(config.encoders)},
    )
    if run.summary is None or run.summary.get("left_out"):
        compare(config, run)
    check_files(run.folder, "summary.csv", *tables)
    assert run.summary is not None
    print("\n".join(run.summary["report"]))
    print(f"\ntables and figures   {run}/\nnext                 {then(run)}")
    if left_out := run.summary["left_out"]:
        print("\n".join(f"left out: {arm}: {reason}" for arm, reason in left_out.items()))
        raise UserError(
            f"{', '.join(left_out)} left out for the reason above, so {run} compares the other arms only. Run the "
            "same command again when the reason is gone; other arms need another --run-name."
        )


@dataclass(frozen=True)
class Comparison:
    """A comparison that is opened and checked: its data, the arms, and the numbers of labels that every fold has.

    left_out  why other arms are not compared
    joined    the rows of tables from elsewhere in summary.csv; copies of the tables are in the run's folder
    """

    config: TrainingConfig
    run: Run
    xrays: XRays
    targets: Targets
    arms: list[Arm]
    left_out: dict[str, str]
    counts: list[int]
    joined: list[dict[str, Any]]

    def train(self, trials: Sequence[Trial]) -> pd.DataFrame:
        """Fine-tune all trials that are not finished; return a row for each of the arms of which none failed, in order.

        Columns: trial, arm, way, fold, start, encoder, method, trainable, draw, labels, metric, score on validation,
        and what the runs' summaries say besides. The other arms are left out, with their trials and the reason.
        Raises UserError if no arm remains. Without trials, the table is empty.
        """
        if not trials:
            return pd.DataFrame()
        by_start = sorted(trials, key=lambda trial: (self.arms.index(trial.arm), trial.arm.start(trial.draw)))
        configs = {trial.name: trial.config(self.config) for trial in by_start}
        runs = {name: Run(one.run_name, one, "fine-tuning") for name, one in configs.items()}
        features = LastFeatures()

        def work(one: Run) -> None:
            finetune(configs[one.folder.name], self.xrays, one, show_progress=False, features_of=features)

        table = run_trials(self.run, runs, work)
        for arm in self.arms:
            if failed := errors_of(table, [trial.name for trial in trials if trial.arm == arm]):
                self.left_out[arm.name] = with_reasons(failed)
        remaining = [trial for trial in trials if trial.arm.name not in self.left_out]
        if not remaining:
            check_all_finished(table, list(runs))
        table = table.set_index("trial").loc[[trial.name for trial in remaining]].reset_index()
        table["headline"] = [trial.headline for trial in remaining]
        return table.drop(columns=["classes", "error"])

    @property
    def cautions(self) -> list[str]:
        """What a reader of scores on few validation images must know: a sentence, or none."""
        few = len(self.xrays.indices("val"))
        sentence = (
            f"warning: {few} validation images cannot choose between arms; confusion_matrix.py scores the test images"
        )
        return [sentence] * (few < FEW_IMAGES)

    def summary(self, table: pd.DataFrame) -> dict[str, Any]:
        """Return what every comparison's summary.json holds, given the rows of its runs."""
        arms = {arm.name: list(arm.encoders) for arm in self.arms if arm.name not in self.left_out}
        return {
            "synthetic": self.xrays.synthetic,
            "metric": self.targets.metric,
            "multilabel": self.targets.multilabel,
            "chance": self.targets.chance,
            "classes": list(self.targets.names),
            "arms": arms,
            "left_out": self.left_out,
            "labels": sorted(set(table["labels"].tolist())),
            "folds": sorted(set(table["fold"].tolist())) if self.xrays.has_folds else [],
            "pretrainings": max(map(len, arms.values()), default=0),
            "transductive": bool(table["transductive"].any()),
            "notes": sorted(set(table["note"]) - {""}),
        }


def open_comparison(
    config: TrainingConfig,
    encoders: list[str],
    labels: Sequence[int | float | str],
    folds: Sequence[int],
    draws: int,
    run: Run,
) -> Comparison:
    """Open the data, check the arms, tables and label subsets of a comparison, and start its run."""
    xrays = open_xrays(config, prepare(config.device, config.threads), config.also, folds)
    targets = read_targets(xrays, config)
    arms, left_out = usable_arms(config, named_arms(trained(encoders)), xrays, folds)
    counts = numbers_of_labels(labels, xrays, folds)
    check_subsets(counts, draws, folds, targets, xrays, config.split_seed)
    joined, copies = joined_tables(encoders, run, xrays, targets)
    run.start(alone=False, data=xrays.facts(), **facts_of(encoders))
    xrays.write_split(run.folder)
    for trial, table in copies.items():
        write_table(run.folder / trial / FILE, table)
    comparison = Comparison(config, run, xrays, targets, arms, left_out, counts, joined)
    for sentence in comparison.cautions:
        say(sentence)
    return comparison


def numbers_of_labels(entries: Sequence[int | float | str], xrays: XRays, folds: Sequence[int]) -> list[int]:
    """Return numbers of labels that every fold has: a number as it is, "all" and shares of the smallest train part.

    Raises UserError for more labels than that, and for two entries that are the same number.
    """
    most = min(len(xrays.of_fold(fold).indices("train")) for fold in folds)

    def count(entry: int | float | str) -> int:
        if entry == "all":
            return most
        return round(entry * most) if isinstance(entry, float) else int(entry)

    counts = [count(entry) for entry in entries]
    for entry, number in zip(entries, counts, strict=True):
        if not 1 <= number <= most or counts.count(number) > 1:
            raise UserError(
                f"num_labels holds {entry!r}, which is {number} labels; expected different numbers from 1 to {most:,} "
                '(the smallest train part), shares of it such as 0.1, or "all".'
            )
    return counts


def check_subsets(
    counts: Sequence[int], draws: int, folds: Sequence[int], targets: Targets, xrays: XRays, seed: int
) -> None:
    """Raise UserError, before anything is written, for label subsets that no run could be trained with.

    So it does for a part that lacks a class: its scores would be over the others, and not those of the folds beside it.
    """
    check_learnable(targets, {"the validation part": xrays.indices("val")})
    tested = {f"the test part of fold {fold}": xrays.of_fold(fold).indices("test") for fold in folds}
    check_learnable(targets, {part: rows for part, rows in tested.items() if len(rows)})  # labels.csv may name none
    for draw, fold in zip(range(draws), itertools.cycle(folds), strict=False):
        of_fold = xrays.of_fold(fold)
        for count in counts:
            subset = labelled_subset(of_fold, targets, count, draw, seed)
            check_learnable(targets, {f"{count:,} labels in draw {draw}": subset})


def joined_tables(
    entries: Sequence[str], run: Run, xrays: XRays, targets: Targets
) -> tuple[list[dict[str, Any]], dict[str, pd.DataFrame]]:
    """Return the rows of summary.csv for the tables of predictions:FOLDER, and what each trial's predictions.csv holds.

    These have the comparison's own columns, and the table's probabilities. An arm whose name is taken is named by its
    folder too. Raises UserError for a table of other images, parts or labels than the comparison's.
    """
    rows, copies = list[dict[str, Any]](), dict[str, pd.DataFrame]()
    taken = {arm.name for arm in named_arms(trained(entries))}
    for entry, files in _tables(entries).items():
        folder, names = repo_path(entry.removeprefix(PREDICTIONS)).name, dict[str, str]()
        for file in files:
            cell, copy = _checked(file, run, xrays, targets)
            arm = cell["arm"]
            others = itertools.chain([arm, f"{folder}-{arm}"], (f"{folder}-{arm}-{k}" for k in itertools.count(2)))
            cell["arm"] = names[arm] = names.get(arm) or next(name for name in others if name not in taken)
            trial = trial_name(cell["arm"], cell["way"], cell["labels"], cell["draw"])
            if trial in copies:
                raise UserError(f"{entry} holds two tables of one head, {trial}; keep one, such as {file}.")
            copies[trial] = copy.assign(arm=cell["arm"])
            unknown = f"transductive: {entry} does not say which images its networks were trained on"
            stated = read_json(file.with_name("summary.json")) or {}
            facts = {"transductive": True, "note": unknown}
            if {*facts} <= {*stated}:  # a summary of this repo, not of another program
                facts = {key: stated[key] for key in facts}
            rows.append({"trial": trial, **cell, "encoder": entry, "metric": targets.metric, **facts})
        taken |= set(names.values())
    return rows, copies


def _checked(file: Path, run: Run, xrays: XRays, targets: Targets) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the CELL of a table of predictions, and the table as the comparison would have written it."""
    table: Any = read_predictions(file)
    known: Any = table[CELL].drop_duplicates() if set(CELL) <= set(table) else pd.DataFrame()
    row = known.to_dict("records")[0] if len(known) == 1 else {}
    whole = all(isinstance(row.get(key), int) for key in ("fold", "draw", "labels", "start"))
    if not whole or Path(folder := f"{row['arm']}_{row['way']}").name != folder:
        raise UserError(
            f"{file} must be of one head: expected one value in each of the columns {', '.join(CELL)}, names of an arm "
            "and a way, and whole numbers."
        )
    of_fold, names = xrays.of_fold(row["fold"]), [f"p {name}" for name in targets.names]
    rows = np.concatenate([of_fold.indices("val"), of_fold.indices("test")])
    here = predictions_table(of_fold, targets, rows, np.zeros((len(rows), len(names))), row).drop(columns=names)
    facts = ["file", "part", *(name for name in here if str(name).partition(" ")[0] == "label")]
    fits = {*facts, *names} <= set(table) and len(table) == len(here)
    copy = here.merge(table[[*facts, *names]].drop_duplicates("file"), on=facts) if fits else pd.DataFrame()
    if len(copy) < len(here):
        raise UserError(
            f"{file} has other images, parts or labels than {run}; expected each validation and test image of "
            f"fold {row['fold']} once, and a probability for {', '.join(targets.names)}."
        )
    p = copy[names].to_numpy(float)
    if not ((p >= 0) & (p <= 1 + ROUNDING)).all():
        raise UserError(f"{file} holds something else than probabilities from 0 to 1.")
    return row, copy


def _tables(entries: Sequence[str]) -> dict[str, list[Path]]:
    """Return the tables of each predictions:FOLDER among the entries. Raises UserError for a folder without any."""
    folders = {entry: repo_path(entry.removeprefix(PREDICTIONS)) for entry in entries if entry.startswith(PREDICTIONS)}
    found = {entry: sorted(folder.rglob(FILE)) for entry, folder in folders.items()}
    for entry, files in found.items():
        if not files:
            raise UserError(f"there is no {FILE} below {folders[entry]}; expected one for each trained head.")
    return found
