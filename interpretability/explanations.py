"""One network on many X-rays: maps of the evidence, numbers about them, and how two networks differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from downstream_task.finished_runs import Predictor
from downstream_task.targets import probabilities_of
from interpretability.boxes import box_scores
from interpretability.faithfulness import deletion_and_insertion, enlarged, region_scores, sanity_check, verdict
from interpretability.pictures import Picture, network_input
from interpretability.saliency import IMAGES_AT_ONCE, Settings, default_layer, plain_copy, saliency_maps
from utils.intervals import bootstrap_intervals, grouped_mean_interval

SANITY_IMAGES = 8  # images of the sanity check
PEAK_REPEATS = 1000  # resamples behind the interval of a share
LUNG_COLUMNS = ("lung_area", "lung_mass", "lung_mass_over_area", "peak_in_lungs")
QUANTITIES = ("lung_mass", "lung_mass_over_area", "peak_in_lungs", "deletion", "insertion")


@dataclass(frozen=True)
class Explained:
    """One network's maps of N images.

    maps    [N, h, w] >= 0, on the CPU
    layer   of Grad-CAM; "" for other methods
    table   one row per image
    sanity  table of the sanity check; None if it was not asked for
    """

    maps: Tensor
    layer: str
    table: pd.DataFrame
    sanity: pd.DataFrame | None

    @property
    def empty(self) -> np.ndarray:
        """Whether each map shows no evidence at all, bool [N]."""
        return (self.maps.sum((1, 2)) == 0).numpy()

    @property
    def verdict(self) -> tuple[bool, str] | None:
        """Whether the maps can be trusted, and why; None without a sanity check."""
        return None if self.sanity is None else verdict(self.sanity, float(self.empty.mean()))

    @property
    def captions(self) -> list[str]:
        """Prediction and probability for each image."""
        predicted, probability = self.table["predicted"], self.table["probability"]
        return [
            f"{name} {p:.2f}" + ("\nno evidence found" if empty else "")
            for name, p, empty in zip(predicted, probability, self.empty, strict=True)
        ]

    def summary(self) -> dict[str, Any]:
        """Return mean, low, high of each quantity, and whether the maps can be trusted."""
        groups = self.table["group"].to_numpy(str)
        values = {name: self.table[name].to_numpy(float) for name in QUANTITIES}
        summary: dict[str, Any] = {name: list(grouped_mean_interval(values[name], groups)) for name in QUANTITIES}
        known = np.isfinite(values["peak_in_lungs"])
        if known.any():  # a share: its interval stays within 0..1
            peaks = values["peak_in_lungs"][known]
            shares = bootstrap_intervals(lambda rows: {"peak": float(peaks[rows].mean())}, groups[known], PEAK_REPEATS)
            summary["peak_in_lungs"] = list(shares["peak"])
        summary["maps_without_evidence"] = int(self.empty.sum())
        if self.verdict:
            summary["trusted"], summary["sanity"] = self.verdict
        return summary


class Explainer:
    """One network before N X-rays, and the class of each whose evidence is mapped.

    x              [N, C, R, R], what the network sees
    probabilities  [N, K]
    predicted      [N], the most probable class
    classes        [N], the targets' or, where a target is "", the predicted one
    settings       with the layer of Grad-CAM
    """

    def __init__(self, predictor: Predictor, pictures: Sequence[Picture], targets: Sequence[str], settings: Settings):
        self.net, self.x = plain_copy(predictor.network.net), network_input(pictures, predictor)
        self.temperature, self.multilabel = predictor.temperature, predictor.multilabel
        with torch.no_grad():
            logits = torch.cat([self.net(batch) for batch in self.x.split(IMAGES_AT_ONCE)])
        self.probabilities = self.to_probabilities(logits)
        self.predicted = self.probabilities.argmax(1)
        named = [predictor.classes.index(target) if target else -1 for target in targets]
        asked = torch.tensor(named, device=self.x.device)
        self.classes = torch.where(asked < 0, self.predicted, asked)
        if settings.method == "grad_cam":
            settings = settings._replace(layer=settings.layer or default_layer(self.net, self.x))
        self.settings = settings

    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Return [N, K] of logits [N, K]."""
        return probabilities_of(logits / self.temperature, self.multilabel)

    def maps(self, network: nn.Module | None = None, count: int | None = None) -> Tensor:
        """Return maps [N, h, w] >= 0, or of the first `count` X-rays, also of another network."""
        return saliency_maps(network or self.net, self.x[:count], self.classes[:count], self.settings)

    def explained(self, maps: Tensor, table: pd.DataFrame, check: bool) -> Explained:
        """Return the maps with their table and, if asked for, a sanity check on the first SANITY_IMAGES X-rays."""
        sanity = None
        if check:
            sanity = sanity_check(self.net, lambda network: self.maps(network, SANITY_IMAGES), self.x.shape[-1])
        return Explained(maps.cpu(), self.settings.layer, table, sanity)


def explain(
    predictor: Predictor, pictures: Sequence[Picture], target: str, settings: Settings, check: bool
) -> Explained:
    """Return one network's maps of every picture, and the numbers about them.

    target  class whose evidence is mapped; "" is the predicted one
    check   whether to check that the maps depend on the weights

    Raises UserError for a layer that does not exist.
    """
    names = predictor.classes
    explainer = Explainer(predictor, pictures, [target] * len(pictures), settings)
    x, classes, maps = explainer.x, explainer.classes, explainer.maps()  # maps [N, h, w]
    large, empty = enlarged(maps, x.shape[-1]), maps.sum((1, 2)) == 0
    areas = deletion_and_insertion(explainer.net, x, classes, large, explainer.to_probabilities)
    deletion, insertion = (area.masked_fill(empty, torch.nan).cpu().numpy() for area in areas)
    table = pd.DataFrame(
        {
            "image": [picture.name for picture in pictures],
            "group": [picture.group for picture in pictures],
            "label": [picture.label for picture in pictures],
            "predicted": [names[c] for c in explainer.predicted],
            "probability": explainer.probabilities.amax(1).tolist(),
            "explained": [names[c] for c in classes],
            "layer": explainer.settings.layer,
            **_in_lungs(large, pictures),
            "deletion": deletion,
            "insertion": insertion,
        }
    )
    return explainer.explained(maps, table, check)


def explain_boxes(predictor: Predictor, pictures: Sequence[Picture], settings: Settings, check: bool) -> Explained:
    """Return one network's maps of each picture's own finding, predicted or not, and how they score on its boxes."""
    explainer = Explainer(predictor, pictures, [picture.label for picture in pictures], settings)
    maps = explainer.maps()
    return explainer.explained(maps, box_scores(enlarged(maps, explainer.x.shape[-1]), pictures), check)


def differences(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, list[float]]]:
    """Return mean, low, high of each network's quantities minus the first network's, on the same images."""
    first, found = next(iter(tables.values())), {}
    for name, table in [*tables.items()][1:]:
        groups, same_class = first["group"].to_numpy(str), table["explained"] == first["explained"]
        found[name] = {}
        for key in QUANTITIES:
            values = table[key].to_numpy(float) - first[key].to_numpy(float)
            if key in ("deletion", "insertion"):  # the probabilities of two different classes do not compare
                values = np.where(same_class, values, np.nan)
            found[name][key] = list(grouped_mean_interval(values, groups))
    return found


def _in_lungs(maps: Tensor, pictures: Sequence[Picture]) -> dict[str, np.ndarray]:
    """Return LUNG_COLUMNS of maps [N, R, R], each [N]; NaN where no mask is known."""
    values = np.full((len(LUNG_COLUMNS), len(pictures)), np.nan)
    regions = ((n, picture.seen_region(maps.shape[-1])) for n, picture in enumerate(pictures))
    if seen := {n: region for n, region in regions if region is not None}:
        masks = torch.from_numpy(np.stack([*seen.values()])).to(maps.device)
        values[:, [*seen]] = region_scores(maps[[*seen]], masks).cpu().numpy()
    return dict(zip(LUNG_COLUMNS, values, strict=True))
