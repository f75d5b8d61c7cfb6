"""`finetune(config)`: a classifier from an encoder and few labels, by gradient descent or as a linear probe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augmentations.recipes import RECIPES
from augmentations.transform_utils import Views, step_generator
from dataset_loader.splits import label_subset
from dataset_loader.xrays import DataConfig, XRays, open_xrays
from downstream_task.classifier import FROZEN_STAGES, Classifier, save_classifier
from downstream_task.linear_head import fit_linear_head, knn_probabilities
from downstream_task.predictions import predictions_table
from downstream_task.probes import forward_all
from downstream_task.targets import TargetConfig, Targets, check_learnable, loss_function, read_targets
from self_sup_classes.backbones import check_backbone
from self_sup_classes.initialisation import Start, start_from
from self_sup_classes.provenance import check_unseen
from utils.config import UserError, check_at_least, check_choice, part_of
from utils.files import write_again
from utils.hardware import DEVICES, choose_precision, describe_device, placed, prepare
from utils.logging_utils import Run
from utils.training_utils import FitConfig, StepFunction, fit

METHODS = ["finetune", "linear"]
HEADS = ["probe", "zeros"]
MOST_ACTIVATIONS = 2**30  # bytes of frozen stages' outputs that are kept instead of computed in each step


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(DataConfig, TargetConfig):
    """The keys that all runs of a comparison share; trained_vs_no_trained_compare.py says what each means."""

    run_name: str
    random_seed: int
    backbone: str
    in_channels: int
    recipe: str
    head: str
    num_steps: int
    evaluations: int
    batch_size: int
    optimizer: str
    backbone_lr_factor: float
    optimizer_weight_decay: float
    allow_seen: bool
    precision: str
    device: str
    threads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_backbone(self.backbone, self.in_channels)
        check_choice("head", self.head, HEADS)
        check_choice("recipe", self.recipe, list(RECIPES))
        check_choice("device", self.device, DEVICES)
        for key, least in {"num_steps": 1, "evaluations": 1, "backbone_lr_factor": 0}.items():
            check_at_least(key, getattr(self, key), least)
        if self.num_steps % self.evaluations:
            raise UserError(
                f"num_steps is {self.num_steps} and evaluations {self.evaluations}; make it a multiple, so that the "
                "evaluations are evenly spread."
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Every key of one fine-tuning run."""

    encoder: str
    method: str
    trainable: str
    label_fraction: float
    label_draw: int
    lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("method", self.method, METHODS)
        check_choice("trainable", self.trainable, list(FROZEN_STAGES))
        check_at_least("label_draw", self.label_draw, 0)
        engine_config(self)


def finetune(
    config: FinetuneConfig,
    xrays: XRays | None = None,
    show_progress: bool = True,
    after_evaluation: Callable[[int, float], None] = lambda epoch, score: None,
) -> Run:
    """Train a classifier as `config` says; the finished run, or the stored one if it was finished.

    `xrays` spares opening the data again, which must be those that the config names. `after_evaluation` is
    told each epoch's number and validation score, and may end the training by an exception.

    Method "linear" is a logistic regression on features that are computed once. "finetune" starts from that head
    (head "probe", Kumar et al. 2022, arXiv 2202.10054) or from zeros, and trains what `trainable` names. The choices
    (regularisation, best weights) are made on validation; the test part is not read.
    Raises UserError for a config, data, an encoder or a run folder that cannot be used, before anything is written.
    """
    device = prepare(config.device, config.threads)
    run = Run(config.run_name, config, "fine-tuning")
    if run.summary is None:
        _Finetuning(config, run, xrays, device, show_progress, after_evaluation).run_it()
    return run


class _Finetuning:
    """One run of `finetune`, its parts built once in reading order."""

    def __init__(
        self,
        config: FinetuneConfig,
        run: Run,
        xrays: XRays | None,
        device: torch.device,
        show_progress: bool,
        after_evaluation: Callable[[int, float], None],
    ):
        self.config, self.run, self.show_progress, self.after_evaluation = config, run, show_progress, after_evaluation
        self.device = device
        self.dtype = choose_precision(config.precision, self.device)
        start = start_from(config.encoder, config.backbone, config.in_channels, config.random_seed)
        self.xrays = xrays or open_xrays(config, self.device)
        self.note = check_unseen(start.provenance, self.xrays, config.allow_seen, config.encoder)
        self.targets = read_targets(self.xrays, config)
        self.train, self.val = labelled_subset(self.xrays, self.targets, config), self.xrays.indices("val")
        check_learnable(self.targets, {"the labelled subset": self.train, "the validation part": self.val})
        self.split_hash, seen = str(self.xrays.facts()["split_hash"]), self.xrays.image_ids(self.train)
        # what does not say what it has seen cannot say it after further training either
        self.provenance = start.provenance and start.provenance.joined(self.split_hash, seen)
        self.classifier = placed(_classifier(start, self.targets, config), self.device)

    def run_it(self) -> None:
        """Head first, then the rest; keep what is best on validation."""
        facts = {"data": self.xrays.facts(), "labels": len(self.train), "note": self.note}
        self.run.start(device=describe_device(self.device), **facts)
        self.xrays.write_split(self.run.folder)
        summary: dict[str, Any] = {}
        if self.config.method == "linear" or self.config.head == "probe":
            summary = self.start_head()  # kNN and regularisation are the encoder's, as it starts
        if self.run.checkpoint() is None:
            scores = self.keep_best(self.predict(self.val))
            self.run.add_row({"epoch": 0, "step": 0, **scores})
            self.run.log(0, scores)
        if self.config.method == "finetune":
            self.train_rest()
            self.save("final")
        else:
            write_again(self.path("final"), self.path("best"))  # there is one evaluation, the best
        self.finish(summary)

    def start_head(self) -> dict[str, Any]:
        """Set the head to the logistic regression on the features as they are now; its scores on validation."""
        train, val = (self.predict(indices, features=True).numpy() for indices in (self.train, self.val))
        values = self.targets.values
        head = fit_linear_head(train, values[self.train], val, values[self.val], self.config.class_weights)
        with torch.no_grad():
            self.classifier.head.weight.copy_(torch.from_numpy(head.weight))
            self.classifier.head.bias.copy_(torch.from_numpy(head.bias))
        neighbours = self.targets.scores(self.val, knn_probabilities(train, values[self.train], val, self.targets))
        return {"regularisation": head.regularisation, "encoder_knn": neighbours[self.targets.metric]}

    def train_rest(self) -> None:
        """Gradient descent on all that is not frozen."""
        config, num_frozen = self.config, self.classifier.num_frozen
        loss_of = loss_function(self.targets, self.train, config.class_weights)
        fixed = num_frozen > 0 and RECIPES[config.recipe] == []  # what the frozen stages see never changes
        if fixed and self.predict(self.train[:1], prefix=True).nbytes * len(self.train) > MOST_ACTIVATIONS:
            fixed = False
        activations = self.predict(self.train, prefix=True) if fixed else None
        position = {index: row for row, index in enumerate(self.train.tolist())}

        def step_on(frozen: Tensor, batch: Tensor) -> Mapping[str, Tensor]:
            rows = torch.tensor([position[index] for index in batch.tolist()])
            return {"loss": loss_of(self.classifier.suffix(frozen[rows].to(self.device)), batch)}

        fit(
            self.classifier,
            classify_step(self.classifier, self.xrays, loss_of, config)
            if activations is None
            else lambda batch, epoch, step: step_on(activations, batch),
            self.end_of_epoch,
            self.train,
            engine_config(config),
            self.run,
            lr_factors=lr_factors(self.classifier, config),
            steps_per_epoch=config.num_steps // config.evaluations,
            show_progress=self.show_progress,
        )

    def end_of_epoch(self, epoch: int, step: int, means: Mapping[str, float]) -> dict[str, float]:
        scores = self.keep_best(self.predict(self.val))
        self.after_evaluation(epoch, scores[f"val/{self.targets.metric}"])
        return scores

    def keep_best(self, logits: Tensor) -> dict[str, float]:
        """Validation scores of logits [n, C]; weights and predictions are kept if none were better."""
        if not logits.isfinite().all():
            raise UserError(
                f"{self.run} gives numbers that are not finite; lower lr or use precision float32, under another name."
            )
        probabilities = self.targets.probabilities(logits)
        scores = {f"val/{name}": value for name, value in self.targets.scores(self.val, probabilities).items()}
        metric = f"val/{self.targets.metric}"
        if scores[metric] > max((row[metric] for row in self.run.rows), default=-1.0):
            self.save("best")
            self.run.save_table("predictions_val", predictions_table(self.xrays, self.targets, self.val, probabilities))
        return scores

    def save(self, which: str) -> None:
        save_classifier(self.path(which), self.classifier, self.provenance)

    def path(self, which: str) -> Path:
        return self.run.folder / f"{self.config.backbone}_{which}_state_dict.pt"

    def predict(self, indices: np.ndarray, features: bool = False, prefix: bool = False) -> Tensor:
        """Logits [n, C] of X-rays without augmentation; or their features, or what the frozen stages give."""
        part = self.classifier.features if features else self.classifier.prefix if prefix else None
        resolution, channels = self.config.img_res, self.config.in_channels
        return forward_all(self.classifier, self.xrays, indices, resolution, channels, self.dtype, part)

    def finish(self, summary: dict[str, Any]) -> None:
        metric = f"val/{self.targets.metric}"
        best = max(self.run.rows, key=lambda row: row[metric])
        self.run.log(int(self.run.rows[-1]["step"]), {f"best/{self.targets.metric}": best[metric]})
        self.run.finish(
            {
                "synthetic": self.xrays.synthetic,
                "note": self.note,
                "encoder": self.config.encoder,
                "classes": list(self.targets.names),
                "labels": len(self.train),
                "metric": self.targets.metric,
                "score": best[metric],
                **{name: value for name, value in best.items() if name.startswith("val/")},
                **summary,
                "step_best": best["step"],
                "split_hash": self.split_hash,
            }
        )
        self.run.drop_checkpoint()  # comparisons leave hundreds of runs, and it is three times the weights


def classify_step(
    classifier: Classifier, xrays: XRays, loss_of: Callable[[Tensor, Tensor], Tensor], config: TrainingConfig
) -> StepFunction:
    """The engine's step for a classifier: one view of each X-ray by config.recipe, logits, loss."""
    views = Views(config.recipe, config.img_res)

    def step(batch: Tensor, epoch: int, step_in_epoch: int) -> Mapping[str, Tensor]:
        generator = step_generator(config.random_seed, epoch, step_in_epoch)
        y = views.single(xrays.batch(batch), generator).expand(-1, config.in_channels, -1, -1)
        return {"loss": loss_of(classifier(y), batch)}

    return step


def labelled_subset(xrays: XRays, targets: Targets, config: FinetuneConfig) -> np.ndarray:
    """Indices of the training images whose labels are used: a nested, stratified fraction of the train part."""
    train = xrays.indices("train")
    strata = targets.strata()[train]
    fraction, draw = config.label_fraction, config.label_draw
    return train[label_subset(xrays.columns.paths[train], strata, fraction, draw, config.split_seed)]


def _classifier(start: Start, targets: Targets, config: FinetuneConfig) -> Classifier:
    trainable = "fc" if config.method == "linear" else config.trainable
    return Classifier(start.backbone, len(targets.names), trainable)


def lr_factors(classifier: Classifier, config: TrainingConfig) -> dict[str, float]:
    """What the learning rate of each part is multiplied with, by the beginnings of parameters' names."""
    return {f"net.{classifier.head_name}": 1.0, "net": config.backbone_lr_factor}


def engine_config(config: FinetuneConfig) -> FitConfig:
    """Return what the engine reads; its epoch is what lies between two evaluations."""
    return FitConfig(
        **{**_FIXED, **part_of(config, FitConfig)},
        num_epochs=config.evaluations,
    )


_FIXED = {"scheduler": "cosine", "warmup_epochs": 0, "gradient_clip": 0.0, "checkpoint_every": 500}
