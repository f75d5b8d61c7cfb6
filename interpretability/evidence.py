"""What one network looks at in X-rays: its maps, and what share of them lies where."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dataset_loader.lung_masks import seen_part
from downstream_task.finished_runs import Finished
from interpretability.faithfulness import area_share, deletion_and_insertion, enlarged, mass_inside, peak_inside
from interpretability.pictures import Picture, network_input
from interpretability.saliency import IMAGES_AT_ONCE, Settings, default_layer, plain_copy, saliency_maps
from interpretability.sanity import sanity_check

SANITY_IMAGES = 8  # that the sanity check takes


class Explained(NamedTuple):
    """One network's maps of N images.

    maps      [N, h, w] >= 0
    captions  [N] prediction and probability
    table     a row an image
    sanity    of the method on this network; empty if it was not asked for
    """

    maps: Tensor
    captions: list[str]
    table: pd.DataFrame
    sanity: pd.DataFrame


def look(
    finished: Finished,
    pictures: Sequence[Picture],
    target: str,
    method: str,
    settings: Settings,
    with_sanity: bool,
    device: torch.device,
) -> Explained:
    """One network on every picture, for the class `target` or, if that is "", the predicted one.

    settings.layer may be "": then it is the default one of Grad-CAM. Raises UserError for a layer that is none.
    """
    net = finished.classifier(device).net
    x = network_input(pictures, finished, device)
    plain = plain_copy(net)
    with torch.no_grad():
        probabilities = finished.probabilities(torch.cat([plain(batch) for batch in x.split(IMAGES_AT_ONCE)]))
    names = finished.summary["classes"]
    predicted = probabilities.argmax(1)
    classes = torch.full_like(predicted, names.index(target)) if target else predicted
    layer = settings.layer or default_layer(plain, x) if method == "grad_cam" else ""
    settings = settings._replace(layer=layer)

    def maps_of(network: nn.Module, count: int = len(x)) -> Tensor:
        return saliency_maps(network, x[:count], classes[:count], method, settings)

    maps, size = maps_of(net), x.shape[-1]
    table = pd.DataFrame(
        {
            "image": [picture.name for picture in pictures],
            "group": [picture.group for picture in pictures],
            "label": [picture.label for picture in pictures],
            "predicted": [names[c] for c in predicted],
            "probability": probabilities.gather(1, predicted[:, None])[:, 0].tolist(),
            "explained": [names[c] for c in classes],
            "layer": layer,
        }
    )
    large = enlarged(maps, size)
    table = table.join(_in_lungs(large, pictures, size))
    areas = deletion_and_insertion(net, x, classes, large, finished.probabilities)
    shows = (maps.sum((1, 2)) > 0).cpu().numpy()
    table["deletion"], table["insertion"] = (np.where(shows, area.cpu().numpy(), np.nan) for area in areas)
    captions = [
        f"{row['predicted']} {row['probability']:.2f}" + ("" if found else "\nno evidence found")
        for row, found in zip(table.to_dict("records"), shows, strict=True)
    ]
    sanity = pd.DataFrame()
    if with_sanity:
        sanity = sanity_check(net, lambda network: maps_of(network, SANITY_IMAGES), size)
    return Explained(maps.cpu(), captions, table, sanity)


def _in_lungs(maps: Tensor, pictures: Sequence[Picture], size: int) -> pd.DataFrame:
    """lung_area, lung_mass, lung_mass_over_area, peak_in_lungs of each picture; NaN where no mask is known."""
    columns = ("lung_area", "lung_mass", "lung_mass_over_area", "peak_in_lungs")
    table = pd.DataFrame(np.nan, index=range(len(pictures)), columns=list(columns))
    known = [row for row, picture in enumerate(pictures) if picture.mask is not None]
    if known:
        seen = [seen_part(pictures[row].mask, size) for row in known]  # type: ignore[arg-type]  # not None, as chosen
        masks, chosen = torch.from_numpy(np.stack(seen)).to(maps.device), maps[known]
        area, mass = area_share(masks), mass_inside(chosen, masks)
        values = torch.stack([area, mass, mass / area, peak_inside(chosen, masks)], 1)
        table.loc[known] = values.cpu().numpy()
    return table
