"""What several networks look at in the same X-rays: maps, numbers and overlays of each."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from downstream_task.finished_runs import Finished, OpenedData, open_checkpoints
from interpretability.evidence import Explained, look
from interpretability.overlays import overlay, panel
from interpretability.pictures import (
    Picture,
    image_files,
    is_phantom,
    pictures_of_files,
    pictures_of_test,
)
from interpretability.saliency import METHODS, Settings
from interpretability.sanity import verdict
from utils.config import Config, as_dict, check_at_least, check_choice
from utils.hardware import describe_device, prepare
from utils.intervals import bootstrap_intervals, grouped_mean_interval
from utils.logging_utils import Run
from utils.plots import marked
from utils.progress import tracked
from utils.wording import SALIENCY_NAMES

PEAK_REPEATS = 1000  # resamples behind an interval
QUANTITIES = ("lung_mass", "lung_mass_over_area", "peak_in_lungs", "deletion", "insertion")


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(Config):
    """Every key of interpretability/grad_cam.py."""

    checkpoints: list[str]
    images: list[str]
    per_class: int
    classes: list[str]
    shown: int
    target: str
    method: str
    layer: str
    patch: int
    stride: int
    sanity_check: bool
    run_name: str
    device: str
    threads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("method", self.method, list(METHODS))
        for key, least in {"per_class": 1, "shown": 1, "patch": 0, "stride": 0}.items():
            check_at_least(key, getattr(self, key), least)


def explain(config: ExplainConfig) -> Run:
    """Look at every image with every checkpoint; the finished run, or the stored one.

    Raises UserError, before anything is written, for a checkpoint, an image, a class or a layer that cannot be used.
    """
    device = prepare(config.device, config.threads)
    runs = open_checkpoints(config.checkpoints)
    for finished in runs.values():
        classes = finished.summary["classes"]
        for name in [config.target] if config.target else []:
            check_choice("target", name, classes)
        for name in config.classes:
            check_choice("classes", name, classes)
    hashes = {name: finished.weights_hash() for name, finished in runs.items()}
    first = next(iter(runs.values())).name
    name = config.run_name or f"grad_cam/{first if len(runs) == 1 else first.rpartition('/')[0]}"
    run = Run(name, {**as_dict(config), "weights": hashes, "files": _stamp(config.images)}, "maps")
    if run.summary is None:
        _explain(config, device, run, runs)
    return run


def _explain(config: ExplainConfig, device: torch.device, run: Run, runs: Mapping[str, Finished]) -> None:
    first = next(iter(runs.values()))
    if config.images:
        pictures = pictures_of_files(config.images, first.summary["classes"])
        notes = [f"{name} was trained on synthetic X-rays" for name in runs if runs[name].summary["synthetic"]]
    else:
        xrays = OpenedData(device).of(first)
        found = [finished.held_out(xrays) for finished in runs.values()]
        notes = sorted({note for _, note in found if note})
        pictures = pictures_of_test(xrays, found[0][0], config.classes, config.per_class)
    synthetic = any(is_phantom(picture.path) for picture in pictures)
    settings = Settings(config.layer, config.patch, config.stride)
    explained = {}
    for name, finished in tracked(runs.items(), "looking", "network"):
        explained[name] = look(finished, pictures, config.target, config.method, settings, config.sanity_check, device)
    run.start(device=describe_device(device), images=[str(picture.path) for picture in pictures])
    _write(run, pictures, explained, config, synthetic, notes)


def _write(
    run: Run,
    pictures: Sequence[Picture],
    explained: Mapping[str, Explained],
    config: ExplainConfig,
    synthetic: bool,
    notes: list[str],
) -> None:
    """Tables, overlays, panel and summary."""
    tables = {name: found.table for name, found in explained.items()}
    run.save_table("saliency", pd.concat(tables, names=["checkpoint"]).reset_index(level=0))
    shown = slice(min(config.shown, len(pictures)))
    overlays: dict[str, list[np.ndarray]] = {}
    for name, found in explained.items():
        where = str(found.table["layer"].iloc[0])
        row = overlays.setdefault(f"{name} {where}".strip(), [])
        for picture, heat in zip(pictures, found.maps.numpy(), strict=True):
            pixels = overlay(picture.gray, heat, picture.mask)
            run.save_picture(f"overlays/{name}/{picture.name}", pixels)
            row += [pixels] if len(row) < config.shown else []
    figure = panel(
        [overlay(picture.gray, None, picture.mask) for picture in pictures[shown]],
        [picture.label or picture.name for picture in pictures[shown]],
        overlays,
        {row: found.captions[shown] for row, found in zip(overlays, explained.values(), strict=True)},
        marked(
            f"{SALIENCY_NAMES[config.method]} of the {config.target or 'predicted'} class",
            synthetic,
            any("transductive" in note for note in notes),
        ),
    )
    run.save_figure("panel", figure, step=0)
    sanity = [found.sanity.assign(checkpoint=name) for name, found in explained.items() if len(found.sanity)]
    if sanity:
        run.save_table("sanity", pd.concat(sanity, ignore_index=True))
    run.finish(
        {
            "synthetic": synthetic,
            "notes": notes,
            "images": len(pictures),
            "with_lung_mask": sum(picture.mask is not None for picture in pictures),
            "checkpoints": {name: _summary(found) for name, found in explained.items()},
            "differences": _differences(tables),
        }
    )


def _summary(found: Explained) -> dict[str, Any]:
    """Means with 95% intervals over groups, and what the sanity check says."""
    summary: dict[str, Any] = {name: _interval(found.table, found.table[name].to_numpy(float)) for name in QUANTITIES}
    known = found.table["peak_in_lungs"].notna().to_numpy()
    if known.any():
        peaks, groups = found.table["peak_in_lungs"].to_numpy(float)[known], found.table["group"].to_numpy(str)[known]
        interval = bootstrap_intervals(lambda rows: {"peak": float(peaks[rows].mean())}, groups, PEAK_REPEATS)["peak"]
        summary["peak_in_lungs"] = list(interval)
    summary["maps_without_evidence"] = int((found.maps.sum((1, 2)) == 0).sum())
    if len(found.sanity):
        empty = summary["maps_without_evidence"] / len(found.maps)
        summary["trusted"], summary["sanity"] = verdict(found.sanity, empty)
    return summary


def _differences(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, list[float]]]:
    """Of each checkpoint but the first: its quantities less the first's on the same images, with intervals."""
    names = list(tables)
    values = {name: table[list(QUANTITIES)].to_numpy(float) for name, table in tables.items()}
    for name in names[1:]:  # areas under the probabilities of two different classes do not compare
        other = (tables[name]["explained"] != tables[names[0]]["explained"]).to_numpy()
        for quantity in ("deletion", "insertion"):
            values[name][other, QUANTITIES.index(quantity)] = np.nan
    return {
        name: {
            quantity: _interval(tables[name], values[name][:, column] - values[names[0]][:, column])
            for column, quantity in enumerate(QUANTITIES)
        }
        for name in names[1:]
    }


def _interval(table: pd.DataFrame, values: np.ndarray) -> list[float]:
    return list(grouped_mean_interval(values, table["group"].to_numpy(str)))


def _stamp(images: Sequence[str]) -> str:
    """What changes when one of the named files does."""
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in image_files(images)]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16] if images else ""
