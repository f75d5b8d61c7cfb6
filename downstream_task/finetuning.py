"""`finetune(config)`: train a classifier from an encoder and few labels, by gradient descent or as a linear probe."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augmentations.recipes import RECIPES
from augmentations.transform_utils import Views, step_generator
from dataset_loader.splits import label_subset
from dataset_loader.xrays import XRays, open_xrays
from downstream_task.classifier import Classifier, load_classifier
from downstream_task.finetune_config import FinetuneConfig, TrainingConfig, engine_config, has_converged
from downstream_task.probes import fit_linear_head, forward_all, knn_probabilities
from downstream_task.targets import (
    LossFunction,
    Targets,
    check_learnable,
    loss_function,
    predictions_table,
    read_targets,
)
from self_sup_classes.backbones import save_state_dict
from self_sup_classes.initialisation import start_from, weights_hashes
from self_sup_classes.provenance import check_unseen
from utils.config import UserError, repo_path
from utils.hardware import choose_precision, describe_device, placed, prepare
from utils.logging_utils import Run
from utils.training_utils import StepFunction, fit

MAX_ACTIVATIONS = 2**30  # bytes of frozen stages' outputs that are kept instead of computed in each step

AfterEvaluation = Callable[[int, float], None]


def finetune(
    config: FinetuneConfig,
    xrays: XRays | None = None,
    run: Run | None = None,
    show_progress: bool = True,
    after_evaluation: AfterEvaluation = lambda epoch, score: None,
) -> Run:
    """Train a classifier as `config` says; return the finished run, or the stored one if it was finished before.

    Method "linear" is a logistic regression on features that are computed once. "as_is" trains nothing: it scores a
    file's own classes, which must be those of the data in their order. "finetune" starts from that head
    (head "probe", Kumar et al. 2022, arXiv 2202.10054) or from zeros, and trains the layers `trainable` until
    validation has not risen for `patience` evaluations, or up to the cap of TrainingConfig.max_evaluations; the
    summary's stopped_by says which. The weights that were best on validation are kept; the test part is not read.

    xrays             the data that the config names, if they are open already
    run               the config's run, if it is open already
    after_evaluation  called with each evaluation's number and validation score; may stop the training by an exception

    Raises UserError for a config, data, an encoder or a run folder that cannot be used, before anything is written.
    """
    device = prepare(config.device, config.threads)
    run = run or Run(config.run_name, config, "fine-tuning")
    if run.summary is None:
        job = _Finetuning(config, run, xrays or open_xrays(config, device), device)
        job.start()
        starts_from_probe = config.method == "finetune" and config.head == "probe"
        found = job.fit_head() if config.method == "linear" or starts_from_probe else {}
        job.evaluate_start()
        if config.method == "finetune":
            job.train(show_progress, after_evaluation)
        job.finish(found)
    return run


class _Finetuning:
    """The parts of one fine-tuning, built in reading order, and the steps that `finetune` takes with them."""

    def __init__(self, config: FinetuneConfig, run: Run, xrays: XRays, device: torch.device):
        self.config, self.run, self.xrays, self.device = config, run, xrays, device
        self.dtype = choose_precision(config.precision, device)
        start = start_from(config.encoder, config.backbone, config.in_channels, config.random_seed)
        self.note_on_weights = start.note
        self.note = check_unseen(start.provenance, xrays, config.allow_seen, config.encoder)
        self.targets = read_targets(xrays, config)
        self.metric = f"val/{self.targets.metric}"
        subset = config.label_fraction, config.label_draw, config.split_seed
        self.train_indices, self.val = labelled_subset(xrays, self.targets, *subset), xrays.indices("val")
        check_learnable(self.targets, {"the labelled subset": self.train_indices, "the validation part": self.val})
        learnt_from = self.train_indices[: 0 if config.method == "as_is" else None]
        seen = xrays.image_ids(learnt_from)
        # an encoder of unknown origin stays one after further training
        self.provenance = start.provenance and start.provenance.joined(xrays.split_hash, seen)
        names, trainable = self.targets.names, config.trainable if config.method == "finetune" else "fc"
        if config.method == "as_is":
            classifier = load_classifier(repo_path(config.encoder), config.backbone, config.in_channels, names)
        else:
            classifier = Classifier(start.backbone, len(names), trainable, config.batch_norm)
        self.classifier = placed(classifier, device)

    def start(self) -> None:
        """Create the run's folder."""
        weights = weights_hashes([self.config.encoder])
        facts = {"data": self.xrays.facts(), "weights": weights, "labels": len(self.train_indices), "note": self.note}
        facts["note_on_weights"] = self.note_on_weights
        self.run.start(device=describe_device(self.device), **facts)
        self.xrays.write_split(self.run.folder)

    def fit_head(self) -> dict[str, Any]:
        """Set the head to the logistic regression on the encoder's features; return its strength and kNN's score."""
        train, val = (self.predict(rows, self.classifier.features).numpy() for rows in (self.train_indices, self.val))
        labels, val_labels = (self.targets.values[rows] for rows in (self.train_indices, self.val))
        held_out = (val, val_labels) if self.config.choose_by == "validation" else (None, None)
        head = fit_linear_head(train, labels, *held_out, self.config.class_weights)
        with torch.no_grad():
            self.classifier.head.weight.copy_(torch.from_numpy(head.weight))
            self.classifier.head.bias.copy_(torch.from_numpy(head.bias))
        neighbours = self.targets.scores(self.val, knn_probabilities(train, labels, val, self.targets))
        return {"regularisation": head.regularisation, "encoder_knn": neighbours[self.targets.metric]}

    def evaluate_start(self) -> None:
        """Write the row of step 0, unless an earlier call did."""
        if self.run.checkpoint() is None:
            scores = self.evaluate()
            self.run.add_row({"epoch": 0, "step": 0, **scores})
            self.run.log(0, scores)

    def evaluate(self) -> dict[str, float]:
        """Return the scores on validation; keep weights and predictions if no evaluation before was as good."""
        logits = self.predict(self.val)
        if not logits.isfinite().all():
            raise UserError(
                f"the outputs of {self.run} are not finite; lower lr or use precision float32, under another run_name."
            )
        probabilities = self.targets.probabilities(logits)
        scores = {f"val/{name}": value for name, value in self.targets.scores(self.val, probabilities).items()}
        if scores[self.metric] > max((row[self.metric] for row in self.run.rows), default=-1.0):
            weights = self.run.folder / f"{self.config.backbone}_best_state_dict.pt"
            save_state_dict(weights, self.classifier.net.state_dict(), self.provenance)
            self.run.save_table("predictions_val", predictions_table(self.xrays, self.targets, self.val, probabilities))
        return scores

    def train(self, show_progress: bool, after_evaluation: AfterEvaluation) -> None:
        """Train all layers that are not frozen, by gradient descent."""

        def end_of_epoch(epoch: int, step: int, means: Mapping[str, float]) -> dict[str, float]:
            scores = self.evaluate()
            after_evaluation(epoch, scores[self.metric])
            return scores

        fit(
            self.classifier,
            self.step_function(),
            end_of_epoch,
            self.train_indices,
            engine_config(self.config, len(self.train_indices)),
            self.run,
            lr_factors=lr_factors(self.classifier, self.config),
            steps_per_epoch=self.config.evaluate_every,
            show_progress=show_progress,
            stop=self.has_converged,
        )

    def has_converged(self) -> bool:
        """Whether validation has not risen for `patience` evaluations."""
        return has_converged([row[self.metric] for row in self.run.rows], self.config.patience)

    def step_function(self) -> StepFunction:
        """Return the engine's step. Frozen stages that always see the same images are computed once, if that fits."""
        loss_of = loss_function(self.targets, self.train_indices, self.config.class_weights)
        if self.classifier.num_frozen and RECIPES[self.config.recipe] == []:
            one = self.predict(self.train_indices[:1], self.classifier.prefix)
            if one.nbytes * len(self.train_indices) <= MAX_ACTIVATIONS:
                return self.suffix_step(loss_of)
        return classify_step(self.classifier, self.xrays, loss_of, self.config)

    def suffix_step(self, loss_of: LossFunction) -> StepFunction:
        """Return a step on the outputs of the frozen stages, which are computed here."""
        frozen = self.predict(self.train_indices, self.classifier.prefix)  # [N, ...]

        def step(batch: Tensor, epoch: int, step_in_epoch: int) -> Mapping[str, Tensor]:
            rows = torch.from_numpy(np.searchsorted(self.train_indices, batch.numpy()))
            return {"loss": loss_of(self.classifier.suffix(frozen[rows].to(self.device)), batch)}

        return step

    def predict(self, indices: np.ndarray, part: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return logits [n, C] of X-rays without augmentation, or the output of a part of the classifier."""
        size, channels = self.config.img_res, self.config.in_channels
        return forward_all(self.classifier, self.xrays, indices, size, channels, self.dtype, part)

    def finish(self, found: Mapping[str, Any]) -> None:
        """Write the summary: what was trained on what, and the best evaluation."""
        config, best = self.config, max(self.run.rows, key=lambda row: row[self.metric])
        self.run.log(int(self.run.rows[-1]["step"]), {f"best/{self.targets.metric}": best[self.metric]})
        self.run.finish(
            {
                "encoder": config.encoder,
                "method": config.method,
                "trainable": config.trainable,
                "fraction": config.label_fraction,
                "draw": config.label_draw,
                "head": config.head,
                "lr": config.lr,
                "backbone_lr_factor": config.backbone_lr_factor,
                "batch_norm": config.batch_norm,
                "labels": len(self.train_indices),
                "metric": self.targets.metric,
                "score": best[self.metric],
                **{name: value for name, value in best.items() if name.startswith("val/")},
                **found,
                "step_best": best["step"],
                "steps": self.run.rows[-1]["step"],
                "stopped_by": "" if config.method != "finetune" else "patience" if self.has_converged() else "cap",
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


def labelled_subset(xrays: XRays, targets: Targets, fraction: float, draw: int, seed: int) -> np.ndarray:
    """Return the sorted indices of the training images whose labels are used: nested over fractions, stratified."""
    train = xrays.indices("train")
    return train[label_subset(xrays.columns.paths[train], targets.strata()[train], fraction, draw, seed)]


def lr_factors(classifier: Classifier, config: FinetuneConfig) -> dict[str, float]:
    """Return the factor of each part's learning rate, by the beginnings of parameters' names."""
    return {f"net.{classifier.head_name}": 1.0, "net": config.backbone_lr_factor}
