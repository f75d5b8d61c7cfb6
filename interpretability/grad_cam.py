"""What does a fine-tuned network look at, and is it the lungs?

    python interpretability/grad_cam.py
    python interpretability/grad_cam.py --images some/xray.png some/folder --run-name grad_cam/mine \\
        --checkpoints runs/compare/covid/random_zeros_n187_d0 runs/compare/covid/pretrained_zeros_n187_d0
    python interpretability/grad_cam.py --images some/folder --checkpoints resnet18_state_dict.pt \\
        --classes COVID Normal --img-res 224

Takes X-rays (files, folders, tables, or some of each class from the test part) and fine-tuning runs, or state_dicts
from elsewhere. Writes to runs/<run_name>/, or <run_name>-2, ... if there are other maps: figures/panel.png (one row per
network, one column per X-ray, lungs outlined where a mask is known), overlays/ (one picture per network and X-ray, at
the X-ray's own size), saliency.csv (one row per network and X-ray), rejected.csv (files that are left out, as
predict.py has it), sanity.csv and summary.json. The numbers:
  lung mass        share of the evidence inside the lungs; over their share of the area, 1 is chance
  peak in lungs    share of the X-rays whose strongest evidence lies in the lungs (pointing game)
  deletion, insertion  area under the class's probability as pixels are removed or added, strongest evidence first
  sanity check     whether the maps change when the weights are made random; maps that do not are not to be trusted

By default it explains two runs of trained_vs_no_trained_compare.py on synthetic X-rays: half a minute.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "checkpoints": [  # fine-tuning runs (with * for any part of a name), state_dicts; differences are to the first
        "runs/compare/phantom/random_zeros_n1201_d0",
        "runs/compare/phantom/pretrained_zeros_n1201_d0",
    ],
    "images": [],  # files, folders, or a CSV with the column file; [] takes some of the first run's test part
    "laterals": False,  # True: also explain lateral views among `images`, which are left out and listed
    "data_root": "",  # where the data of the test part are now, if they were moved since the training
    "per_class": 20,  # X-rays of each class, from the test part
    "only": [],  # classes to take from the test part; [] takes all
    "shown": 8,  # X-rays on the panel; the tables hold all
    "target": "",  # class whose evidence is shown; "" is the predicted one
    "method": "grad_cam",  # "grad_cam" | "integrated_gradients" | "occlusion"
    "layer": "",  # of Grad-CAM, such as "layer3"; "" is the last with a map of 4 x 4 or more
    "patch": 0,  # of occlusion, in the network's pixels; 0 is an eighth of the image
    "stride": 0,  # of occlusion; 0 is half a patch
    "sanity_check": True,  # also map networks with random weights, which should give other maps
    # state_dicts from elsewhere only: a run knows these
    "backbone": "resnet18",  # torchvision's name, such as densenet121, or timm/NAME
    "in_channels": 1,  # 1 (gray) | 3
    "classes": [],  # its outputs in their order
    "multilabel": False,  # True: they are findings, of which an X-ray may have several
    "img_res": 0,  # pixels per side at which it was trained
    # run
    "ids": "plain",  # names of `images` and their patients in what is written: "plain" | "hashed" (keyed) | "none"
    "run_name": "",  # runs/<run_name>/ or, if there is one, <run_name>-2 ...; "" is grad_cam/<checkpoints' folder>
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves the number to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from dataset_loader.ids import IDS, Ids, open_ids
from downstream_task.clinic.films import Films, find_films
from downstream_task.clinic.predictor import NetworkConfig, Predictor, is_elsewhere, open_predictors
from downstream_task.finished_runs import OpenedData, open_checkpoints
from interpretability.explanations import QUANTITIES, Explained, Question, differences, explain
from interpretability.overlays import overlay, panel
from interpretability.pictures import Picture, pictures_of_files, pictures_of_test
from interpretability.saliency import METHODS, Settings
from utils.config import UserError, as_dict, check_at_least, check_choice
from utils.hardware import describe_device, prepare
from utils.intervals import SALIENCY_NAMES, interval_text
from utils.logging_utils import Run, new_run, same_run
from utils.plots import marked
from utils.scripts import command, tracked


@dataclass(frozen=True, kw_only=True)
class MapsConfig(NetworkConfig):
    """Every key of interpretability/grad_cam.py."""

    checkpoints: list[str]
    images: list[str]
    laterals: bool
    data_root: str
    per_class: int
    only: list[str]
    shown: int
    target: str
    method: str
    layer: str
    patch: int
    stride: int
    sanity_check: bool
    ids: str
    run_name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("method", self.method, list(METHODS))
        check_choice("ids", self.ids, IDS)
        for key, least in {"per_class": 1, "shown": 1, "patch": 0, "stride": 0}.items():
            check_at_least(key, getattr(self, key), least)


def main(config: MapsConfig) -> Run:
    """Explain every picture with every network; write maps and numbers, print the numbers."""
    device = prepare(config.device, config.threads)
    networks = open_predictors(config.checkpoints, config, device)
    data = OpenedData(device, config.data_root)
    films = find_films(config.images, config.laterals) if config.images else None
    name, facts_of_run = named(config, networks, films)
    look = None if films is not None else partial(test_facts, config, data)
    run = same_run(name, facts_of_run, "maps", ["saliency.csv", "figures/panel.png"], look=look)
    if run is None:
        pictures, facts = choose_pictures(config, networks, films, data)
        settings = Settings(config.method, config.layer, config.patch, config.stride)
        question = Question(pictures, config.target, settings, config.sanity_check)
        explained = {
            name: explain(network, question) for name, network in tracked(networks.items(), "explaining", "network")
        }
        run = new_run(name, facts_of_run, "maps")  # only now: what fails leaves nothing behind
        read = look() if look else {}
        run.start(device=describe_device(device), images=[picture.name for picture in pictures], **read)
        if films is not None:
            run.save_table("rejected", films.written(ids_of(config, networks))[1])
        save_pictures(run, config, pictures, explained, facts)
        tables = {name: found.table for name, found in explained.items()}
        run.save_table("saliency", pd.concat(tables, names=["checkpoint"]).reset_index(level=0))
        checks = {name: found.sanity for name, found in explained.items() if found.sanity is not None}
        if checks:
            run.save_table("sanity", pd.concat(checks, names=["checkpoint"]).reset_index(level=0))
        run.finish(
            {
                **facts,
                "images": len(pictures),
                "with_lung_mask": sum(picture.mask is not None for picture in pictures),
                "checkpoints": {name: found.summary() for name, found in explained.items()},
                "differences": differences(tables),
            }
        )
    print_summary(run)
    if not config.classes and not any(network.note for network in networks.values()):
        audited = {key: getattr(config, key) for key in ("checkpoints", "data_root", "device", "threads")}
        print(f"next    {command('interpretability/shortcut_audit.py', audited)}")
    return run


def test_facts(config: MapsConfig, data: OpenedData) -> dict[str, Any]:
    """Return facts about the data of the first run, whose test part is shown."""
    return {"data": data.facts(data.at(next(iter(open_checkpoints(config.checkpoints).values()))))}


def named(config: MapsConfig, networks: Mapping[str, Predictor], films: Films | None) -> tuple[str, dict[str, Any]]:
    """Return the run's name and what it depends on; UserError for a class that a network lacks."""
    for network in networks.values():
        for name in config.only:
            check_choice("only", name, network.classes)
        if config.target:
            check_choice("target", config.target, network.classes)
    first = next(iter(networks.values())).name
    run_name = config.run_name or f"grad_cam/{first if len(networks) == 1 else first.rpartition('/')[0] or first}"
    weights = {name: network.origin["weights"] for name, network in networks.items()}
    return run_name, {**as_dict(config), "weights": weights, "films": "" if films is None else films.content_hash()}


def ids_of(config: MapsConfig, networks: Mapping[str, Predictor]) -> Ids:
    """Return how films that a user names are written."""
    return open_ids(config.ids, next(iter(networks.values())).data_root)


def choose_pictures(
    config: MapsConfig, networks: Mapping[str, Predictor], films: Films | None, data: OpenedData
) -> tuple[list[Picture], dict[str, Any]]:
    """Return the X-rays to explain, and what a reader must know of them: synthetic, transductive, notes."""
    if films is not None:
        for _ in films.batches(max(network.sizes[0] for network in networks.values()), "reading"):
            pass  # afterwards it holds those that can be decoded
        classes = next(iter(networks.values())).classes
        pictures = pictures_of_files(films.table, classes, ids_of(config, networks))
        synthetic = [name for name, network in networks.items() if network.origin["synthetic"]]
        notes, transductive = [f"{name} was trained on synthetic X-rays" for name in synthetic], False
        if len(films.left_out):
            notes.append(f"{len(films.left_out):,} files are left out ({films.counts()}): see rejected.csv")
    else:
        if elsewhere := [name for name in config.checkpoints if is_elsewhere(name, config)]:
            raise UserError(f"{elsewhere[0]} does not say which X-rays it was tested on; name some, --images FILES.")
        runs = open_checkpoints(config.checkpoints)
        xrays = data.of_run(next(iter(runs.values())))
        held_out = [finished.held_out(xrays) for finished in runs.values()]
        notes = sorted({note for _, note in held_out if note})
        pictures = pictures_of_test(xrays, held_out[0][0], config.only, config.per_class)
        transductive = bool(notes)
    synthetic = any(picture.synthetic for picture in pictures)
    return pictures, {"synthetic": synthetic, "transductive": transductive, "notes": notes}


def save_pictures(
    run: Run,
    config: MapsConfig,
    pictures: Sequence[Picture],
    explained: Mapping[str, Explained],
    facts: Mapping[str, Any],
) -> None:
    """Write one overlay per network and picture, and the panel of the first pictures."""
    shown = slice(config.shown)
    rows = {"X-ray": [overlay(picture.gray, None, picture.mask) for picture in pictures[shown]]}
    captions = {"X-ray": [picture.label or picture.name for picture in pictures[shown]]}
    for name, found in explained.items():
        overlays = []
        for picture, heat in zip(pictures, found.maps.numpy(), strict=True):
            overlays.append(overlay(picture.gray, heat, picture.mask))
            run.save_picture(f"overlays/{name}/{picture.name}", overlays[-1])
        title = f"{name} {found.table['layer'].iloc[0]}".strip()
        rows[title], captions[title] = overlays[shown], found.captions[shown]
    title = f"{SALIENCY_NAMES[config.method]} of the {config.target or 'predicted'} class"
    run.save_figure("panel", panel(rows, captions, marked(title, facts["synthetic"], facts["transductive"])), step=0)


def print_summary(run: Run) -> None:
    """Print one row per network, the differences to the first, and what the sanity check found."""
    summary: Any = run.summary
    kind = "synthetic X-rays" if summary["synthetic"] else "X-rays"
    print(f"\n{summary['images']} {kind}, {summary['with_lung_mask']} with a lung mask; mean [95% interval]\n")
    print(_table(summary["checkpoints"], ".2f"))
    if summary["differences"]:
        print(f"\nminus {next(iter(summary['checkpoints']))}\n{_table(summary['differences'], '+.2f')}")
    print()
    for name, found in summary["checkpoints"].items():
        if "sanity" in found:
            print(f"sanity check of {name}: {found['sanity']}")
    print("".join(f"{note}\n" for note in summary["notes"]))
    print(f"panel   {run}/figures/panel.png\ntables  {run}/saliency.csv")
    if not summary["synthetic"]:
        print("Panel and overlays show the films themselves: look for names burnt into them before you share one.")


def _table(networks: Mapping[str, Mapping[str, Any]], form: str) -> str:
    """Return one row per network: each quantity with its interval, "-" where it is not known."""
    cells = {
        name: ["-" if found[key][0] is None else interval_text(*found[key], form=form) for key in QUANTITIES]
        for name, found in networks.items()
    }
    columns = [key.replace("_", " ") for key in QUANTITIES]
    return pd.DataFrame.from_dict(cells, orient="index", columns=columns).to_string()


if __name__ == "__main__":
    run_script(main, MapsConfig, config)
