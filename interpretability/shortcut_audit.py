"""How much of the accuracy needs the lungs at all? Finished classifiers on test X-rays with a part removed.

    python interpretability/shortcut_audit.py
    python interpretability/shortcut_audit.py --checkpoints runs/compare/covid/pretrained_zeros_n187_d0

Reads the test part: as is, with the lungs blacked out, with all but the lungs blacked out, with all but a border of a
tenth blacked out, and shuffled in 8 x 8 patches. Each network is scored twice, with 95% intervals over patients or
duplicate groups: with its own head, which may fail only because it never saw black lungs, and with a head refitted to
X-rays altered the same way. Also: the lung mass of Grad-CAM and occlusion by class, a linear probe that predicts the
source of an X-ray from the features (a CSV with the columns file and source; sources.csv beside the data; CheXpert's
AP / PA), and a verdict. Without enough lung masks, what needs them is left out and the verdict says so.

Each network gets runs/<run_name>/<its name below runs/>/ with scores.csv (also each class's AUROC), lung_mass.csv,
figures/audit.png, summary.json and its embeddings in TensorBoard's projector.

To see it catch a shortcut: --dataset phantom_marker draws synthetic X-rays in which one class carries a corner marker.

    python downstream_task/trained_vs_no_trained_compare.py --dataset phantom_marker --run-name compare/marker \\
        --encoders random --ways zeros --num-labels all --draws 1 --img-res 64 --store-res 64 --recipe none \\
        --epochs 0 --min-steps 100
    python interpretability/shortcut_audit.py --checkpoints 'runs/compare/marker/random_zeros_*_d0'
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "checkpoints": [  # fine-tuning runs; a * stands for any part of a name
        "runs/compare/phantom/random_zeros_n1201_d0",
        "runs/compare/phantom/pretrained_zeros_n1201_d0",
    ],
    "data_root": "",  # where the networks' data are now, if they were moved since the training
    "source_table": "",  # a CSV with the columns file (below the data's folder) and source; "" looks for sources.csv
    "run_name": "shortcut_audit",  # runs/<run_name>/
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves the number to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from dataset_loader.xrays import root_of
from downstream_task.finished_runs import Finished, OpenedData, open_checkpoints
from interpretability.overlays import audit_figure
from interpretability.shortcuts import (
    AS_IS,
    BORDER,
    NO_LUNGS,
    ONLY_BORDER,
    REFITTED,
    TRAINED,
    Audited,
    Scores,
    known_sources,
    read_sources,
)
from utils.config import RUNS_ROOT
from utils.files import check_files, content_hash, read_json
from utils.hardware import MachineConfig, describe_device, prepare
from utils.logging_utils import Run
from utils.plots import marked
from utils.scripts import command, tracked
from utils.seeds import fixed_order
from utils.wording import interval_text, metric_name

PROJECTED = 1000  # test X-rays in TensorBoard's projector, whose sprite has a maximal size
EXAMPLES = 3  # X-rays on the figure


@dataclass(frozen=True, kw_only=True)
class AuditConfig(MachineConfig):
    checkpoints: list[str]
    data_root: str
    source_table: str
    run_name: str


def main(config: AuditConfig) -> dict[str, Run]:
    """Audit each network, unless it was audited before, and print the scores and verdicts."""
    data = OpenedData(prepare(config.device, config.threads), config.data_root)
    runs = {}
    for name, finished in tracked(open_checkpoints(config.checkpoints).items(), "auditing", "network"):
        where, run_name = data.at(finished), f"{config.run_name}/{finished.name}"
        table = read_sources(config.source_table, root_of(where))
        digest = "" if table is None else hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:16]
        if not config.source_table and not root_of(where).is_dir():
            digest = (read_json(RUNS_ROOT / run_name / "config.json") or {}).get("sources", "")  # beside the data
        identity = {"checkpoint": finished.name, "weights": content_hash(finished.weights), "sources": digest}
        runs[name] = Run(run_name, identity, "audit", look=lambda where=where: {"data": data.facts(where)})
        if runs[name].summary is None:
            audit(runs[name], finished, data, table)
        check_files(runs[name].folder, "scores.csv", "lung_mass.csv")
    print_summaries(runs)
    return runs


def audit(run: Run, finished: Finished, data: OpenedData, table: pd.DataFrame | None) -> None:
    """Measure the scores with a part removed, lung mass and source probe of one network; write them and a verdict."""
    xrays = data.of_run(finished)
    targets, note = finished.held_out(xrays)
    audited, sources = Audited(finished, xrays, targets, data.device), known_sources(xrays, table)
    run.start(device=describe_device(data.device), data=xrays.facts() | data.facts(data.at(finished)))
    scores = audited.scores()
    rows = pd.DataFrame(
        [(*key, *interval) for key, interval in scores.items()],
        columns=["images", "head", "score", "value", "low", "high"],
    )
    run.save_table("scores", rows)
    run.save_table("lung_mass", audited.lung_mass())
    title = marked(f"Shortcut audit on {len(audited.indices):,} test X-rays", xrays.synthetic, bool(note))
    figure = audit_figure(rows, audited.examples(EXAMPLES), targets.metric, audited.chance, title)
    run.save_figure("audit", figure, step=0)
    save_embedding(run, audited)
    run.finish(
        {
            "synthetic": xrays.synthetic,
            "transductive": bool(note),
            "note": note,
            "images": len(audited.indices),
            "with_lung_mask": audited.masked,
            "metric": targets.metric,
            "chance": audited.chance,
            "scores": {
                name: {head: list(scores[name, head, targets.metric]) for head in (TRAINED, REFITTED)}
                for name in audited.alterations
            },
            "source": audited.source_probe(sources),
            "verdict": verdict(scores, targets.metric, audited.chance),
        }
    )


def save_embedding(run: Run, audited: Audited) -> None:
    """Write the features of the test part for TensorBoard's projector, with thumbnails and labels."""
    test = fixed_order("projector of TensorBoard", audited.xrays.indices("test"))[:PROJECTED]
    values, names = audited.targets.values[test], np.array(audited.targets.names)
    labels = names[values].tolist() if values.ndim == 1 else [", ".join(names[value == 1]) or "-" for value in values]
    pixels = audited.xrays.batch(torch.from_numpy(test)).cpu().float().div_(255)
    thumbnails = torch.nn.functional.interpolate(pixels, (32, 32), mode="area").numpy()
    run.save_embedding("test part", audited.features(test), labels, thumbnails)


def verdict(scores: Scores, metric: str, chance: float) -> str:
    """Return in words how much of the score above chance needs the lungs, by the network's own head and a refitted one.

    Without scores of X-rays without lungs, the border takes their place.
    """
    what, whole = metric_name(metric), scores[AS_IS, TRAINED, metric]
    if not whole[1] > chance:
        return f"It does not distinguish the classes: {what} {_text(whole)}, chance {chance:.2f}."
    masks = (NO_LUNGS, TRAINED, metric) in scores
    images = NO_LUNGS if masks else ONLY_BORDER
    place = "Without the lungs" if masks else f"There are too few lung masks. With a border of {BORDER:.0%} alone"
    rest, again = scores[images, TRAINED, metric], scores[images, REFITTED, metric]
    share, low, high = (max(0.0, min((value - chance) / (whole[0] - chance), 1.0)) for value in rest)
    own = (
        f"{place} {share:.0%} [{low:.0%}, {high:.0%}] of its score above chance is left ({what} {whole[0]:.2f} -> "
        f"{_text(rest)}, chance {chance:.2f}); its head never saw such pictures."
    )
    new = f"A new head on its features ({images}) gets {what} {_text(again)}"
    if not again[1] > chance:
        return f"{own} {new}: not shown to differ from chance."
    culprit = "the background, or the lungs' outline, predicts" if masks else "the background predicts"
    areas = {
        score.removeprefix("auroc "): found
        for (left, head, score), found in scores.items()
        if (left, head) == (images, REFITTED) and score.startswith("auroc ") and not np.isnan(found[1])
    }
    if not areas:
        return f"{own} {new}: {culprit} the labels."
    most = max(areas, key=lambda name: areas[name][1])
    return f"{own} {new}: {culprit} the classes, most of all {most} (AUROC {_text(areas[most])})."


def print_summaries(runs: Mapping[str, Run]) -> None:
    """Print one row per network, then each network's verdict and how well its features predict the source."""
    rows = {}
    for name, run in runs.items():
        found: Any = run.summary
        removed = NO_LUNGS if NO_LUNGS in found["scores"] else ONLY_BORDER
        cells = {AS_IS: (AS_IS, TRAINED), removed: (removed, TRAINED), "the same, head refitted": (removed, REFITTED)}
        intervals = {column: _text(found["scores"][images][head]) for column, (images, head) in cells.items()}
        rows[name] = {"score": metric_name(found["metric"]), **intervals}
    print("\nTest part [95% interval for new patients]")
    print(pd.DataFrame.from_dict(rows, orient="index").fillna("").to_string())
    for name, run in runs.items():
        found: Any = run.summary
        kind = "synthetic test X-rays" if found["synthetic"] else "test X-rays"
        print(f"\n{name}: {found['images']:,} {kind}, {found['with_lung_mask']:,} with a lung mask {found['note']}")
        print(f"  {found['verdict']}")
        if source := found["source"]:
            what = "source" if run.config["sources"] else "projection (AP or PA)"
            by_class = f", by the class alone {source['by_class']:.2f}" if "by_class" in source else ""
            cell = _text((source["value"], source["low"], source["high"]))
            print(f"  A probe predicts the {what}: balanced accuracy {cell}, chance {source['chance']:.2f}{by_class}.")
        else:
            print("  The source is not known; --source-table takes a CSV with the columns file and source.")
        print(f"  figure  {run}/figures/audit.png\n  tables  {run}/scores.csv, lung_mass.csv")
    print(f"\nnext   {command('utils/make_report.py', {})}")


def _text(interval: Sequence[Any]) -> str:
    return interval_text(*interval, form=".2f")


if __name__ == "__main__":
    run_script(main, AuditConfig, config)
