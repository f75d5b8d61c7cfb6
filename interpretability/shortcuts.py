"""Measure what a classifier needs: scores on X-rays with a part removed, lung mass by class, a probe of the source."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from augmentations.transform_utils import plain_view
from dataset_loader.lung_masks import masks_of
from dataset_loader.phantoms.dataset import SOURCES
from dataset_loader.readers.known_columns import known_columns
from dataset_loader.readers.listed_files import below, file_finder
from dataset_loader.readers.tables import UNKNOWN, column_of, once, read_table, without_unknown
from dataset_loader.xrays import XRays
from downstream_task.finished_runs import Finished
from downstream_task.predictions import main_score
from downstream_task.probes import LinearHead, fit_linear_head, linear_probe, probed_classes
from downstream_task.targets import Targets, check_learnable
from interpretability.faithfulness import enlarged, region_scores
from interpretability.saliency import Settings, saliency_maps
from utils.config import UserError, repo_path
from utils.intervals import bootstrap_intervals, fewest_groups, grouped_mean_interval
from utils.metrics import CLASS_SCORES, balanced_accuracy, per_class_scores
from utils.seeds import fixed_order, mixed_seed

MIN_MASKED = 20  # test X-rays with a lung mask; with fewer, intervals of what needs masks say nothing
MAX_REFIT = 2000  # X-rays that a new head, or the probe of the source, learns from
MAX_MAPPED = 8  # X-rays of a class that are mapped: occlusion takes hundreds of passes per X-ray
REPEATS = 300  # resamples behind an interval
AT_ONCE = 128
PARTS = ("train", "val", "test")
BORDER = 0.1  # of the image's side
GRID = 8  # patches per side of a shuffled image
AS_IS, NO_LUNGS, ONLY_LUNGS = "as is", "lungs blacked out", "only the lungs"
ONLY_BORDER, SHUFFLED = "only the border", "patches shuffled"
TRAINED, REFITTED = "as trained", "refitted"  # the heads

Interval = tuple[float, float, float]  # value, low, high
Scores = dict[tuple[str, str, str], Interval]  # by (images, head, score): an alteration, a head, the name of a score


def only_border(images: Tensor, masks: Tensor, indices: np.ndarray) -> Tensor:
    """Black out all but a border of BORDER of the side."""
    kept, size = images.clone(), images.shape[-1]
    width = max(1, round(BORDER * size))
    kept[..., width : size - width, width : size - width] = 0
    return kept


def shuffled(images: Tensor, masks: Tensor, indices: np.ndarray) -> Tensor:
    """Shuffle GRID x GRID patches, each image in its own order; a remainder at the right and bottom stays."""
    n, patch = len(images), images.shape[-1] // GRID
    side = patch * GRID
    patches = images[..., :side, :side].reshape(n, GRID, patch, GRID, patch).transpose(2, 3).flatten(1, 2)
    for row, index in enumerate(indices):
        order = np.random.default_rng(mixed_seed("shuffled patches", int(index))).permutation(GRID * GRID)
        patches[row] = patches[row, torch.from_numpy(order).to(images.device)]
    whole = images.clone()
    whole[..., :side, :side] = patches.view(n, 1, GRID, GRID, patch, patch).transpose(3, 4).reshape(n, 1, side, side)
    return whole


# Of images uint8 [B, 1, S, S], their lungs bool [B, S, S] and their numbers in the data set [B].
ALTERATIONS: dict[str, Callable[[Tensor, Tensor, np.ndarray], Tensor]] = {
    AS_IS: lambda images, masks, indices: images,
    NO_LUNGS: lambda images, masks, indices: images.masked_fill(masks[:, None], 0),
    ONLY_LUNGS: lambda images, masks, indices: images.masked_fill(~masks[:, None], 0),
    ONLY_BORDER: only_border,
    SHUFFLED: shuffled,
}
NEEDS_MASKS = (NO_LUNGS, ONLY_LUNGS)


class Audited:
    """A classifier and the X-rays of its data, with the lung masks that are known.

    With MIN_MASKED or more masked test X-rays, and every class among the masked ones, only X-rays with a mask count, so
    that all scores are of the same X-rays.
    """

    def __init__(self, finished: Finished, xrays: XRays, targets: Targets, device: torch.device):
        self.xrays, self.targets, self.config = xrays, targets, finished.config
        self.classifier = finished.classifier(device).eval()
        self.parts = {part: self._part(part, needs_masks=True) for part in PARTS}
        self.masked = len(self.parts["test"][0])
        self.has_masks = self.masked >= MIN_MASKED
        try:
            check_learnable(targets, {part: indices for part, (indices, _) in self.parts.items()})
        except UserError:
            self.has_masks = False
        if not self.has_masks:
            self.parts = {part: self._part(part, needs_masks=False) for part in PARTS}
            check_learnable(targets, {part: self.parts[part][0] for part in ("train", "val")})
        self.indices, self.masks = self.parts["test"]
        self.labels, self.groups = targets.values[self.indices], xrays.columns.groups[self.indices]
        self.alterations = [name for name in ALTERATIONS if self.has_masks or name not in NEEDS_MASKS]

    @property
    def chance(self) -> float:
        """Score of a network that knows nothing, by the targets' metric."""
        return 0.5 if self.targets.metric == "auroc" else 1 / len(np.unique(self.labels))

    def examples(self, count: int) -> dict[str, np.ndarray]:
        """Return the first test X-rays in each alteration: [count, S, S] in 0..1."""
        rows = self.indices[:count], self.masks[:count]
        return {name: next(self._altered(name, *rows))[:, 0].cpu().numpy() / 255 for name in self.alterations}

    def scores(self) -> Scores:
        """Return scores of the test part, with intervals over groups: the targets' scores and each class's AUROC.

        Head "as trained" is the network's own, which may fail only because it never saw such pictures. "refitted" is a
        logistic regression on the features of train X-rays altered the same way: what the pictures still predict.
        """
        fewest, scores = fewest_groups(self.labels, self.groups), {}
        for name in self.alterations:
            for head, p in self._probabilities(name).items():
                found = bootstrap_intervals(
                    lambda rows, p=p: self._score(rows, p[rows]), self.groups, REPEATS, fewest=fewest
                )
                scores |= {(name, head, score): interval for score, interval in found.items()}
        return scores

    def lung_mass(self) -> pd.DataFrame:
        """Return class, method, images, value, low, high: lung mass over the lungs' area (1 is chance), by true class.

        Of X-rays whose map shows any evidence; no rows without masks. Occlusion finds small things that Grad-CAM, whose
        maps are coarse, does not.
        """
        rows = []
        for c, name in enumerate(self.targets.names if self.has_masks else ()):
            chosen = np.flatnonzero(self.labels == c)[:MAX_MAPPED]
            x, masks = self._input(self._images(self.indices[chosen])), self.masks[chosen]
            classes = torch.full((len(chosen),), c, device=x.device)
            for method in ("grad_cam", "occlusion"):
                maps = enlarged(saliency_maps(self.classifier.net, x, classes, Settings(method)), masks.shape[-1]).cpu()
                ratios = region_scores(maps, masks)[2].numpy()
                interval = grouped_mean_interval(ratios, self.groups[chosen])
                rows.append((name, method, int(np.isfinite(ratios).sum()), *interval))
        return pd.DataFrame(rows, columns=["class", "method", "images", "value", "low", "high"])

    def source_probe(self, sources: np.ndarray) -> dict[str, float]:
        """Return how well a linear probe on the features predicts the source, by balanced accuracy.

        sources  [N] str, "" where not known
        Keys value, low, high, chance and, for classes, by_class: the score of each class's most frequent source. The
        probe learns from the train part. Empty if fewer than two sources have enough X-rays.
        """
        train, test = self.xrays.indices("train"), self.xrays.indices("test")
        known = probed_classes(sources[train], sources[test])
        known = known[known != ""]
        if len(known) < 2:
            return {}
        train, test = (part[np.isin(sources[part], known)] for part in (train, test))
        train = fixed_order("source probe", train)[:MAX_REFIT]
        labels, test_labels = (np.searchsorted(known, sources[part]) for part in (train, test))
        p = linear_probe(self.features(train), labels, self.features(test))
        groups = self.xrays.columns.groups[test]
        value, low, high = bootstrap_intervals(
            lambda rows: {"value": balanced_accuracy(test_labels[rows], p[rows])},
            groups,
            REPEATS,
            fewest=fewest_groups(test_labels, groups),
        )["value"]
        scores = {"value": value, "low": low, "high": high, "chance": 1 / len(known)}
        if self.targets.values.ndim == 1:
            counts = np.zeros((len(self.targets.names), len(known)))  # train X-rays by class and source
            np.add.at(counts, (self.targets.values[train], labels), 1)
            scores["by_class"] = balanced_accuracy(test_labels, counts[self.targets.values[test]])
        return scores

    def features(self, indices: np.ndarray) -> np.ndarray:
        """Return the features of X-rays without alteration, float32 [n, F]."""
        return self._features(AS_IS, indices, torch.empty(len(indices)))

    def _part(self, part: str, needs_masks: bool) -> tuple[np.ndarray, Tensor]:
        """Return X-rays of a part [n], by one fixed order, and their masks, [n, S, S], or [n, 1, 1] without any."""
        indices = fixed_order("altered images", self.xrays.indices(part))
        if needs_masks:
            indices = indices[[mask is not None for mask in self.xrays.columns.masks[indices]]]
        indices = indices[: None if part == "test" else MAX_REFIT]
        if not needs_masks:
            return indices, torch.zeros(len(indices), 1, 1, dtype=torch.bool)
        return indices, torch.from_numpy(masks_of(self.xrays.columns, indices, self.xrays.store.size)[1])

    def _probabilities(self, alteration: str) -> dict[str, np.ndarray]:
        """Return [n, C] of the altered test X-rays, by head."""
        x = {part: self._features(alteration, *rows) for part, rows in self.parts.items()}
        y = {part: self.targets.values[indices] for part, (indices, _) in self.parts.items()}
        groups = self.xrays.columns.groups[self.parts["train"][0]]
        new = fit_linear_head(x["train"], y["train"], groups, self.config.class_weights)
        own = (values.detach().cpu().numpy() for values in (self.classifier.head.weight, self.classifier.head.bias))
        heads = {TRAINED: LinearHead(*own, regularisation=[]), REFITTED: new}
        return {
            name: self.targets.probabilities(torch.from_numpy(head.logits(x["test"]))) for name, head in heads.items()
        }

    @torch.no_grad()
    def _features(self, name: str, indices: np.ndarray, masks: Tensor) -> np.ndarray:
        batches = self._altered(name, indices, masks)
        return torch.cat([self.classifier.features(self._input(images)).float().cpu() for images in batches]).numpy()

    def _altered(self, name: str, indices: np.ndarray, masks: Tensor) -> Iterator[Tensor]:
        """Yield batches uint8 [B, 1, S, S]."""
        for rows in np.array_split(np.arange(len(indices)), max(1, -(-len(indices) // AT_ONCE))):
            images = self._images(indices[rows])
            yield ALTERATIONS[name](images, masks[rows].to(images.device), indices[rows])

    def _images(self, indices: np.ndarray) -> Tensor:
        return self.xrays.batch(torch.from_numpy(indices))

    def _input(self, images: Tensor) -> Tensor:
        return plain_view(images, self.config.img_res, self.config.in_channels)

    def _score(self, rows: np.ndarray, p: np.ndarray) -> dict[str, float]:
        """Return the scores of the probabilities p [n, C] of some test X-rays."""
        labels = self.labels[rows]
        if labels.ndim == 2:
            return {"auroc": main_score(labels, p)}
        areas = per_class_scores(labels, p)[:, CLASS_SCORES.index("auroc")]
        known = np.isfinite(areas)  # in a resample of one class, none is
        return {
            "accuracy": float((labels == p.argmax(1)).mean()),
            "balanced_accuracy": balanced_accuracy(labels, p),
            "auroc": float(areas[known].mean()) if known.any() else float("nan"),
            **{f"auroc {name}": float(area) for name, area in zip(self.targets.names, areas, strict=True)},
        }


def read_sources(name: str, root: Path) -> pd.DataFrame | None:
    """Return the table of that name, or sources.csv in the data's folder if there is one.

    Raises UserError if there is no file of that name or it is not a CSV.
    """
    path = repo_path(name) if name else root / SOURCES
    if not path.exists():
        if name:
            raise UserError(f"there is no source_table {path}; give a CSV with the columns file and source, or ''.")
        return None
    return known_columns(read_table(path), path, lambda cell: (root / cell).is_file(), ("file", "source"))


def known_sources(xrays: XRays, table: pd.DataFrame | None) -> np.ndarray:
    """Return the source of each X-ray, [N] str, "" where not known: by the table, or CheXpert's projection.

    Raises UserError for a table without the columns file and source, or about other files.
    """
    columns = xrays.columns
    if table is None:
        views = columns.details["view"].fillna("") if "view" in columns.details else [""] * len(xrays)
        return np.array(views, dtype=str)
    missing = sorted({"file", "source"} - set(table.columns))
    if missing:
        raise UserError(f"source_table lacks the column {missing[0]}; it needs file and source.")
    find = file_finder(columns.paths)
    listed = [find(below(name, columns.root) or name) or name for name in table["file"]]
    rows = once(pd.DataFrame({"file": listed, "source": table["source"]}), Path("source_table"))
    source_of = dict(
        zip(rows["file"], without_unknown(column_of(rows, "source"), UNKNOWN, "source_table"), strict=True)
    )
    sources = np.array([source_of.get(path, "") for path in columns.paths.tolist()])
    if not (sources != "").any():
        raise UserError(
            f"source_table names none of the X-rays of {columns.root}; its files must be as '{columns.paths[0]}'."
        )
    return sources
