"""The shortcut audit of several networks: scores, figure, source probe, verdict."""

import hashlib
from dataclasses import dataclass

import pandas as pd
import torch

from downstream_task.finished_runs import Finished, OpenedData, open_checkpoints
from interpretability.shortcuts import Audited
from interpretability.sources import known_sources, read_sources
from interpretability.verdicts import audit_verdict
from utils import plots
from utils.config import Config
from utils.hardware import describe_device, prepare
from utils.logging_utils import Run
from utils.progress import tracked
from utils.randomness import fixed_order

PROJECTED = 1000  # test images in TensorBoard's projector, whose sprite has a largest size
EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Config):
    """Every key of interpretability/shortcut_audit.py."""

    checkpoints: list[str]
    source_table: str
    run_name: str
    device: str
    threads: int


def audit(config: AuditConfig) -> dict[str, Run]:
    """Audit each checkpoint, or look up what was audited before.

    Raises UserError for a checkpoint or a table that cannot be used.
    """
    data = OpenedData(prepare(config.device, config.threads))
    runs = {}
    for name, finished in tracked(open_checkpoints(config.checkpoints).items(), "auditing", "network"):
        table = read_sources(config.source_table, data.of(finished).columns.root)
        facts = {"weights": finished.weights_hash(), "sources": "" if table is None else _digest(table)}
        runs[name] = Run(f"{config.run_name}/{finished.name}", {"checkpoint": finished.name, **facts}, "audit")
        if runs[name].summary is None:
            _audit(runs[name], finished, data, table)
    return runs


def _audit(run: Run, finished: Finished, data: OpenedData, table: pd.DataFrame | None) -> None:
    xrays = data.of(finished)
    targets, note = finished.held_out(xrays)
    audited = Audited(finished, xrays, targets, data.device)
    sources = known_sources(xrays, table)
    run.start(device=describe_device(data.device), data=xrays.facts())
    scores, mass, told = audited.scores(), audited.lung_mass(), audited.source_probe(sources)
    run.save_table("scores", scores)
    run.save_table("lung_mass", mass)
    title = plots.marked(f"Shortcut audit on {len(audited.indices):,} test X-rays", xrays.synthetic, bool(note))
    figure = plots.audit(scores, audited.examples(EXAMPLES), targets.metric, audited.chance, title)
    run.save_figure("audit", figure, step=0)
    _project(run, audited)
    run.finish(
        {
            "synthetic": xrays.synthetic,
            "note": note,
            "images": len(audited.indices),
            "with_lung_mask": audited.masked,
            "metric": targets.metric,
            "chance": audited.chance,
            "source": told,
            "verdict": audit_verdict(scores, targets.metric, audited.chance),
        }
    )


def _project(run: Run, audited: Audited) -> None:
    """The embeddings of the test part into TensorBoard's projector, with thumbnails and labels."""
    test = fixed_order(audited.xrays.indices("test"))[:PROJECTED]
    values, names = audited.targets.values[test], audited.targets.names
    labels = [
        names[int(value)]
        if values.ndim == 1
        else ", ".join(n for n, v in zip(names, value, strict=True) if v == 1) or "-"
        for value in values
    ]
    pixels = audited.xrays.batch(torch.from_numpy(test)).cpu().float().div_(255)
    thumbnails = torch.nn.functional.interpolate(pixels, (32, 32), mode="area").numpy()
    run.save_embedding("test part", audited.features(test), labels, thumbnails)


def _digest(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:16]
