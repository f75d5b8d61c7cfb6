"""One network on many X-rays: maps of the evidence, numbers about them, and how two networks differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dataset_loader.lung_masks import seen_part
from downstream_task.clinic.predictor import Predictor
from downstream_task.targets import probabilities_of
from interpretability.faithfulness import (
    area_share,
    deletion_and_insertion,
    enlarged,
    mass_inside,
    peak_inside,
    sanity_check,
    verdict,
)
from interpretability.pictures import Picture, network_input
from interpretability.saliency import IMAGES_AT_ONCE, Settings, default_layer, plain_copy, saliency_maps
from utils.intervals import bootstrap_intervals, grouped_mean_interval

SANITY_IMAGES = 8  # images of the sanity check
PEAK_REPEATS = 1000  # resamples behind the interval of a share
LUNG_COLUMNS = ("lung_area", "lung_mass", "lung_mass_over_area", "peak_in_lungs")
QUANTITIES = ("lung_mass", "lung_mass_over_area", "peak_in_lungs", "deletion", "insertion")


@dataclass(frozen=True)
class Question:
    """What every network is asked.

    target        class whose evidence is mapped; "" is the predicted one
    sanity_check  whether to check that the maps depend on the weights
    """

    pictures: Sequence[Picture]
    target: str
    settings: Settings
    sanity_check: bool


@dataclass(frozen=True)
class Explained:
    """One network's maps of N images.

    maps    [N, h, w] >= 0
    table   one row per image
    sanity  table of the sanity check; None if it was not asked for
    """

    maps: Tensor
    table: pd.DataFrame
    sanity: pd.DataFrame | None

    @property
    def empty(self) -> np.ndarray:
        """Whether each map shows no evidence at all, bool [N]."""
        return (self.maps.sum((1, 2)) == 0).numpy()

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
        if self.sanity is not None:
            summary["trusted"], summary["sanity"] = verdict(self.sanity, float(self.empty.mean()))
        return summary


def explain(predictor: Predictor, question: Question) -> Explained:
    """Return one network's maps of every picture, and the numbers about them.

    Raises UserError for a layer that does not exist.
    """
    pictures, settings = question.pictures, question.settings
    net = plain_copy(predictor.network.net)
    x = network_input(pictures, predictor)  # [N, C, R, R]

    def to_probabilities(logits: Tensor) -> Tensor:
        return probabilities_of(logits / predictor.temperature, predictor.multilabel)

    with torch.no_grad():
        probabilities = to_probabilities(torch.cat([net(batch) for batch in x.split(IMAGES_AT_ONCE)]))
    names, predicted = predictor.classes, probabilities.argmax(1)
    classes = torch.full_like(predicted, names.index(question.target)) if question.target else predicted
    if settings.method == "grad_cam":
        settings = settings._replace(layer=settings.layer or default_layer(net, x))

    def maps_of(network: nn.Module, count: int = len(x)) -> Tensor:
        return saliency_maps(network, x[:count], classes[:count], settings)

    maps = maps_of(net)  # [N, h, w]
    large, empty = enlarged(maps, x.shape[-1]), maps.sum((1, 2)) == 0
    areas = deletion_and_insertion(net, x, classes, large, to_probabilities)
    deletion, insertion = (area.masked_fill(empty, torch.nan).cpu().numpy() for area in areas)
    table = pd.DataFrame(
        {
            "image": [picture.name for picture in pictures],
            "group": [picture.group for picture in pictures],
            "label": [picture.label for picture in pictures],
            "predicted": [names[c] for c in predicted],
            "probability": probabilities.amax(1).tolist(),
            "explained": [names[c] for c in classes],
            "layer": settings.layer,
            **_in_lungs(large, pictures),
            "deletion": deletion,
            "insertion": insertion,
        }
    )
    sanity = None
    if question.sanity_check:
        sanity = sanity_check(net, lambda network: maps_of(network, SANITY_IMAGES), x.shape[-1])
    return Explained(maps.cpu(), table, sanity)


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
    seen = {n: seen_part(p.mask, maps.shape[-1]) for n, p in enumerate(pictures) if p.mask is not None}
    if seen:
        masks, chosen = torch.from_numpy(np.stack([*seen.values()])).to(maps.device), maps[[*seen]]
        area, mass = area_share(masks), mass_inside(chosen, masks)
        values[:, [*seen]] = torch.stack([area, mass, mass / area, peak_inside(chosen, masks)]).cpu().numpy()
    return dict(zip(LUNG_COLUMNS, values, strict=True))
