"""What is measured on fixed images while Barlow Twins trains: health, probes and pictures."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from tqdm import tqdm

from augmentations.transform_utils import RecipeName, Views, denormalise, operator_views, step_generator
from dataset_loader.splits import label_subset, strata_of
from dataset_loader.xrays import FoldConfig, XRays
from downstream_task.predictions import metric_of
from downstream_task.probes import MIN_IMAGES, MIN_TESTED, InputFormat, forward_all, linear_probe, probed_classes
from downstream_task.targets import apply_policy
from self_sup_classes.backbones import Channels
from self_sup_classes.barlow import BarlowTwins, BarlowTwinsLoss, cross_correlation, random_embedding_terms
from self_sup_classes.health import Health, measure_health
from utils import plots
from utils.config import Count, between
from utils.hardware import choose_precision
from utils.logging_utils import Run
from utils.metrics import auroc, balanced_accuracy
from utils.optimisation import FitConfig
from utils.seeds import fixed_order
from utils.wording import metric_name

PROBES = ("probe/linear", "probe/knn")
LOSS_TERMS = [f"train/{term}" for term in BarlowTwinsLoss._fields]
PROBE_LABELS = 100  # labelled training images that a probe learns from: few, since that is what pretraining is for
FINDING_LABELS = 500  # the same for findings, most of which are rare
PROBE_DRAWS = 5  # draws of them, stratified, over which a probe's score is averaged
PROBE_TESTS = 2000  # validation images, at most, that they are scored on
NEIGHBOURS = 20  # of the kNN probe
HEALTH_IMAGES = 1024
VIEWS_SHOWN = 6  # images in views.png
DRAWS_SHOWN = 4  # of each operator in recipe.png


@dataclass(frozen=True, kw_only=True)
class MonitorConfig(FoldConfig, FitConfig):
    """What the monitor reads of a pretraining's config."""

    in_channels: Channels
    recipe: RecipeName
    views: Annotated[int, between(2, 64)]
    probe_every: Count


class Monitor:
    """The engine's end-of-epoch function: health and probes of the network."""

    def __init__(
        self,
        model: BarlowTwins,
        xrays: XRays,
        indices: np.ndarray,
        config: MonitorConfig,
        run: Run,
    ):
        """Choose the images to measure on; `indices` are those of the training."""
        self.model, self.xrays, self.config, self.run = model, xrays, config, run
        self.views = Views(config.recipe, config.img_res, config.views)
        self.device = next(model.parameters()).device
        self.seen = InputFormat(config.img_res, config.in_channels, choose_precision(config.precision, self.device))
        self.sample = _sample("health", indices, HEALTH_IMAGES)
        self.labels = probe_labels(xrays.columns.labels)
        self.val = _sample("probe tests", xrays.indices("val"), PROBE_TESTS)
        self.draws = _label_draws(xrays, config.split_seed) if len(self.val) else []

    def __call__(self, epoch: int, step: int, means: Mapping[str, float]) -> dict[str, float]:
        """Return the numbers of one epoch; the first process alone measures them."""
        if not self.run.is_writer:
            return {}
        health = self.health(means)
        tqdm.write(f"  {health.verdict()}", file=sys.stderr)
        numbers = health.scalars()
        if epoch % self.config.probe_every == 0 or epoch == self.config.num_epochs:
            self.run.save_figure("cross_correlation", self.correlation_figure(epoch), step)
            numbers |= self.probe()
        return numbers

    def record_start(self) -> None:
        """Draw views and recipe, and record ranks and probes of the network before its first step, as epoch 0."""
        self.run.save_figure("views", self.views_figure(), step=0)
        self.run.save_figure("recipe", self.recipe_figure(), step=0)
        numbers = self.health({}).scalars() | self.probe()
        self.run.log(0, numbers)
        self.run.add_row({"epoch": 0, "step": 0, **numbers})

    def health(self, means: Mapping[str, float]) -> Health:
        """Return the health of the network now, given an epoch's mean loss and its terms."""
        features = self._features(self.sample)
        with torch.no_grad():
            embeddings = self.model.projector(features.to(self.device)).cpu()
        terms = [means.get(tag, np.nan) for tag in LOSS_TERMS]
        return measure_health(features, embeddings, terms, self.config.batch_size, self.config.views)

    def probe(self) -> dict[str, float]:
        """Return the linear and kNN probe's score on validation, the mean over the draws; {} without labels there."""
        if not self.draws:
            return {}
        pool = np.unique(np.concatenate(self.draws))
        pooled, val = self._features(pool), self._features(self.val)
        scores = []
        for draw in self.draws:
            train = pooled[torch.from_numpy(np.searchsorted(pool, draw))]
            scores.append(probe(train, self.labels[draw], val, self.labels[self.val]))
        return {tag: float(np.mean([s[tag] for s in scores])) for tag in PROBES if all(tag in s for s in scores)}

    def facts(self) -> dict[str, object]:
        """Return what a summary says of the data, the probes and the network's last epoch."""
        probes = {"metric": metric_of(self.labels), "chance": self._chance}
        return {
            "synthetic": self.xrays.synthetic,
            "verdict": self.health(self.run.rows[-1]).verdict(),
            **(probes if self.draws else {"probes_skipped": self.skipped}),
            "split_hash": self.xrays.split_hash,
        }

    @property
    def skipped(self) -> str:
        """Why there are no probes, if there are none."""
        labelled = bool(self.xrays.columns.label_names)
        return "the validation part is empty (val_share)" if labelled else "the X-rays have no labels"

    @property
    def _chance(self) -> float:
        """The probes' score for a guess."""
        if self.labels.ndim > 1 or not self.draws:
            return 0.5
        return 1 / max(1, len(probed_classes(self.labels[self.draws[0]], self.labels[self.val])))

    def _features(self, indices: np.ndarray) -> Tensor:
        return forward_all(self.model.backbone, self.xrays, indices, self.seen)

    def _fixed_views(self, n: int) -> tuple[Tensor, list[Tensor]]:
        """Pixels uint8 [n, 1, S, S] of the first n images of the sample, and the views [n, 1, R, R] of them."""
        images = self.xrays.batch(torch.from_numpy(self.sample[:n]))
        return images, self.views(images, step_generator("fixed views", self.config.random_seed, 0, 0))

    def views_figure(self) -> Figure:
        """Return what the network has to see as the same: some images, each with its views."""
        images, views = self._fixed_views(VIEWS_SHOWN)
        pictures = {"X-ray": images.float() / 255}
        pictures |= {f"view {number}": denormalise(y) for number, y in enumerate(views, 1)}
        return self._grid(pictures, f"{self.config.views} views of each X-ray, recipe {self.config.recipe!r}")

    def recipe_figure(self) -> Figure:
        """Return one X-ray through each operator of the recipe alone, a few draws of it."""
        image = self.xrays.batch(torch.from_numpy(self.sample[:1])).expand(DRAWS_SHOWN, -1, -1, -1).float() / 255
        generator = step_generator("picture of operators", self.config.random_seed, 0, 0)
        alone = operator_views(self.config.recipe, self.config.img_res)
        pictures = {"X-ray": image} | {name: denormalise(view(image, generator)) for name, view in alone.items()}
        return self._grid(pictures, f"An X-ray through each operator of recipe {self.config.recipe!r} alone")

    def _grid(self, pictures: Mapping[str, Tensor], title: str) -> Figure:
        """Images [n, 1, H, W] in 0..1 by column."""
        columns = {name: images[:, 0].cpu().numpy() for name, images in pictures.items()}
        return plots.image_grid(columns, plots.marked(title, self.xrays.synthetic))

    @torch.no_grad()
    def correlation_figure(self, epoch: int) -> Figure:
        """Return the cross-correlation of the first two views of a fixed batch, by the network in eval mode."""
        n = min(self.config.batch_size, len(self.sample))
        views = [y.expand(-1, self.config.in_channels, -1, -1) for y in self._fixed_views(n)[1][:2]]
        z1, z2 = (self.model.embed(y)[1] for y in views)
        title = f"Cross-correlation of two views of {n} X-rays, epoch {epoch}"
        matrix = cross_correlation(z1, z2).cpu().numpy()
        return plots.correlation_matrix(matrix, plots.marked(title, self.xrays.synthetic))

    def curves_figure(self) -> Figure:
        """Return the run's curves, beside the loss of random embeddings and the probes' chance."""
        width = len([*self.model.projector.parameters()][-1])  # rows of the last weights
        on_diagonal, off_diagonal = random_embedding_terms(self.config.batch_size, width, self.config.views)
        levels = {"train/loss": on_diagonal + self.model.lambd * off_diagonal, "train/on_diagonal": on_diagonal}
        if "train/on_diagonal" not in self.run.rows[-1]:  # another loss
            levels = {}
        levels["chance"] = self._chance
        title = plots.marked(self.run.name, self.xrays.synthetic)
        metric = metric_name(metric_of(self.labels)) if self.draws else f"no probes: {self.skipped}"
        return plots.training_curves(self.run.rows, title, levels, metric)


def _label_draws(xrays: XRays, seed: int) -> list[np.ndarray]:
    """Indices of the labelled training images of each draw, each stratum with its share; [] without labels."""
    if not xrays.columns.label_names:
        return []
    train, labels = xrays.indices("train"), xrays.columns.labels
    paths, strata = xrays.columns.paths[train], strata_of(labels)[train]
    wanted = max(PROBE_LABELS if labels.ndim == 1 else FINDING_LABELS, len(np.unique(strata)))
    count = min(wanted, len(train))
    return [train[label_subset(paths, strata, count, draw, seed)] for draw in range(PROBE_DRAWS)]


def _sample(purpose: str, indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the indices, always the same ones, in ascending order."""
    return np.sort(fixed_order(purpose, indices)[:most])


# --- how well few labels are learnt from features ---


def probe(train: Tensor, train_labels: np.ndarray, test: Tensor, test_labels: np.ndarray) -> dict[str, float]:
    """Return the scores of a linear and a kNN probe on frozen features [N, F], [M, F]; {} if nothing can be probed.

    Class labels [N] give balanced accuracy over `probed_classes`; chance is 1 / their number. Findings [N, C], NaN
    where unknown, give the mean AUROC over those with enough images with and without them; chance is 0.5.
    """
    if train_labels.ndim == 1:
        classes = probed_classes(train_labels, test_labels)
        if len(classes) < 2:
            return {}
        known, test_known = np.isin(train_labels, classes), np.isin(test_labels, classes)
        y, test_y = (np.searchsorted(classes, a) for a in (train_labels[known], test_labels[test_known]))
        return _probe_one(_rows(train, known), y, _rows(test, test_known), test_y, balanced_accuracy)
    scores = []
    for c in range(train_labels.shape[1]):
        known, test_known = np.isfinite(train_labels[:, c]), np.isfinite(test_labels[:, c])
        y, test_y = train_labels[known, c].astype(int), test_labels[test_known, c].astype(int)
        if min(y.sum(), (1 - y).sum()) >= MIN_IMAGES and min(test_y.sum(), (1 - test_y).sum()) >= MIN_TESTED:
            scores.append(_probe_one(_rows(train, known), y, _rows(test, test_known), test_y, auroc))
    return {name: float(np.mean([score[name] for score in scores])) for name in (scores[0] if scores else {})}


def probe_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels for probes: classes unchanged; findings 0, 1 or NaN where the label is uncertain."""
    if labels.ndim == 1:
        return labels
    return apply_policy(labels, uncertain="ignore", blank="zero")


def _rows(features: Tensor, chosen: np.ndarray) -> Tensor:
    return features[torch.from_numpy(chosen)]


def _probe_one(
    train: Tensor,
    labels: np.ndarray,
    test: Tensor,
    test_labels: np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], float],
) -> dict[str, float]:
    weights: Any = vote  # scikit-learn's stubs know the names of weights alone
    knn = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), metric="cosine", weights=weights)
    shares = knn.fit(train.numpy(), labels).predict_proba(test.numpy())  # [M, C]
    return {
        "probe/linear": score(test_labels, linear_probe(train.numpy(), labels, test.numpy())),
        "probe/knn": score(test_labels, shares / np.bincount(labels)),  # all votes of a class together count the same
    }


def vote(distances: np.ndarray) -> np.ndarray:
    """Return the weights of neighbours at cosine distances (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""
    return np.exp((1 - distances) / 0.07)
