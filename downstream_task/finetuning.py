"""`finetune(config)`: train a classifier from an encoder and few labels, by gradient descent or as a linear probe."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augmentations.recipes import RECIPES
from augmentations.transform_utils import Views, plain_view, step_generator
from dataset_loader.splits import label_subset
from dataset_loader.xrays import XRays, open_xrays
from downstream_task.classifier import Classifier, load_classifier, restate_batch_norm
from downstream_task.features import Features, features_of
from downstream_task.finetune_config import FinetuneConfig, TrainingConfig, engine_config, steps_per_epoch
from downstream_task.probes import LinearHead, fit_linear_head, forward_all
from downstream_task.targets import (
    LossFunction,
    Targets,
    check_learnable,
    loss_function,
    predictions_table,
    read_targets,
)
from self_sup_classes.backbones import save_state_dict, weights_file
from self_sup_classes.initialisation import weights_hashes
from self_sup_classes.provenance import check_unseen
from utils.config import UserError, repo_path
from utils.hardware import choose_precision, describe_device, placed, prepare
from utils.logging_utils import Run
from utils.seeds import fixed_order
from utils.training_utils import StepFunction, fit

MAX_ACTIVATIONS = 2**30  # bytes of frozen stages' outputs that are kept instead of computed in each step
MAX_RESTATED = 2048  # train images that BatchNorm's statistics are taken from
MAX_EVALUATED = 500  # validation images that a training is watched on

AfterEvaluation = Callable[[int, float], None]
FeaturesOf = Callable[[FinetuneConfig, XRays], Features]


def finetune(
    config: FinetuneConfig,
    xrays: XRays | None = None,
    run: Run | None = None,
    show_progress: bool = True,
    after_evaluation: AfterEvaluation = lambda epoch, score: None,
    features_of: FeaturesOf = features_of,
) -> Run:
    """Train a classifier as `config` says; return the finished run, or the stored one if it was finished before.

    Method "linear" is a logistic regression on features that are computed once. "as_is" trains nothing: it takes a
    file's own classes, which must be those of the data in their order. "finetune" starts from that regression
    (head "probe", Kumar et al. 2022, arXiv 2202.10054) or from zeros, and trains the layers `trainable` for the steps
    that TrainingConfig.steps gives, whatever validation says; the last weights count. predictions.csv has what the
    classifier says of the validation and test images; nothing is chosen by either, and nothing is scored on test.

    xrays             the data that the config names, if they are open already, of whatever fold
    run               the config's run, if it is open already
    after_evaluation  called with each evaluation's number and validation score; may stop the training by an exception
    features_of       gives the encoder's features; LastFeatures keeps them for the next head

    Raises UserError for a config, data, an encoder or a run folder that cannot be used, before anything is written.
    """
    device = prepare(config.device, config.threads)
    run = run or Run(config.run_name, config, "fine-tuning")
    if run.summary is None:
        job = _Finetuning(config, run, (xrays or open_xrays(config, device)).of_fold(config.fold), features_of)
        job.start()
        if config.method == "linear":
            job.finish(job.probe())
        else:
            job.finish(job.train(show_progress, after_evaluation) if config.method == "finetune" else {})
    return run


class _Finetuning:
    """The parts of one fine-tuning, built in reading order, and the steps that `finetune` takes with them."""

    def __init__(self, config: FinetuneConfig, run: Run, xrays: XRays, features_of: FeaturesOf):
        self.config, self.run, self.xrays, self.device = config, run, xrays, xrays.store.device
        self.dtype = choose_precision(config.precision, self.device)
        self.features: Features = features_of(config, xrays)
        self.note = check_unseen(self.features.provenance, xrays, config.allow_seen, config.encoder)
        self.targets = read_targets(xrays, config)
        self.metric = f"val/{self.targets.metric}"
        self.train_indices = labelled_subset(
            xrays, self.targets, config.num_labels, config.label_draw, config.split_seed
        )
        self.val, self.test = xrays.indices("val"), xrays.indices("test")
        self.watched = np.sort(fixed_order("validation images to watch", self.val)[:MAX_EVALUATED])
        check_learnable(self.targets, {"the labelled subset": self.train_indices, "the validation part": self.val})
        self.labels = 0 if config.method == "as_is" else len(self.train_indices)
        # an encoder of unknown origin stays one after further training
        seen, before = xrays.image_ids(self.train_indices[: self.labels]), self.features.provenance
        self.provenance = before and before.joined(xrays.split_hash, seen)
        self.head: LinearHead | None = None
        self.classifier: Classifier | None = None
        if config.method == "as_is":
            names = self.targets.names
            loaded = load_classifier(repo_path(config.encoder), config.backbone, config.in_channels, names)
            self.classifier = placed(loaded, self.device)

    def start(self) -> None:
        """Create the run's folder."""
        weights = weights_hashes([self.config.encoder])
        facts = {"data": self.xrays.facts(), "weights": weights, "labels": self.labels, "note": self.note}
        facts["note_on_weights"] = self.features.note
        self.run.start(device=describe_device(self.device), **facts)

    def fit_head(self, features: np.ndarray) -> LinearHead:
        """Return the logistic regression on features [n, F] of the images whose labels are used."""
        rows, groups = self.train_indices, self.xrays.columns.groups
        return fit_linear_head(features, self.targets.values[rows], groups[rows], self.config.class_weights)

    def probe(self) -> dict[str, Any]:
        """Take the logistic regression on the encoder's features as the head; return its strength."""
        self.head = self.fit_head(self.features.rows(self.train_indices))
        return {"regularisation": self.head.regularisation}

    def build_classifier(self) -> Classifier:
        """Return the network, with a head of zeros."""
        trainable = self.config.trainable if self.config.method == "finetune" else "fc"
        backbone = self.features.backbone()
        return placed(Classifier(backbone, len(self.targets.names), trainable, self.config.batch_norm), self.device)

    def start_from_probe(self, classifier: Classifier) -> dict[str, Any]:
        """Set the head to the logistic regression on what training will show it; return its strength.

        Layers that will normalise by the batch do so here: by the statistics of train images, whose labels are not
        read. On the initial statistics of random weights the head would be fitted to features that training never
        sees. Layers that keep their statistics keep them here too, and so does the way linear (docs/RESULTS.md).
        """
        if self.config.batch_norm == "train":
            images = torch.from_numpy(fixed_order("images for BatchNorm", self.xrays.indices("train"))[:MAX_RESTATED])
            size, channels = self.config.img_res, self.config.in_channels
            views = (plain_view(self.xrays.batch(rows), size, channels) for rows in images.split(128))
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                restate_batch_norm(classifier, views)
        head = self.fit_head(self.forward(classifier, self.train_indices, classifier.features).numpy())
        classifier.set_head(head.weight, head.bias)
        return {"regularisation": head.regularisation}

    def train(self, show_progress: bool, after_evaluation: AfterEvaluation) -> dict[str, Any]:
        """Train all layers that are not frozen, by gradient descent; return what a summary says of the head."""
        config = self.config
        self.classifier = self.build_classifier()
        found = self.start_from_probe(self.classifier) if config.head == "probe" else {}

        def end_of_epoch(epoch: int, step: int, means: Mapping[str, float]) -> dict[str, float]:
            scores = self.evaluate()
            after_evaluation(epoch, scores[self.metric])
            return scores

        if self.run.checkpoint() is None:
            self.run.add_row({"epoch": 0, "step": 0, **self.evaluate()})
        fit(
            self.classifier,
            self.step_function(self.classifier),
            end_of_epoch,
            self.train_indices,
            engine_config(config, self.labels),
            self.run,
            lr_factors=lr_factors(self.classifier, config),
            steps_per_epoch=steps_per_epoch(config, self.labels),
            show_progress=show_progress,
        )
        return {**found, "steps": self.run.rows[-1]["step"]}

    def evaluate(self) -> dict[str, float]:
        """Return the score on the validation images that the training is watched on."""
        probabilities = self.probabilities(self.watched)
        return {self.metric: self.targets.score(self.targets.values[self.watched], probabilities)}

    def probabilities(self, indices: np.ndarray) -> np.ndarray:
        """Return probabilities [n, C] of X-rays without augmentation."""
        if self.classifier is None:
            assert self.head is not None
            logits = torch.from_numpy(self.head.logits(self.features.rows(indices)))
        else:
            logits = self.forward(self.classifier, indices)
        if not logits.isfinite().all():
            raise UserError(
                f"the outputs of {self.run} are not finite; lower lr or use precision float32, under another run_name."
            )
        return self.targets.probabilities(logits)

    def step_function(self, classifier: Classifier) -> StepFunction:
        """Return the engine's step. Frozen stages that always see the same images are computed once, if that fits."""
        loss_of = loss_function(self.targets, self.train_indices, self.config.class_weights)
        if classifier.num_frozen and classifier.structure.in_a_row and RECIPES[self.config.recipe] == []:
            one = self.forward(classifier, self.train_indices[:1], classifier.prefix)
            if one.nbytes * len(self.train_indices) <= MAX_ACTIVATIONS:
                return self.suffix_step(classifier, loss_of)
        return classify_step(classifier, self.xrays, loss_of, self.config)

    def suffix_step(self, classifier: Classifier, loss_of: LossFunction) -> StepFunction:
        """Return a step on the outputs of the frozen stages, which are computed here."""
        frozen = self.forward(classifier, self.train_indices, classifier.prefix)  # [N, ...]

        def step(batch: Tensor, epoch: int, step_in_epoch: int) -> Mapping[str, Tensor]:
            rows = torch.from_numpy(np.searchsorted(self.train_indices, batch.numpy()))
            return {"loss": loss_of(classifier.suffix(frozen[rows].to(self.device)), batch)}

        return step

    def forward(
        self, classifier: Classifier, indices: np.ndarray, part: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return logits [n, C] of X-rays without augmentation, or the output of a part of the classifier."""
        size, channels = self.config.img_res, self.config.in_channels
        return forward_all(classifier, self.xrays, indices, size, channels, self.dtype, part)

    def finish(self, found: Mapping[str, Any]) -> None:
        """Write predictions, weights if they are kept, and the summary: what was trained on what."""
        config, rows = self.config, np.concatenate([self.val, self.test])
        probabilities = self.probabilities(rows)
        known = {"fold": config.fold, "draw": config.label_draw, "arm": config.arm, "way": config.way}
        known |= {"labels": self.labels, "start": config.start}
        self.run.save_table("predictions", predictions_table(self.xrays, self.targets, rows, probabilities, known))
        if config.keep_weights and self.features.has_network:
            classifier = self.classifier or self.build_classifier()
            if self.head is not None:
                classifier.set_head(self.head.weight, self.head.bias)
            weights = self.run.folder / weights_file(config.backbone)
            save_state_dict(weights, classifier.net.state_dict(), self.provenance)
            self.xrays.write_split(self.run.folder)
        val = self.targets.score(self.targets.values[self.val], probabilities[: len(self.val)])
        self.run.log(int(found.get("steps", 0)), {f"final/{self.targets.metric}": val})
        self.run.finish(
            {
                **{
                    key: getattr(config, key)
                    for key in ("arm", "way", "fold", "start", "encoder", "method", "trainable")
                },
                "draw": config.label_draw,
                "labels": self.labels,
                "metric": self.targets.metric,
                "score": val,
                **found,
                "classes": list(self.targets.names),
                "multilabel": self.targets.multilabel,
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


def numbers_of_labels(entries: Sequence[int | float | str], xrays: XRays, folds: Sequence[int]) -> list[int]:
    """Return numbers of labels that every fold has: a number as it is, "all" and shares of the smallest train part.

    Raises UserError for more labels than that, and for two entries that are the same number.
    """
    most = min(len(xrays.of_fold(fold).indices("train")) for fold in folds)
    shares = [most if entry == "all" else entry for entry in entries]
    counts = [round(entry * most) if isinstance(entry, float) else entry for entry in shares]
    for entry, count in zip(entries, counts, strict=True):
        if isinstance(count, str) or not 1 <= count <= most or counts.count(count) > 1:
            raise UserError(
                f"num_labels holds {entry!r}, which is {count} labels; expected different numbers from 1 to {most:,}, "
                'which every fold has to train with, shares of that such as 0.1, or "all".'
            )
    return [count for count in counts if isinstance(count, int)]


def lr_factors(classifier: Classifier, config: FinetuneConfig) -> dict[str, float]:
    """Return the factor of each part's learning rate, by the beginnings of parameters' names."""
    return {f"net.{classifier.structure.head}": 1.0, "net": config.backbone_lr_factor}
