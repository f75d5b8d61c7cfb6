"""What is measured on fixed images while Barlow Twins trains: health, probes, pictures; and the best epoch."""

import sys
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from augmentations.transform_utils import Views, denormalise, operator_views, step_generator
from dataset_loader.splits import label_subset, strata_of
from dataset_loader.xrays import XRays
from downstream_task.probes import forward_all, probe, probe_labels, probed_classes
from downstream_task.targets import metric_of
from self_sup_classes.backbones import save_backbone
from self_sup_classes.barlow import BarlowTwins, BarlowTwinsLoss, cross_correlation, random_embedding_parts
from self_sup_classes.health import Health, measure_health
from self_sup_classes.provenance import Provenance
from selfsup_task.pretrain_config import PretrainConfig
from utils import plots
from utils.hardware import choose_precision
from utils.logging_utils import Run
from utils.randomness import fixed_order
from utils.wording import metric_name

PROBES = ("probe/linear", "probe/knn")
LOSS_PARTS = [f"train/{part}" for part in BarlowTwinsLoss._fields]
PROBE_LABELS = 100  # labelled training images that a probe learns from: few, since that is what pretraining is for
FINDING_LABELS = 500  # the same for findings, most of which are rare
PROBE_DRAWS = 5  # draws of them, stratified, over which a probe's score is averaged
PROBE_TESTS = 2000  # validation images, at most, that they are scored on
HEALTH_IMAGES = 1024
VIEWS_SHOWN = 6
DRAWS_SHOWN = 4  # of each operator


class Gauge:
    """What is measured after each epoch on fixed images: health, probes, and which epoch is best by probe."""

    def __init__(
        self,
        model: BarlowTwins,
        xrays: XRays,
        indices: np.ndarray,
        config: PretrainConfig,
        run: Run,
    ):
        self.model, self.xrays, self.config, self.run = model, xrays, config, run
        self.views = Views(config["recipe"], config["img_res"], config["views"])
        self.device = next(model.parameters()).device
        self.dtype = choose_precision(config["precision"], self.device)
        self.sample = _sample(indices, HEALTH_IMAGES)
        self.labels = probe_labels(xrays.columns.labels)
        self.draws = _label_draws(xrays, config["split_seed"])
        self.val = _sample(xrays.indices("val"), PROBE_TESTS)
        self.provenance = Provenance(str(xrays.facts()["split_hash"]), xrays.image_ids(indices))

    def __call__(self, epoch: int, step: int, means: Mapping[str, float]) -> dict[str, float]:
        """The numbers of one epoch; the first process alone measures them."""
        if not self.run.is_writer:
            return {}
        health = self.health(means)
        tqdm.write(f"  {health.verdict()}", file=sys.stderr)
        numbers = health.scalars()
        if epoch % self.config["probe_every"] == 0 or epoch == self.config["num_epochs"]:
            self.run.save_figure("cross_correlation", self.correlation_figure(epoch), step)
            numbers |= self.probe()
            self._keep_best(numbers)
        return numbers

    def measure_random_network(self) -> dict[str, float]:
        """Ranks and probes of the network as it is before the first step."""
        ranks = self.health(dict.fromkeys(LOSS_PARTS, np.nan)).scalars()
        return {tag: value for tag, value in ranks.items() if np.isfinite(value)} | self.probe()

    def health(self, means: Mapping[str, float]) -> Health:
        """The health panel of the network as it is, given an epoch's mean loss and its parts."""
        features = self._features(self.sample)
        with torch.no_grad():
            embeddings = self.model.projector(features.to(self.device)).cpu()
        parts = [means[part] for part in LOSS_PARTS]
        return measure_health(features, embeddings, parts, self.config["batch_size"], self.config["views"])

    def probe(self) -> dict[str, float]:
        """Linear and kNN probe on validation, the mean over the draws; empty where there are no labels to probe."""
        pool = np.unique(np.concatenate(self.draws))
        pooled, val = self._features(pool), self._features(self.val)
        scores = []
        for draw in self.draws:
            train = pooled[torch.from_numpy(np.searchsorted(pool, draw))]
            scores.append(probe(train, self.labels[draw], val, self.labels[self.val]))
        return {tag: float(np.mean([s[tag] for s in scores])) for tag in PROBES if all(tag in s for s in scores)}

    @property
    def metric(self) -> str:
        """What the probes' scores are."""
        return metric_of(self.labels)

    @property
    def chance(self) -> float:
        """The probes' score for a guess."""
        if self.labels.ndim > 1:
            return 0.5
        return 1 / max(1, len(probed_classes(self.labels[self.draws[0]], self.labels[self.val])))

    def _keep_best(self, numbers: Mapping[str, float]) -> None:
        earlier = [row["probe/linear"] for row in self.run.rows[1:] if "probe/linear" in row]
        if "probe/linear" in numbers and numbers["probe/linear"] > max(earlier, default=-1.0):
            path = self.run.folder / f"{self.config['backbone']}_best_state_dict.pt"
            save_backbone(path, self.model.backbone, self.provenance)

    def _features(self, indices: np.ndarray) -> Tensor:
        resolution, channels = self.config["img_res"], self.config["in_channels"]
        return forward_all(self.model.backbone, self.xrays, indices, resolution, channels, self.dtype)

    def _fixed_views(self, n: int) -> tuple[Tensor, list[Tensor]]:
        """Pixels uint8 [n, 1, S, S] of the first n images of the sample, and the views [n, 1, R, R] of them."""
        images = self.xrays.batch(torch.from_numpy(self.sample[:n]))
        return images, self.views(images, step_generator(self.config["random_seed"], 0, 0))

    def views_figure(self) -> Figure:
        """What the network has to see as the same: some images, each with its views."""
        images, views = self._fixed_views(VIEWS_SHOWN)
        pictures = {"X-ray": images.float() / 255}
        pictures |= {f"view {number}": denormalise(y) for number, y in enumerate(views, 1)}
        title = f"{self.config['views']} views of each X-ray, recipe {self.config['recipe']!r}"
        title = plots.marked(title, self.xrays.synthetic)
        return plots.image_grid({name: p[:, 0].cpu().numpy() for name, p in pictures.items()}, title)

    def recipe_figure(self) -> Figure:
        """One X-ray through each operator of the recipe alone, a few draws of it."""
        image = self.xrays.batch(torch.from_numpy(self.sample[:1]))
        generator = step_generator(self.config["random_seed"], 0, 0)
        size = self.config["img_res"]
        pictures = {"X-ray": (image.float() / 255).expand(DRAWS_SHOWN, -1, -1, -1)}
        for name, view in operator_views(self.config["recipe"], size).items():
            pictures[name] = denormalise(view(image.expand(DRAWS_SHOWN, -1, -1, -1).float() / 255, generator))
        title = f"An X-ray through each operator of recipe {self.config['recipe']!r} alone"
        title = plots.marked(title, self.xrays.synthetic)
        return plots.image_grid({name: p[:, 0].cpu().numpy() for name, p in pictures.items()}, title)

    @torch.no_grad()
    def correlation_figure(self, epoch: int) -> Figure:
        """The cross-correlation matrix of the first two views of a fixed batch, by the network in eval mode."""
        n = min(self.config["batch_size"], len(self.sample))
        views = [y.expand(-1, self.config["in_channels"], -1, -1) for y in self._fixed_views(n)[1][:2]]
        z1, z2 = (self.model.embed(y)[1] for y in views)
        title = f"Cross-correlation of two views of {n} X-rays, epoch {epoch}"
        matrix = cross_correlation(z1, z2).cpu().numpy()
        return plots.correlation_matrix(matrix, plots.marked(title, self.xrays.synthetic))

    def curves_figure(self) -> Figure:
        """The run's curves, with the loss that random embeddings would have."""
        config = self.config
        width = config["projector_dims"][-1]
        on_diagonal, off_diagonal = random_embedding_parts(config["batch_size"], width, config["views"])
        levels = {
            "train/loss": on_diagonal + config["barlow_lambda"] * off_diagonal,
            "train/on_diagonal": on_diagonal,
            "chance": self.chance,
        }
        title = plots.marked(str(self.run), self.xrays.synthetic)
        return plots.training_curves(self.run.rows, title, levels, metric_name(self.metric))


def _label_draws(xrays: XRays, seed: int) -> list[np.ndarray]:
    """Indices of the labelled training images of each draw, each stratum with its share."""
    train, labels = xrays.indices("train"), xrays.columns.labels
    paths, strata = xrays.columns.paths[train], strata_of(labels)[train]
    fraction = min(1.0, (PROBE_LABELS if labels.ndim == 1 else FINDING_LABELS) / len(train))
    return [train[label_subset(paths, strata, fraction, draw, seed)] for draw in range(PROBE_DRAWS)]


def _sample(indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the indices, always the same ones, in ascending order."""
    return np.sort(fixed_order(indices)[:most])
