"""A classifier before X-rays with a part taken away: does it need the lungs?"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from augmentations.transform_utils import plain_view
from dataset_loader.lung_masks import masks_of
from dataset_loader.xrays import XRays
from downstream_task.finished_runs import Finished
from downstream_task.linear_head import fit_linear_head
from downstream_task.probes import linear_probe, probed_classes
from downstream_task.targets import Targets, check_learnable
from interpretability.alterations import ALTERATIONS, AS_IS, NEEDS_MASKS
from interpretability.faithfulness import area_share, enlarged, mass_inside
from interpretability.saliency import saliency_maps
from utils.config import UserError
from utils.intervals import bootstrap_intervals, fewest_groups, grouped_mean_interval
from utils.metrics import CLASS_SCORES, balanced_accuracy, per_class_scores
from utils.randomness import fixed_order

FEWEST_MASKED = 20  # test images with a lung mask, from which on what needs masks is worth its interval
MOST_RELEARNT = 2000  # images that a head learns again from
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # inverse, of the L2 penalty that a head learns again with
MOST_MAPPED = 8  # images of a class whose maps are computed: occlusion takes hundreds of passes an image
REPEATS = 300  # resamples behind an interval
AT_ONCE = 128
TRAINED, RELEARNT = "as trained", "relearnt"


class Audited:
    """A classifier and the X-rays of its data, with the lung masks that there are.

    Where FEWEST_MASKED or more of the test X-rays have a mask, only such X-rays count, in every row alike.
    """

    def __init__(self, finished: Finished, xrays: XRays, targets: Targets, device: torch.device):
        self.finished, self.xrays, self.targets = finished, xrays, targets
        self.classifier = finished.classifier(device).eval()
        self.indices, self.masks = self._part("test", needs_masks=True)
        self.masked = len(self.indices)
        self.has_masks = self.masked >= FEWEST_MASKED
        if self.has_masks:
            self.learning = [self._part(part, True, MOST_RELEARNT) for part in ("train", "val")]
            self.has_masks = self._learnable()
        if not self.has_masks:
            self.indices, self.masks = self._part("test", needs_masks=False)
            self.learning = [self._part(part, False, MOST_RELEARNT) for part in ("train", "val")]
            check_learnable(
                targets, {part: rows[0] for part, rows in zip(("train", "val"), self.learning, strict=True)}
            )

    @property
    def chance(self) -> float:
        """What a network that knows nothing scores, by the targets' metric."""
        occurring = len(np.unique(self.targets.values[self.indices]))
        return 0.5 if self.targets.metric == "auroc" else 1 / occurring

    def examples(self, count: int) -> dict[str, np.ndarray]:
        """The first test X-rays in each alteration: [count, S, S] in 0..1."""
        rows = self.indices[:count], self.masks[:count]
        return {name: next(self._altered(name, *rows))[:, 0].cpu().numpy() / 255 for name in self._alterations()}

    def scores(self) -> pd.DataFrame:
        """images, head, score, value, low, high on the test part, intervals over groups.

        head   "as trained", or "relearnt": a logistic regression on the features of train X-rays that were altered
               alike. The first may fail merely because it never saw such pictures; the second says what they tell.
        score  of the targets, and each class's AUROC
        """
        rows, groups = [], self.xrays.columns.groups[self.indices]
        fewest = fewest_groups(self.targets.values[self.indices], groups)
        for name in self._alterations():
            for head, p in self._probabilities(name).items():
                found = bootstrap_intervals(self._scores_of(p), groups, REPEATS, fewest=fewest)
                rows += [(name, head, score, *values) for score, values in found.items()]
        return pd.DataFrame(rows, columns=["images", "head", "score", "value", "low", "high"])

    def lung_mass(self) -> pd.DataFrame:
        """class, method, images, value, low, high: lung mass over the lungs' area (1 is chance), by true class.

        Of images whose map shows any evidence; no rows without masks. Occlusion finds small things that Grad-CAM, whose
        maps are coarse, does not.
        """
        rows = []
        for c, name in enumerate(self.targets.names if self.has_masks else ()):
            chosen = np.flatnonzero(self.targets.values[self.indices] == c)[:MOST_MAPPED]
            if len(chosen) == 0:
                continue
            x, masks = self._input(self._images(self.indices[chosen])), self.masks[chosen]
            classes = torch.full((len(chosen),), c, device=x.device)
            for method in ("grad_cam", "occlusion"):
                maps = enlarged(saliency_maps(self.classifier.net, x, classes, method), masks.shape[-1]).cpu()
                ratios = (mass_inside(maps, masks) / area_share(masks)).numpy()
                interval = grouped_mean_interval(ratios, self.xrays.columns.groups[self.indices[chosen]])
                rows.append((name, method, int(np.isfinite(ratios).sum()), *interval))
        return pd.DataFrame(rows, columns=["class", "method", "images", "value", "low", "high"])

    def source_probe(self, sources: np.ndarray) -> dict[str, float]:
        """How well a linear probe on the features tells the known source, by balanced accuracy.

        sources  [N] str, "" where not known. It learns from the train part; empty if there is nothing to tell. Where a
                 source goes with a class, the class alone (its most frequent source) tells it too: "by_class".
        """
        train, test = (part[sources[part] != ""] for part in map(self.xrays.indices, ("train", "test")))
        known = probed_classes(sources[train], sources[test])
        if len(known) < 2:
            return {}
        train, test = (part[np.isin(sources[part], known)] for part in (train, test))
        train = fixed_order(train)[:MOST_RELEARNT]
        labels, test_labels = (np.searchsorted(known, sources[part]) for part in (train, test))
        p = linear_probe(self.features(train), labels, self.features(test))
        groups = self.xrays.columns.groups[test]
        found = bootstrap_intervals(
            lambda rows: {"value": balanced_accuracy(test_labels[rows], p[rows])},
            groups,
            REPEATS,
            fewest=fewest_groups(test_labels, groups),
        )
        scores = dict(zip(("value", "low", "high"), found["value"], strict=True)) | {"chance": 1 / len(known)}
        if self.targets.values.ndim == 1:
            counts = np.zeros((len(self.targets.names), len(known)))
            np.add.at(counts, (self.targets.values[train], labels), 1)
            by_class = balanced_accuracy(test_labels, counts[self.targets.values[test]])
            scores["by_class"] = by_class
        return scores

    def features(self, indices: np.ndarray) -> np.ndarray:
        """What the head sees of X-rays as they are, float32 [n, F]."""
        return self._features(AS_IS, indices, torch.empty(len(indices)))

    def _part(self, part: str, needs_masks: bool, most: int | None = None) -> tuple[np.ndarray, Tensor]:
        """The first `most` X-rays of a part, [n], in one random order, and their masks, [n, S, S] or [n, 1, 1]."""
        indices, size = fixed_order(self.xrays.indices(part)), self.xrays.store.size
        if needs_masks:
            indices = indices[[mask is not None for mask in self.xrays.columns.masks[indices]]]
        indices = indices[:most]
        masks = masks_of(self.xrays.columns, indices, size)[1] if needs_masks else np.zeros((len(indices), 1, 1), bool)
        return indices, torch.from_numpy(masks)

    def _learnable(self) -> bool:
        """Whether every class occurs among the X-rays with a mask in each part."""
        parts = {"test": self.indices, "train": self.learning[0][0], "val": self.learning[1][0]}
        try:
            check_learnable(self.targets, parts)
        except UserError:
            return False
        return True

    def _alterations(self) -> list[str]:
        return [name for name in ALTERATIONS if self.has_masks or name not in NEEDS_MASKS]

    def _probabilities(self, name: str) -> dict[str, np.ndarray]:
        """[n, C] float64 of the altered test X-rays, by head."""
        test = torch.from_numpy(self._features(name, self.indices, self.masks))
        weight, bias = (values.detach().cpu() for values in (self.classifier.head.weight, self.classifier.head.bias))
        (x, y), (val, val_y) = ((self._features(name, *part), self.targets.values[part[0]]) for part in self.learning)
        head = fit_linear_head(x, y, val, val_y, self.finished.config.class_weights, STRENGTHS)
        heads = {TRAINED: (weight, bias), RELEARNT: (torch.from_numpy(head.weight), torch.from_numpy(head.bias))}
        logits = {head: test @ weight.T + bias for head, (weight, bias) in heads.items()}
        return {head: self.targets.probabilities(values) for head, values in logits.items()}

    @torch.no_grad()
    def _features(self, name: str, indices: np.ndarray, masks: Tensor) -> np.ndarray:
        batches = self._altered(name, indices, masks)
        return torch.cat([self.classifier.features(self._input(images)).float().cpu() for images in batches]).numpy()

    def _altered(self, name: str, indices: np.ndarray, masks: Tensor) -> Iterator[Tensor]:
        """uint8 [B, 1, S, S], batch by batch."""
        for rows in np.array_split(np.arange(len(indices)), max(1, -(-len(indices) // AT_ONCE))):
            images = self._images(indices[rows])
            yield ALTERATIONS[name](images, masks[rows].to(images.device), indices[rows])

    def _images(self, indices: np.ndarray) -> Tensor:
        return self.xrays.batch(torch.from_numpy(indices))

    def _input(self, images: Tensor) -> Tensor:
        return plain_view(images, self.finished.config.img_res, self.finished.config.in_channels)

    def _scores_of(self, p: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
        labels = self.targets.values[self.indices]

        def scores(rows: np.ndarray) -> dict[str, float]:
            if labels.ndim == 2:
                return {"auroc": self.targets.scores(self.indices[rows], p[rows])["auroc"]}
            areas = per_class_scores(labels[rows], p[rows])[:, CLASS_SCORES.index("auroc")]
            by_class = {f"auroc {name}": float(area) for name, area in zip(self.targets.names, areas, strict=True)}
            return {
                "accuracy": float((labels[rows] == p[rows].argmax(1)).mean()),
                "balanced_accuracy": balanced_accuracy(labels[rows], p[rows]),
                "auroc": float(np.nanmean(areas)),
                **by_class,
            }

        return scores
