"""Boxes that radiologists drew: which can be scored, how well maps find them, and what chance and habit would."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dataset_loader.columns import Columns
from dataset_loader.decoding import upright_size
from dataset_loader.image_files import BrokenImageError
from dataset_loader.image_store import open_store
from dataset_loader.readers.nih_dataset import BOX_FRAME, patients_named, read_boxes, read_nih
from dataset_loader.readers.patients import id_keys
from dataset_loader.signatures import THUMBNAIL, copies_among, signatures
from downstream_task.clinic.films import FACTS, PATH, Films
from interpretability.faithfulness import region_scores
from interpretability.pictures import EDGES, Picture
from utils.config import DATASETS_ROOT, UserError, repo_path
from utils.intervals import bootstrap_intervals
from utils.messages import say
from utils.wording import interval_text

POINTING, RATIO = "pointing", "evidence_over_area"
CHANCE, MEAN_BOX = "chance", "mean box"  # in place of a network
ALL = "mean of findings"
TITLES = {
    POINTING: "Pointing game: share of the boxes that hold the map's maximum, no tolerance",
    RATIO: "Evidence over area: share of the evidence in the box over the box's share of the area; 1 is chance",
}
GRID = 128  # pixels per side of the map of the mean box
REPEATS = 1000  # resamples of patients behind an interval
BEYOND = 1.0  # pixels of the published frame that a box may reach beyond its picture: people draw to the edge


def find_boxes(name: str, data_root: str, findings: Sequence[str]) -> tuple[Films, Columns]:
    """Return the boxes of a table that can be scored, one row each, and what the data say of their X-rays.

    The data are an NIH layout: the table's folder, or `data_root`. Boxes are measured in the published images, of
    BOX_FRAME px a side; smaller and larger files show the same square. Rows have the patient, the finding as label, and
    EDGES. Left out, each with a reason: X-rays that are not there or not square, findings that are not among
    `findings`, boxes beyond their picture. Raises UserError if nothing remains.
    """
    path = repo_path(name)
    if not path.is_file():
        raise UserError(f"boxes names {name!r}, but there is no file {path}; give the NIH's BBox_List_2017.csv.")
    columns = read_nih(repo_path(data_root) if data_root else path.parent).labelled()
    table = read_boxes(path, columns).reset_index(drop=True)
    patient_of = dict(zip(columns.paths, columns.groups, strict=True))
    table[PATH] = [str(columns.root / file) for file in table["file"]]
    table = table.assign(**dict.fromkeys(FACTS, "")).rename(columns={"finding": "label"})
    table["patient"] = [patient_of.get(file, "") for file in table["file"]]
    low, sides = (table[[*keys]].to_numpy(float) / BOX_FRAME for keys in ("xy", "wh"))
    edges = np.concatenate([low, low + sides], axis=1)  # [N, 4]
    table = table.drop(columns=[*"xywh"]).assign(**dict(zip(EDGES, edges.T, strict=True)))
    say(f"boxes: in pixels of the published {BOX_FRAME} x {BOX_FRAME} images, whatever the size of the files")
    films = Films(table, pd.DataFrame(columns=["file", PATH, "kind", "reason"], dtype=object))
    films.leave_out(_unfit(films.table, findings))
    return films, columns


def _unfit(table: pd.DataFrame, findings: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Return the rows of boxes that cannot be scored, with kinds and reasons."""
    sizes: dict[str, tuple[int, int]] = {}
    for path in table[PATH].unique():
        with contextlib.suppress(BrokenImageError, OSError):
            sizes[path] = upright_size(path)
    height, width = np.array([sizes.get(path, (np.nan, np.nan)) for path in table[PATH]], dtype=float).T
    edges, beyond = table[EDGES].to_numpy(float), BEYOND / BOX_FRAME
    cases = {  # the last that holds counts
        ("beyond", "the box reaches beyond its picture"): ((edges < -beyond) | (edges > 1 + beyond)).any(1),
        ("finding", "not every network knows the finding, or `only` leaves it out"): ~table["label"].isin(findings),
        ("shape", "the X-ray is not square, as the published ones are"): height != width,
        ("broken", "not a readable image"): np.isnan(height),
        ("missing", "no file is there"): [not Path(path).is_file() for path in table[PATH]],
    }
    labels = table["label"].tolist()
    why = {
        int(row): (kind, f"{labels[row]}: {reason}")
        for (kind, reason), rows in cases.items()
        for row in np.flatnonzero(rows)
    }
    return dict(sorted(why.items()))


def leave_out_seen(films: Films, columns: Columns, files: Iterable[str], seen: np.ndarray) -> None:
    """Leave out the boxes of patients whom a network has met in training.

    files  names of images that networks were trained on: the NIH's tell the patient
    seen   [n, 49] signatures of all pictures that they were trained on, under whatever name

    Compared are all X-rays of the patients, with and without boxes. Raises UserError if nothing remains.
    """
    of_patients = columns.take(np.flatnonzero(np.isin(columns.groups, films.table["patient"])))
    store = open_store(columns.root, of_patients.paths.tolist(), THUMBNAIL, DATASETS_ROOT / ".cache")
    copies = copies_among(signatures(store), seen)
    met = {*id_keys(of_patients.groups[store.kept][copies])} | patients_named(files)
    rows = np.flatnonzero(np.isin(id_keys(films.table["patient"]), [*met]))
    films.leave_out(dict.fromkeys(map(int, rows), ("seen", "a network was trained on X-rays of this patient")))


# --- scores ---


def mean_boxes(masks: Tensor, pictures: Sequence[Picture]) -> Tensor:
    """Return for each picture the mean mask [N, R, R] of its finding's boxes in all other patients; even without any.

    It knows where a finding usually is, and does not look at the X-ray.
    """
    findings, groups = (np.array([getattr(picture, key) for picture in pictures]) for key in ("label", "group"))
    maps = torch.ones_like(masks)
    for finding, group in {*zip(findings, groups, strict=True)}:
        others = (findings == finding) & (groups != group)
        if others.any():
            maps[(findings == finding) & (groups == group)] = masks[others].mean(0)
    return maps


def reference_scores(pictures: Sequence[Picture]) -> dict[str, pd.DataFrame]:
    """Return box_scores of MEAN_BOX and CHANCE, which look at no X-ray."""
    masks = region_masks(pictures, GRID)
    maps = {MEAN_BOX: mean_boxes(masks, pictures), CHANCE: torch.ones_like(masks)}
    return {name: box_scores(of_name, pictures) for name, of_name in maps.items()}


def box_scores(maps: Tensor, pictures: Sequence[Picture]) -> pd.DataFrame:
    """Return one row per picture of maps [N, R, R] >= 0: how they score on its boxes.

    Columns image, group, finding, box_area, box_mass, and POINTING and RATIO, which compare networks. A map without
    any evidence (`empty`) points nowhere, and scores as an even one.
    """
    masks = region_masks(pictures, maps.shape[-1]).to(maps.device)
    empty = maps.sum((1, 2)) == 0
    maps = torch.where(empty[:, None, None], 1.0, maps)
    area, mass, ratio, peak = region_scores(maps, masks)
    columns = {"box_area": area, "box_mass": mass, POINTING: peak, RATIO: ratio, "empty": empty}
    names = {"image": "name", "group": "group", "finding": "label"}
    told = {column: [getattr(picture, key) for picture in pictures] for column, key in names.items()}
    return pd.DataFrame({**told, **{name: values.cpu().numpy() for name, values in columns.items()}})


def region_masks(pictures: Sequence[Picture], size: int) -> Tensor:
    """Return the boxes of pictures that have some, float32 [N, size, size]."""
    regions = (picture.seen_region(size) for picture in pictures)
    return torch.from_numpy(np.stack([region for region in regions if region is not None]))


def by_finding(tables: Mapping[str, pd.DataFrame], references: Sequence[str]) -> pd.DataFrame:
    """Return the mean over boxes of POINTING and RATIO, by finding and for ALL, with 95% intervals over patients.

    tables  box_scores of each network, CHANCE and MEAN_BOX, of the same pictures
    Columns finding, quantity, network, minus, boxes, patients, value, low, high. Where `minus` names one of
    `references`, the value is the paired difference from it.
    """
    first, rows = next(iter(tables.values())), []
    areas: Any = first.groupby("finding")["box_area"].mean()
    for finding in [*areas.sort_values(ascending=False).index, ALL]:
        chosen = np.flatnonzero((first["finding"] == finding) | (finding == ALL))
        kinds, groups = (first[key].to_numpy(str)[chosen] for key in ("finding", "group"))
        for quantity in (POINTING, RATIO):
            values = {(name, ""): table[quantity].to_numpy(float)[chosen] for name, table in tables.items()}
            gaps = {
                (name, other): values[name, ""] - values[other, ""]
                for name in tables for other in references if name not in (other, CHANCE, MEAN_BOX)
            }  # fmt: skip
            found = mean_intervals(values, kinds, groups, quantity == POINTING) | mean_intervals(gaps, kinds, groups)
            told = finding, quantity, len(chosen), len(set(groups))
            rows += [(*told, *names, *interval) for names, interval in found.items()]
    columns = ["finding", "quantity", "boxes", "patients", "network", "minus", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def mean_intervals(
    values: Mapping[tuple[str, str], np.ndarray], kinds: np.ndarray, groups: np.ndarray, shares: bool = False
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return the mean over the kinds of their means of values [M], each with bootstrap_intervals' interval.

    kinds, groups  [M] the finding and the patient of each
    shares         whether values are shares of 0..1, of which 0 and 1 have an interval too
    Other values are brought into 0..1 by their range; their bounds are NaN where all are equal.
    """
    kind_of = np.unique(kinds, return_inverse=True)[1]
    low_of = {key: min(0.0, of_box.min()) for key, of_box in values.items()}
    span_of = {key: max(1.0, of_box.max()) - low_of[key] for key, of_box in values.items()}
    scaled = {str(n): (of_box - low_of[key]) / span_of[key] for n, (key, of_box) in enumerate(values.items())}

    def means(rows: np.ndarray) -> dict[str, float]:
        counts = np.bincount(kind_of[rows])
        sums = {n: np.bincount(kind_of[rows], of_box[rows])[counts > 0] for n, of_box in scaled.items()}
        return {n: min(float((of_kind / counts[counts > 0]).mean()), 1.0) for n, of_kind in sums.items()}

    intervals = {}
    for (key, of_box), found in zip(values.items(), bootstrap_intervals(means, groups, REPEATS).values(), strict=True):
        value, low, high = (span_of[key] * bound + low_of[key] for bound in found)
        if shares and key[0] != CHANCE:  # Clopper and Pearson's bound; maps without evidence count in parts
            bound = 0.025 ** (1 / len(set(groups)))
            high = max(high, 1 - bound) if of_box.max() < 0.5 else high
            low = min(low, bound) if of_box.min() > 0.5 else low
        known = shares or np.ptp(of_box) > 0
        intervals[key] = (value, low, high) if known else (value, np.nan, np.nan)
    return intervals


def score_tables(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return by_finding's table as a person reads it, by title: a row per finding, a column per network.

    Differences from chance stand in box_scores.csv alone. Where no bounds are known, none are shown.
    """
    shown: Any = scores[scores["minus"] != CHANCE]
    cells = [
        interval_text(row.value, row.low, row.high, "+.2f" if row.minus else ".2f", unknown="")
        for row in shown.itertuples()
    ]
    shown = shown.assign(cell=cells, row=[f"{row.finding} ({row.boxes})" for row in shown.itertuples()])
    tables: dict[str, pd.DataFrame] = {}
    for (quantity, minus), rows in shown.groupby(["quantity", "minus"], sort=False):
        title = f"  {quantity} minus {minus}, paired" if minus else f"{TITLES[quantity]} [95% interval over patients]"
        table = rows.pivot_table("cell", "row", "network", aggfunc="first", sort=False)
        tables[title] = table.rename_axis(index=None, columns=None)
    return tables
