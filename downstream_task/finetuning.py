"""`finetune(config)`: train a classifier from an encoder and few labels, by gradient descent or as a linear probe."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from augmentations.recipes import RECIPES
from augmentations.transform_utils import RecipeName, Views, plain_view, step_generator
from dataset_loader.splits import label_subset
from dataset_loader.xrays import DataConfig, FoldConfig, XRays, open_xrays
from downstream_task.classifier import Classifier, Trainable, load_classifier, restate_batch_norm
from downstream_task.features import FEATURES, Features, NetworkFeatures, TableFeatures, read_features
from downstream_task.predictions import CELL, main_score
from downstream_task.probes import InputFormat, LinearHead, fit_linear_head, forward_all
from downstream_task.spreading import MAX_IMAGES, fit_spread_head
from downstream_task.targets import LossFunction, TargetConfig, Targets, loss_function, predictions_table, read_targets
from self_sup_classes.backbones import BackboneName, Channels, save_state_dict, weights_file
from self_sup_classes.initialisation import start_from, weights_hashes
from self_sup_classes.provenance import check_unseen
from utils.config import Config, Count, Natural, NotNegative, UserError, above_zero, one_of, part_of, repo_path
from utils.hardware import MachineConfig, Precision, choose_precision, describe_device, placed, prepare
from utils.logging_utils import Run
from utils.optimisation import BatchSize, FitConfig, Optimizer
from utils.seeds import fixed_order
from utils.training_utils import StepFunction, fit

Head = Annotated[str, one_of(["probe", "zeros"])]
ON_FEATURES = ["linear", "spread"]  # methods that take an encoder's features as they are
EVALUATIONS = 10  # of a training, at most, on validation, which nothing of it depends on
WARMUP = 1  # of these tenths: the learning rate rises in the first
MAX_ACTIVATIONS = 2**30  # bytes of frozen stages' outputs that are kept instead of computed in each step
MAX_RESTATED = 2048  # train images that BatchNorm's statistics are taken from
MAX_EVALUATED = 500  # validation images that a training is watched on

AfterEvaluation = Callable[[int, float], None]


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(TargetConfig):
    """What is learned, from which views, and for how long; the dicts of the scripts say what each key means."""

    recipe: RecipeName
    epochs: NotNegative
    min_steps: Count
    batch_size: BatchSize
    optimizer: Optimizer
    optimizer_weight_decay: NotNegative

    later: ClassVar = {"epochs": 0}

    def steps(self, labels: int) -> int:
        """Return the optimiser steps of a fine-tuning on so many labels: `epochs` passes, `min_steps` at least."""
        return max(self.min_steps, math.ceil(self.epochs * labels / self.batch_size))


@dataclass(frozen=True, kw_only=True)
class StartConfig(Config):
    """How a fine-tuning starts and how fast its parts learn."""

    head: Head
    lr: float
    backbone_lr_factor: NotNegative
    batch_norm: Annotated[str, one_of(["train", "eval"])]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(DataConfig, BudgetConfig, MachineConfig):
    """The keys that all runs of a comparison share."""

    run_name: str
    random_seed: Natural
    backbone: BackboneName
    in_channels: Channels
    allow_seen: bool
    keep_weights: bool
    precision: Precision

    later: ClassVar = {"keep_weights": True}

    @property
    def also(self) -> list[str] | None:
        """What open_xrays takes beside the labelled images."""
        return None


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig, StartConfig, FoldConfig):
    """Every key of one fine-tuning run.

    arm, way, start  what a comparison calls its initialisation and way of training; which of the arm's starts it is
    num_labels       labels to learn from; 0 is all
    """

    encoder: str
    arm: str
    way: str
    start: int
    method: Annotated[str, one_of(["finetune", *ON_FEATURES, "as_is"])]
    trainable: Trainable
    num_labels: Natural
    label_draw: Natural

    later: ClassVar = {"arm": "", "way": "", "start": 0, "num_labels": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "finetune":  # the others have no learning rate
            above_zero("lr", self.lr)
        if self.method not in ON_FEATURES and self.encoder.startswith(FEATURES):
            raise UserError(f"{self.encoder} is a table of features, which can only be probed; use the way linear.")

    @property
    def also(self) -> list[str] | None:
        """What open_xrays takes beside the labelled images: the data set's others, where labels spread to them."""
        return [] if self.method == "spread" else None


def engine_config(config: FinetuneConfig, labels: int) -> FitConfig:
    """Return what the engine reads: EVALUATIONS epochs of equal length, a warmup, then a cosine to zero."""
    epochs = min(EVALUATIONS, config.steps(labels))
    fixed = {"scheduler": "cosine", "warmup_epochs": WARMUP if epochs > WARMUP else 0, "gradient_clip": 0.0}
    return FitConfig(**{**part_of(config, FitConfig), **fixed, "checkpoint_minutes": 5.0, "num_epochs": epochs})


def input_format(config: TrainingConfig, device: torch.device) -> InputFormat:
    """Return how the networks of a config see X-rays on that device."""
    return InputFormat(config.img_res, config.in_channels, choose_precision(config.precision, device))


def features_of(config: FinetuneConfig, xrays: XRays) -> Features:
    """Return the features that `config.encoder` gives of X-rays."""
    if config.encoder.startswith(FEATURES):
        return read_features(config.encoder, xrays)
    start = start_from(config.encoder, config.backbone, config.in_channels, config.random_seed)
    return NetworkFeatures(start, xrays, input_format(config, xrays.store.device))


class LastFeatures:
    """features_of, which keeps those of the last start, of each size, for the heads of a comparison that share it."""

    def __init__(self) -> None:
        self.start, self.of_size = ("", 0), dict[int, Features]()

    def __call__(self, config: FinetuneConfig, xrays: XRays) -> Features:
        start = config.encoder, config.random_seed if config.encoder == "random" else 0
        if start != self.start:
            self.start, self.of_size = start, {}
        if config.img_res not in self.of_size:
            self.of_size[config.img_res] = features_of(config, xrays)
        return self.of_size[config.img_res]


def finetune(
    config: FinetuneConfig,
    xrays: XRays | None = None,
    run: Run | None = None,
    show_progress: bool = True,
    after_evaluation: AfterEvaluation = lambda epoch, score: None,
    features_of: Callable[[FinetuneConfig, XRays], Features] = features_of,
) -> Run:
    """Train a classifier as `config` says; return the finished run, or the stored one if it was finished before.

    Method "linear" is a logistic regression on features that are computed once; "spread" adds what its labels say of
    unlabelled train images (spreading.py). "as_is" trains nothing: it takes a file's own classes, which must be those
    of the data in their order. "finetune" starts from that regression (head "probe", Kumar et al. 2022, arXiv
    2202.10054) or from zeros, and trains the layers `trainable` for the steps that BudgetConfig.steps gives, whatever
    validation says; the last weights count. predictions.csv has what the classifier says of the validation and test
    images; nothing is chosen by either, and nothing is scored on test.

    xrays             the data that the config names, if they are open already, of whatever fold
    run               the config's run, if it is open already
    after_evaluation  called with each evaluation's number and validation score; may stop the training by an exception
    features_of       gives the encoder's features; LastFeatures keeps them for the next head

    Raises UserError for a config, data, an encoder or a run folder that cannot be used, before anything is written.
    That the labels can be learnt from is checked before, once for all runs that share data (check_learnable).
    """
    run = run or Run(config.run_name, config, "fine-tuning")
    if run.summary is None:
        xrays = (xrays or open_xrays(config, prepare(config.device, config.threads), config.also)).of_fold(config.fold)
        job = _Finetuning(config, run, xrays, features_of(config, xrays))
        run.start(
            device=describe_device(xrays.store.device),
            data=xrays.facts(),
            weights=weights_hashes([config.encoder]),
            labels=job.labels,
            note=job.note,
            note_on_weights=job.features.note,
        )
        found = {}
        if config.method in ON_FEATURES:
            found = job.probe()
        elif config.method == "finetune":
            found = job.train(show_progress, after_evaluation)
        job.finish(found)
    return run


class _Finetuning:
    """The parts of one fine-tuning, built in reading order, and the steps that `finetune` takes with them."""

    def __init__(self, config: FinetuneConfig, run: Run, xrays: XRays, features: Features):
        self.config, self.run, self.xrays, self.features = config, run, xrays, features
        self.device, self.val = xrays.store.device, xrays.indices("val")
        self.seen = input_format(config, self.device)
        self.note = check_unseen(features.provenance, xrays, config.allow_seen, config.encoder)
        self.targets = read_targets(xrays, config)
        train = labelled_subset(xrays, self.targets, config.num_labels, config.label_draw, config.split_seed)
        self.train_indices, self.labels = train, 0 if config.method == "as_is" else len(train)
        self.unlabelled = np.empty(0, dtype=np.int64)
        if config.method == "spread":
            beside = np.setdiff1d(xrays.pretraining_indices("train"), train)
            if isinstance(features, TableFeatures):  # which has no other images
                beside = beside[beside < len(xrays)]
            self.unlabelled = fixed_order("images that labels spread to", beside)[: max(0, MAX_IMAGES - len(train))]
        # an encoder of unknown origin stays one after further training
        seen = xrays.image_ids(np.concatenate([train[: self.labels], self.unlabelled]))
        before = features.provenance
        self.provenance = before and before.joined(xrays.split_hash, seen)
        self.head: LinearHead | None = None
        self.classifier: Classifier | None = None
        if config.method == "as_is":
            names = self.targets.names
            loaded = load_classifier(repo_path(config.encoder), config.backbone, config.in_channels, names)
            self.classifier = placed(loaded, self.device)

    def fit_head(self, features: np.ndarray) -> LinearHead:
        """Return the logistic regression on features [n, F] of the images whose labels are used."""
        rows, groups = self.train_indices, self.xrays.columns.groups
        return fit_linear_head(features, self.targets.values[rows], groups[rows], self.config.class_weights)

    def probe(self) -> dict[str, Any]:
        """Take the logistic regression on the encoder's features as the head, spread or not; return its strength."""
        self.head = self.fit_head(self.features.rows(self.train_indices))
        if len(self.unlabelled):
            features = self.features.rows(np.concatenate([self.train_indices, self.unlabelled]))
            labels = self.targets.values[self.train_indices]
            self.head = fit_spread_head(self.head, features, np.arange(self.labels), labels, self.config.class_weights)
        return {"regularisation": self.head.regularisation}

    def build_classifier(self) -> Classifier:
        """Return the network, with a head of zeros."""
        assert isinstance(self.features, NetworkFeatures)  # a table is only probed
        config, backbone = self.config, self.features.backbone()
        network = Classifier(backbone, len(self.targets.names), config.trainable, config.batch_norm)
        return placed(network, self.device)

    def start_from_probe(self, classifier: Classifier) -> dict[str, Any]:
        """Set the head to the logistic regression on what training will show it; return its strength.

        Layers that will normalise by the batch do so here: by the statistics of train images, whose labels are not
        read. On the initial statistics of random weights the head would be fitted to features that training never
        sees. Layers that keep their statistics keep them here too, and so does the way linear (docs/RESULTS.md).
        """
        if self.config.batch_norm == "train":
            images = torch.from_numpy(fixed_order("images for BatchNorm", self.xrays.indices("train"))[:MAX_RESTATED])
            size, channels, dtype = self.seen
            views = (plain_view(self.xrays.batch(rows), size, channels) for rows in images.split(128))
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                restate_batch_norm(classifier, views)
        features = forward_all(classifier, self.xrays, self.train_indices, self.seen, classifier.features)
        head = self.fit_head(features.numpy())
        classifier.set_head(head.weight, head.bias)
        return {"regularisation": head.regularisation}

    def train(self, show_progress: bool, after_evaluation: AfterEvaluation) -> dict[str, Any]:
        """Train all layers that are not frozen, by gradient descent; return what a summary says of the head."""
        self.classifier = self.build_classifier()
        found = self.start_from_probe(self.classifier) if self.config.head == "probe" else {}
        metric = f"val/{self.targets.metric}"
        watched = np.sort(fixed_order("validation images to watch", self.val)[:MAX_EVALUATED])

        def evaluate() -> dict[str, float]:
            return {metric: main_score(self.targets.values[watched], self.probabilities(watched))}

        def end_of_epoch(epoch: int, step: int, means: Mapping[str, float]) -> dict[str, float]:
            scores = evaluate()
            after_evaluation(epoch, scores[metric])
            return scores

        if self.run.checkpoint() is None:
            self.run.add_row({"epoch": 0, "step": 0, **evaluate()})
        engine = engine_config(self.config, self.labels)
        fit(
            self.classifier,
            self.step_function(self.classifier),
            end_of_epoch,
            self.train_indices,
            engine,
            self.run,
            lr_factors=lr_factors(self.classifier, self.config),
            steps_per_epoch=math.ceil(self.config.steps(self.labels) / engine.num_epochs),
            show_progress=show_progress,
        )
        return {**found, "steps": self.run.rows[-1]["step"]}

    def probabilities(self, indices: np.ndarray) -> np.ndarray:
        """Return probabilities [n, C] of X-rays without augmentation."""
        if self.classifier is None:
            assert self.head is not None
            logits = torch.from_numpy(self.head.logits(self.features.rows(indices)))
        else:
            logits = forward_all(self.classifier, self.xrays, indices, self.seen)
        if not logits.isfinite().all():
            raise UserError(
                f"the outputs of {self.run} are not finite; lower lr or use precision float32, under another run_name."
            )
        return self.targets.probabilities(logits)

    def step_function(self, classifier: Classifier) -> StepFunction:
        """Return the engine's step. Frozen stages that always see the same images are computed once, if that fits."""
        train, loss_of = self.train_indices, loss_function(self.targets, self.train_indices, self.config.class_weights)
        same = classifier.num_frozen and classifier.structure.in_a_row and not RECIPES[self.config.recipe]

        def prefix(indices: np.ndarray) -> Tensor:
            return forward_all(classifier, self.xrays, indices, self.seen, classifier.prefix)

        if not same or prefix(train[:1]).nbytes * len(train) > MAX_ACTIVATIONS:
            return classify_step(classifier, self.xrays, loss_of, self.config)
        frozen = prefix(train)  # [N, ...]

        def step(batch: Tensor, epoch: int, step_in_epoch: int) -> Mapping[str, Tensor]:
            rows = torch.from_numpy(np.searchsorted(train, batch.numpy()))
            return {"loss": loss_of(classifier.suffix(frozen[rows].to(self.device)), batch)}

        return step

    def finish(self, found: Mapping[str, Any]) -> None:
        """Write predictions, weights if they are kept, and the summary: what was trained on what."""
        config, targets = self.config, self.targets
        rows = np.concatenate([self.val, self.xrays.indices("test")])
        probabilities = self.probabilities(rows)
        place = config.fold, config.label_draw, config.arm, config.way, self.labels, config.start
        cell = dict(zip(CELL, place, strict=True))
        self.run.save_table("predictions", predictions_table(self.xrays, targets, rows, probabilities, cell))
        if config.keep_weights and isinstance(self.features, NetworkFeatures):
            classifier = self.classifier or self.build_classifier()
            if self.head is not None:
                classifier.set_head(self.head.weight, self.head.bias)
            weights = self.run.folder / weights_file(config.backbone)
            save_state_dict(weights, classifier.net.state_dict(), self.provenance)
            self.xrays.write_split(self.run.folder)
        val = main_score(targets.values[self.val], probabilities[: len(self.val)])
        self.run.log(int(found.get("steps", 0)), {f"final/{targets.metric}": val})
        self.run.finish(
            {
                **cell,
                **{key: getattr(config, key) for key in ("encoder", "method", "trainable")},
                "metric": targets.metric,
                "score": val,
                **found,
                "classes": list(targets.names),
                "multilabel": targets.multilabel,
                "synthetic": self.xrays.synthetic,
                "transductive": bool(self.note),
                "note": self.note,
                "split_hash": self.xrays.split_hash,
            }
        )
        self.run.drop_checkpoint()  # a comparison leaves hundreds of runs, and it is three times the weights


def classify_step(classifier: Classifier, xrays: XRays, loss_of: LossFunction, config: TrainingConfig) -> StepFunction:
    """Return the engine's step for a classifier: one view of each X-ray by config.recipe, logits, loss."""
    views = Views(config.recipe, config.img_res)

    def step(batch: Tensor, epoch: int, step_in_epoch: int) -> Mapping[str, Tensor]:
        generator = step_generator("fine-tuning views", config.random_seed, epoch, step_in_epoch)
        y = views.single(xrays.batch(batch), generator).expand(-1, config.in_channels, -1, -1)
        return {"loss": loss_of(classifier(y), batch)}

    return step


def labelled_subset(xrays: XRays, targets: Targets, count: int, draw: int, seed: int) -> np.ndarray:
    """Return the sorted indices of the `count` training images whose labels are used, 0 for all: see label_subset."""
    train = xrays.indices("train")
    return train[label_subset(xrays.columns.paths[train], targets.strata()[train], count or len(train), draw, seed)]


def lr_factors(classifier: Classifier, config: FinetuneConfig) -> dict[str, float]:
    """Return the factor of each part's learning rate, by the beginnings of parameters' names."""
    return {f"net.{classifier.structure.head}": 1.0, "net": config.backbone_lr_factor}
