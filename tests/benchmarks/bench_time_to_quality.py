"""What does a minute of pretraining buy: ours, the original project's loop, and lightly's example of Barlow Twins?

    python tests/benchmarks/bench_time_to_quality.py --data-root path/to/COVID-19_Radiography_Dataset
    python tests/benchmarks/bench_time_to_quality.py --only ours classic --minutes 10

Pretrains ResNet-18 on the train part's labelled images, each variant in a process of its own, in turn, from one seed:
  ours     train_barlow_twins.py with its defaults for real X-rays; decoding into the store counts
  classic  the original student project's recipe in the usual loop: PIL and torchvision image by image in a DataLoader,
           two views in two forwards, a linear projector of 512, lambda 5e-3, Adam 2e-3 with a cosine
  lightly  lightly's parts with the settings of its documentation's example: 512-2048-2048, SGD at a constant 0.06,
           batches of 256; `pip install -r tests/benchmarks/requirements.txt` installs it
Learning rates follow the clock, the share of --minutes that has passed, so each cosine ends with the time, whatever the
machine's speed. At growing times, and before the first step, the clock stops for a linear probe: balanced accuracy on
validation from 10% of the labels, mean over draws that all variants share. DataLoader workers prepare a few batches
meanwhile, which is free time for classic and lightly. Beside the score stands the speed, X-rays per second without
the decoding. Leaves scores.csv and scores.png in --folder and prints when
ours had the final scores of the others: one run of one seed. Takes --minutes per variant and a few minutes for
the probes. Not a test: times depend on the machine and its load.
"""

from typing import Any

from utils.scripts import flags

config: dict[str, Any] = {
    "data_root": "",  # a folder in the COVID-19 Radiography layout; "" draws synthetic X-rays
    "only": ["ours", "classic", "lightly"],  # the variants to run, in this order
    "minutes": 30.0,  # of pretraining per variant; probes do not count
    "probes": 12,  # after the first step, at times that grow by a constant factor from 1/64 of the minutes
    "num_labels": 187,  # of the train part, for the probe
    "draws": 10,  # of these labels
    "img_res": 64,  # pixels a side of the views
    "batch_size": 128,  # of ours and of the classic loop
    "lightly_batch_size": 256,
    "workers": 2,  # DataLoader processes of the classic loop and of lightly; ours needs none
    "threads": 0,  # CPU threads of the training process; 0 leaves them to torch
    "device": "auto",
    "random_seed": 0,  # of weights, views, orders and label draws
    "folder": "runs/bench_time_to_quality",  # for the results; must not hold any yet
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)

import importlib.util
import time
from collections.abc import Iterator
from types import SimpleNamespace

import measuring
import numpy as np
import pandas as pd
import torch
from contenders import Pretraining, by_lightly, classic, ours
from matplotlib.figure import Figure
from torch import nn

from dataset_loader.splits import label_subset, strata_of
from dataset_loader.xrays import XRays, open_xrays
from downstream_task.probes import InputFormat, forward_all, linear_probe
from selfsup_task import train_barlow_twins
from selfsup_task.pretraining import PretrainConfig
from utils import plots
from utils.config import make_config, repo_path
from utils.files import write_atomically, write_text
from utils.hardware import choose_device, describe_device, synchronise
from utils.metrics import balanced_accuracy

FIRST_PROBE = 1 / 64  # of the minutes
INSTALL = "lightly is not installed and left out; `pip install -r tests/benchmarks/requirements.txt` installs it."


def our_config(config: SimpleNamespace) -> PretrainConfig:
    """Return the main script's config for real X-rays with what this benchmark's flags change."""
    values = train_barlow_twins.config | train_barlow_twins.real_xrays
    values |= {"backbone": "resnet18", "start": "random"}  # as the other contenders have them
    values |= {"dataset": "covid" if config.data_root else "phantom", "run_name": "not used"}
    for key in ("data_root", "img_res", "batch_size", "threads", "device", "random_seed"):
        values[key] = vars(config)[key]
    return make_config(PretrainConfig, values)


def run_variant(name: str, config: SimpleNamespace) -> list[dict[str, Any]]:
    """Return the rows of one variant; needs a process of its own."""
    pretrain = our_config(config)
    device = choose_device(config.device)
    xrays = open_xrays(pretrain, device)
    if name == "ours":
        pretraining = ours(pretrain, xrays)
    elif name == "classic":
        pretraining = classic(pretrain, xrays, config.workers)
    else:
        pretraining = by_lightly(pretrain, xrays, config.workers, config.lightly_batch_size)
    print(f"{name}: {describe_device(device)}", flush=True)
    rows, batch_size = [], config.lightly_batch_size if name == "lightly" else config.batch_size
    times = 60 * config.minutes * np.geomspace(FIRST_PROBE if config.probes > 1 else 1, 1, config.probes)
    for seconds, steps in train_by_the_clock(pretraining, times, device):
        scores = probe_scores(pretraining.backbone, xrays, config)
        row = {
            "variant": name,
            "minutes": seconds / 60,
            "score": np.mean(scores),
            "std": np.std(scores),
            "steps": steps,
            "speed": steps * batch_size / (seconds - pretraining.setup_seconds) if steps else 0.0,
        }
        print(
            "  {minutes:6.2f} min: {score:.3f}, std of draws {std:.3f}, {steps} steps, {speed:.1f} X-rays/s".format(
                **row
            ),
            flush=True,
        )
        rows.append(row)
    return rows


def train_by_the_clock(
    pretraining: Pretraining, times: np.ndarray, device: torch.device
) -> Iterator[tuple[float, int]]:
    """Yield seconds and steps of pretraining before the first step and at `times` [n]; stop the clock meanwhile."""
    yield 0.0, 0
    clock, steps = pretraining.setup_seconds, 0
    for due in times:
        start = now = time.perf_counter()
        while clock + now - start < due:
            pretraining.step((clock + now - start) / times[-1])
            synchronise(device)
            steps += 1
            now = time.perf_counter()
        clock += now - start
        yield clock, steps


def probe_scores(backbone: nn.Module, xrays: XRays, config: SimpleNamespace) -> list[float]:
    """Return balanced accuracy on validation by a linear probe of each draw of the labels.

    A network that has diverged, so that its features are not finite, scores as a guess does.
    """
    labels, train, val = xrays.columns.labels, xrays.indices("train"), xrays.indices("val")
    paths, strata = xrays.columns.paths[train], strata_of(labels)[train]
    features = [
        forward_all(backbone, xrays, part, InputFormat(config.img_res, 1)).flatten(1).numpy() for part in (train, val)
    ]
    if not all(np.isfinite(values).all() for values in features):
        print("  the network has diverged: its features are not finite", flush=True)
        return [1 / len(np.unique(labels[val]))] * config.draws
    scores = []
    for draw in range(config.draws):
        rows = label_subset(paths, strata, config.num_labels, draw, config.random_seed)
        probabilities = linear_probe(features[0][rows], labels[train[rows]], features[1])
        scores.append(balanced_accuracy(labels[val], probabilities))
    return scores


def minutes_to_reach(rows: pd.DataFrame, target: float) -> float | None:
    """Return when a curve, linear between its points, is at `target` for the first time; None if it never is."""
    minutes, scores = rows["minutes"].to_numpy(), rows["score"].to_numpy()
    if scores.max() < target:
        return None
    first = int(np.argmax(scores >= target))
    return float(np.interp(target, scores[max(first - 1, 0) : first + 1], minutes[max(first - 1, 0) : first + 1]))


def answers(table: pd.DataFrame) -> list[str]:
    """Return one line per variant: its last score, that of random weights, and when ours had as much."""
    curves, lines = {str(name): rows for name, rows in table.groupby("variant", sort=False)}, []
    for name, rows in curves.items():
        first, last = rows.iloc[0], rows.iloc[-1]
        line = f"{name}: balanced accuracy {last['score']:.3f} after {last['minutes']:.1f} min "
        line += f"(std of the label draws {last['std']:.3f}; random weights {first['score']:.3f})"
        if name != "ours" and "ours" in curves:
            needed = minutes_to_reach(curves["ours"], last["score"])
            line += "; ours has not reached it" if needed is None else f"; ours reached it after {needed:.1f} min"
        lines.append(line)
    return lines


def draw_curves(table: pd.DataFrame, title: str, chance: float) -> Figure:
    """Return score over minutes, one line per variant with a band of one standard deviation over the label draws."""
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    ax = figure.subplots()
    curves = {str(name): rows for name, rows in table.groupby("variant", sort=False)}
    for name, colour, marker in plots.styled(curves):
        minutes, score, std = (curves[name][column].to_numpy() for column in ("minutes", "score", "std"))
        ax.plot(minutes, score, color=colour, marker=marker, markersize=5, label=name)
        ax.fill_between(minutes, score - std, score + std, color=colour, alpha=0.15, linewidth=0)
    ax.axhline(chance, color=plots.BLACK, linestyle=":", linewidth=1, label="chance")
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="pretraining (minutes)", ylabel="balanced accuracy, mean ± std of label draws")
    ax.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=len(curves) + 1)
    return figure


def main(config: SimpleNamespace) -> None:
    """Run the variants, write their scores after each, draw them, and print what they say."""
    folder, names = repo_path(config.folder), config.only
    if (folder / "scores.csv").exists():
        raise SystemExit(f"error: {folder} holds the scores of an earlier run; give another --folder or delete it.")
    if "lightly" in names and importlib.util.find_spec("lightly") is None:
        print(INSTALL)
        names = [name for name in names if name != "lightly"]
    xrays = open_xrays(our_config(config), torch.device("cpu"))  # draws and decodes what is missing
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += measuring.in_fresh_process(run_variant, name, config)
        write_text(folder / "scores.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    table, labels = pd.DataFrame(rows), xrays.columns.labels
    shown = f"Linear probe, {config.num_labels:,} labels, on validation, {config.img_res} px; one run each"
    figure = draw_curves(table, plots.marked(shown, xrays.synthetic), 1 / len(np.unique(labels)))
    write_atomically(folder / "scores.png", lambda file: figure.savefig(file, format="png", dpi=150))
    print("\n".join(["", *answers(table), f"one run of one seed; files: {folder}"]))


if __name__ == "__main__":
    main(SimpleNamespace(**config))
