"""What does a fine-tuned network look at, and is it the lungs?

    python interpretability/grad_cam.py
    python interpretability/grad_cam.py --images some/xray.png some/folder --run-name grad_cam/mine \\
        --checkpoints runs/compare/covid/random_zeros_n187_d0 runs/compare/covid/pretrained_zeros_n187_d0
    python interpretability/grad_cam.py --images some/folder --checkpoints resnet18_state_dict.pt \\
        --classes COVID Normal --img-res 224
    python interpretability/grad_cam.py --boxes datasets/ChestX-ray14/BBox_List_2017.csv \\
        --checkpoints runs/compare/nih/random_zeros_n5978_d0 runs/compare/nih/pretrained_zeros_n5978_d0

Takes X-rays (files, folders, tables, or some of each class from the test part) and fine-tuning runs, or state_dicts
from elsewhere. Writes to runs/<run_name>/, or <run_name>-2, ... if there are other maps: figures/panel.png (one row per
network, one column per X-ray, lungs outlined where a mask is known), overlays/ (one picture per network and X-ray, at
the X-ray's own size), saliency.csv (one row per network and X-ray), rejected.csv (files that are left out, as
predict.py has it), sanity.csv and summary.json. The numbers:
  lung mass        share of the evidence inside the lungs; over their share of the area, 1 is chance
  peak in lungs    share of the X-rays whose strongest evidence lies in the lungs (pointing game)
  deletion, insertion  area under the class's probability as pixels are removed or added, strongest evidence first
  sanity check     whether the maps change when the weights are made random; maps that do not are not to be trusted

With --boxes it scores the maps on boxes that radiologists drew (NIH ChestX-ray14), by finding, beside a map of chance
and the mean box of the other patients: figures/boxes.png, figures/panel.png, box_scores.csv (means and paired
differences, 95% intervals over patients), boxes.csv (one row per network and box), rejected.csv. Boxes of patients
whom a network met in training are left out. A minute per network for 600 boxes at 224 px.

By default it explains two runs of trained_vs_no_trained_compare.py on synthetic X-rays: half a minute.
"""

from typing import Annotated, Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "checkpoints": [  # fine-tuning runs (with * for any part of a name), state_dicts; differences are to the first
        "runs/compare/phantom/random_zeros_n1201_d0",
        "runs/compare/phantom/pretrained_zeros_n1201_d0",
    ],
    "images": [],  # files, folders, or a CSV with the column file; [] takes some of the first run's test part
    "laterals": False,  # True: also explain lateral views among `images`, which are left out and listed
    "boxes": "",  # BBox_List_2017.csv, in or (with data_root) outside of the NIH's folder; its X-rays are explained
    "data_root": "",  # where the data of the test part, or of the boxes, are now, if they are elsewhere
    "per_class": 20,  # X-rays of each class, from the test part
    "only": [],  # classes to take from the test part, or findings of boxes; [] takes all
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
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from dataset_loader.columns import Columns
from dataset_loader.ids import Ids, IdsMode, open_ids
from dataset_loader.readers.nih_dataset import FINDINGS
from downstream_task.clinic.films import FACTS, PATH, Films, find_films
from downstream_task.finished_runs import Finished, NetworkConfig, OpenedData, Predictor, open_predictors
from interpretability import boxes
from interpretability.explanations import QUANTITIES, Explained, differences, explain, explain_boxes
from interpretability.overlays import box_figure, overlay, panel
from interpretability.pictures import Picture, pictures_of_boxes, pictures_of_files, pictures_of_test
from interpretability.saliency import METHODS, Settings
from self_sup_classes.provenance import NOTHING_SEEN, provenance_of
from self_sup_classes.weights import read_state_dict
from utils.config import Count, Natural, UserError, as_dict, check_choice, one_of
from utils.hardware import describe_device, prepare
from utils.logging_utils import Run, new_run, same_run
from utils.plots import marked
from utils.scripts import command, tracked
from utils.wording import interval_text, map_name


@dataclass(frozen=True, kw_only=True)
class MapsConfig(NetworkConfig):
    checkpoints: list[str]
    images: list[str]
    boxes: str
    laterals: bool
    data_root: str
    per_class: Count
    only: list[str]
    shown: Count
    target: str
    method: Annotated[str, one_of(METHODS)]
    layer: str
    patch: Natural
    stride: Natural
    sanity_check: bool
    ids: IdsMode
    run_name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boxes and (self.images or self.target):
            raise UserError("boxes says which X-rays and which finding are mapped; leave out --images and --target.")


def main(config: MapsConfig) -> Run:
    """Explain X-rays with every network, or score its maps on boxes, and print the numbers."""
    device = prepare(config.device, config.threads)
    networks = open_predictors(config.checkpoints, config, device)
    run = score_boxes(config, networks, device) if config.boxes else explain_pictures(config, networks, device)
    if all(network.finished and not network.note for network in networks.values()):
        keys = ("checkpoints", "device", "threads") + ("data_root",) * (not config.boxes)
        print(f"next    {command('interpretability/shortcut_audit.py', {key: getattr(config, key) for key in keys})}")
    return run


def explain_pictures(config: MapsConfig, networks: Mapping[str, Predictor], device: torch.device) -> Run:
    """Explain every picture with every network; write maps and numbers."""
    data = OpenedData(device, config.data_root)
    films = find_films(config.images, config.laterals) if config.images else None
    name, identity = named(config, networks, films)

    def test_facts() -> dict[str, Any]:  # about the data of the first run, whose test part is shown
        return {"data": data.facts(data.at(runs_of(networks)[0]))}

    look = test_facts if films is None else None
    run = same_run(name, identity, "maps", ["saliency.csv", "figures/panel.png"], look=look)
    if run is None:
        pictures, facts = choose_pictures(config, networks, films, data)
        asked = pictures, config.target, settings_of(config), config.sanity_check
        explained = {
            name: explain(network, *asked) for name, network in tracked(networks.items(), "explaining", "network")
        }
        run = new_run(name, identity, "maps")  # only now: what fails leaves nothing behind
        read = look() if look else {}
        run.start(device=describe_device(device), images=[picture.name for picture in pictures], **read)
        if films is not None:
            run.save_table("rejected", films.written(ids_of(config, networks))[1])
        title = f"{map_name(config.method)} of the {config.target or 'predicted'} class"
        found = {name: (one.layer, one.maps.numpy(), one.captions) for name, one in explained.items()}
        save_pictures(run, pictures, found, config.shown, marked(title, facts["synthetic"], facts["transductive"]))
        save_numbers(run, pictures, explained, facts)
    print_summary(run)
    return run


def score_boxes(config: MapsConfig, networks: Mapping[str, Predictor], device: torch.device) -> Run:
    """Map the finding of each box with every network; write how these maps score, and two that look at no X-ray."""
    known = [name for name in FINDINGS if all(name in network.classes for network in networks.values())]
    films, columns = boxes.find_boxes(config.boxes, config.data_root, config.only or known)
    name, identity = named(config, networks, films)
    run = same_run(name, identity, "boxes", ["box_scores.csv", "boxes.csv", "figures/boxes.png", "figures/panel.png"])
    if run is None:
        notes, ids = leave_out_unusable(networks, films, columns), ids_of(config, networks)
        pictures, settings = pictures_of_boxes(films.table, ids), settings_of(config)
        explained = {
            short: explain_boxes(network, pictures, settings, config.sanity_check)
            for short, network in tracked(networks.items(), "mapping", "network")
        }
        tables = {short: one.table for short, one in explained.items()} | boxes.reference_scores(pictures)
        means = boxes.by_finding(tables, [next(iter(networks)), boxes.MEAN_BOX, boxes.CHANCE])
        run = new_run(name, identity, "boxes")
        run.start(device=describe_device(device), images=[picture.name for picture in pictures])
        run.save_table("rejected", replace(films, table=films.table[["file", PATH, *FACTS]]).written(ids)[1])
        run.save_table("boxes", pd.concat(tables, names=["network"]).reset_index(level=0))
        run.save_table("box_scores", means)
        save_box_figures(run, config, pictures, explained, means)
        run.finish(
            {
                "synthetic": any(picture.synthetic for picture in pictures),
                "notes": notes,
                "boxes": len(films.table),
                "images": len({picture.path for picture in pictures}),
                "patients": len({picture.group for picture in pictures}),
                "left_out": films.counts(),
                "empty": {short: int(one.empty.sum()) for short, one in explained.items()},
                "sanity": {short: one.verdict[1] for short, one in explained.items() if one.verdict},
            }
        )
    print_boxes(run)
    return run


def leave_out_unusable(networks: Mapping[str, Predictor], films: Films, columns: Columns) -> list[str]:
    """Leave out boxes of patients whom a network has met, and of broken files; return what is not known."""
    notes, seen = [], []
    for short, network in networks.items():
        if provenance := provenance_of(read_state_dict(network.weights)):
            seen.append(provenance.seen)
        else:
            notes.append(f"{short} does not say which X-rays it was trained on; it may have met these patients")
    learnt_from = set().union(*(network.learnt_from for network in networks.values()))
    boxes.leave_out_seen(films, columns, learnt_from, np.concatenate([NOTHING_SEEN.seen, *seen]))
    read_all(films, networks)
    return notes


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


def runs_of(networks: Mapping[str, Predictor]) -> list[Finished]:
    """Return the networks' runs. Raises UserError for weights from elsewhere, whose test part is not known."""
    if elsewhere := [name for name, network in networks.items() if network.finished is None]:
        raise UserError(f"{elsewhere[0]} does not say which X-rays it was tested on; name some, --images FILES.")
    return [network.finished for network in networks.values() if network.finished is not None]


def settings_of(config: MapsConfig) -> Settings:
    """Return how maps are made."""
    return Settings(config.method, config.layer, config.patch, config.stride)


def ids_of(config: MapsConfig, networks: Mapping[str, Predictor]) -> Ids:
    """Return how films that a user names are written."""
    return open_ids(config.ids, next(iter(networks.values())).data_root)


def read_all(films: Films, networks: Mapping[str, Predictor]) -> None:
    """Leave out the films that cannot be decoded at the largest size that a network needs."""
    for _ in films.batches(max(network.stored for network in networks.values()), "reading"):
        pass


def choose_pictures(
    config: MapsConfig, networks: Mapping[str, Predictor], films: Films | None, data: OpenedData
) -> tuple[list[Picture], dict[str, Any]]:
    """Return the X-rays to explain, and what a reader must know of them: synthetic, transductive, notes."""
    if films is not None:
        read_all(films, networks)
        classes = next(iter(networks.values())).classes
        pictures = pictures_of_files(films.table, classes, ids_of(config, networks))
        synthetic = [name for name, network in networks.items() if network.origin["synthetic"]]
        notes, transductive = [f"{name} was trained on synthetic X-rays" for name in synthetic], False
        if len(films.left_out):
            notes.append(f"{len(films.left_out):,} files are left out ({films.counts()}): see rejected.csv")
    else:
        runs = runs_of(networks)
        xrays = data.of_run(runs[0])
        held_out = [finished.held_out(xrays) for finished in runs]
        notes = sorted({note for _, note in held_out if note})
        pictures = pictures_of_test(xrays, held_out[0][0], config.only, config.per_class)
        transductive = bool(notes)
    synthetic = any(picture.synthetic for picture in pictures)
    return pictures, {"synthetic": synthetic, "transductive": transductive, "notes": notes}


def save_numbers(
    run: Run, pictures: Sequence[Picture], explained: Mapping[str, Explained], facts: Mapping[str, Any]
) -> None:
    """Write the tables of maps and sanity checks, and the summary."""
    tables = {name: found.table for name, found in explained.items()}
    run.save_table("saliency", pd.concat(tables, names=["checkpoint"]).reset_index(level=0))
    if checks := {name: found.sanity for name, found in explained.items() if found.sanity is not None}:
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


def save_pictures(
    run: Run,
    pictures: Sequence[Picture],
    networks: Mapping[str, tuple[str, np.ndarray, list[str]]],
    shown: int,
    title: str,
) -> None:
    """Write one overlay per network and picture, and the panel of the first `shown` pictures.

    networks  by name: Grad-CAM's layer, maps [N, h, w], and what stands above each of them on the panel
    """
    captions = {"X-ray": [picture.label or picture.name for picture in pictures[:shown]]}
    captions |= {f"{name} {layer}".strip(): texts[:shown] for name, (layer, _, texts) in networks.items()}
    rows: dict[str, list[np.ndarray]] = {row: [] for row in captions}
    for n, picture in enumerate(pictures):
        gray = picture.gray()
        region = picture.region((gray.shape[0], gray.shape[1]))
        overlays = {name: overlay(gray, maps[n], region) for name, (_, maps, _) in networks.items()}
        for name, painted in overlays.items():
            run.save_picture(f"overlays/{name}/{picture.name}", painted)
        if n < shown:
            for row, painted in zip(rows.values(), [overlay(gray, None, region), *overlays.values()], strict=True):
                row.append(painted)
    run.save_figure("panel", panel(rows, captions, title), step=0)


def save_box_figures(
    run: Run,
    config: MapsConfig,
    pictures: Sequence[Picture],
    explained: Mapping[str, Explained],
    means: pd.DataFrame,
) -> None:
    """Write the dot plot, and the panel and overlays of one X-ray for each finding, the largest boxes first.

    means  what boxes.by_finding returns
    """
    method = map_name(config.method)
    synthetic = any(picture.synthetic for picture in pictures)
    title = f"Does the evidence lie where radiologists drew a box? {method}"
    run.save_figure("boxes", box_figure(means, marked(title, synthetic)))
    labels = [picture.label for picture in pictures]
    chosen = [labels.index(finding) for finding in means["finding"].unique() if finding in labels]
    networks = {}
    for name, found in explained.items():
        rows = found.table.iloc[chosen]
        captions = [
            "no evidence found" if empty else f"maximum {'inside' if hit > 0.5 else 'outside'}, {ratio:.1f} x"
            for hit, ratio, empty in zip(rows[boxes.POINTING], rows[boxes.RATIO], rows["empty"], strict=True)
        ]
        networks[name] = found.layer, found.maps[chosen].numpy(), captions
    title = f"{method} of the finding, and the box that radiologists drew (n x: evidence inside over area)"
    save_pictures(run, [pictures[n] for n in chosen], networks, config.shown, marked(title, synthetic))


def print_boxes(run: Run) -> None:
    """Print how the maps score by finding, the paired differences, and what the sanity check found."""
    summary: Any = run.summary
    scores = pd.read_csv(run.folder / "box_scores.csv", dtype={"network": str, "minus": str})
    left_out = f"left out: {summary['left_out']} (rejected.csv)" if summary["left_out"] else "none left out"
    print(
        f"\n{summary['boxes']:,} boxes on {summary['images']:,} X-rays of {summary['patients']:,} patients; {left_out}"
    )
    for title, table in boxes.score_tables(scores.fillna({"minus": ""})).items():
        print(f"\n{title}\n{table.to_string()}")
    print()
    for name, count in summary["empty"].items():
        if count:
            print(f"{name}: {count:,} maps show no evidence at all; they score as a map of chance")
    for name, sanity in summary["sanity"].items():
        print(f"sanity check of {name}: {sanity}")
    print("".join(f"{note}\n" for note in summary["notes"]))
    print(f"figures {run}/figures/boxes.png, panel.png\ntables  {run}/box_scores.csv, boxes.csv")


def print_summary(run: Run) -> None:
    """Print one row per network, the differences to the first, and what the sanity check found."""
    summary: Any = run.summary
    kind = "synthetic X-rays" if summary["synthetic"] else "X-rays"
    print(f"\n{summary['images']} {kind}, {summary['with_lung_mask']} with a lung mask")
    print("mean [95% interval for new patients]\n")
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
