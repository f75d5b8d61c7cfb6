"""A finished network on the X-rays of another hospital, beside its score on the test part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset_loader.readers.folder_dataset import TABLE
from dataset_loader.xrays import DataConfig
from downstream_task.finetune_config import FinetuneConfig
from downstream_task.finished_runs import Finished, Scored
from downstream_task.predictions import labels_and_probabilities, read_predictions
from utils import plots
from utils.config import RUNS_ROOT, make_config, part_of, repo_path
from utils.intervals import bootstrap_intervals, fewest_groups, independent_difference, interval_text, metric_name
from utils.logging_utils import Run
from utils.metrics import one_against_rest


def external_data(entry: str, trained: FinetuneConfig) -> DataConfig:
    """Return the data that an entry of `external` names, at the sizes of a run's own data."""
    dataset, _, root = entry.partition(":")
    labels = "table" if dataset != "folder" or (repo_path(root) / TABLE).is_file() else "folders"
    there = {"dataset": dataset, "data_root": root, "labels": labels, "keep_split": ""}
    return make_config(DataConfig, {**part_of(trained, DataConfig), **there})


def collection_name(config: DataConfig) -> str:
    """Return a short name: many folders have a data set's own name, so it takes the one around it too."""
    root = Path(config.data_root)
    return "-".join([config.dataset, *root.relative_to(root.anchor).parts[-2:]])


def compared_with_test(finished: Finished, scored: Scored, shared: Sequence[str], repeats: int) -> dict[str, Any]:
    """Return the `internal` score, on the test part, the `outside` one and the `drop`, each with low and high.

    All over those of the `shared` classes or findings that occur in the test part.
    """
    table = read_predictions(RUNS_ROOT / "test" / finished.name / "predictions.csv")
    here = (*labels_and_probabilities(table), table["group"].to_numpy(str))
    there = scored.labels, scored.probabilities, scored.groups
    truth = one_against_rest(here[0], len(scored.targets.names))
    occurs = (truth == 1).any(0) & ((truth == 0).any(0) | (not scored.targets.multilabel))
    known = np.isin(scored.targets.names, shared) & occurs
    found = []
    for seed, (labels, p, groups) in enumerate((here, there)):
        if scored.targets.multilabel:
            labels = np.where(known, labels, np.nan)
        else:
            labels, p, groups = (values[known[labels]] for values in (labels, p, groups))
        found.append(
            bootstrap_intervals(
                lambda rows, labels=labels, p=p: {"score": scored.targets.score(labels[rows], p[rows])},
                groups,
                repeats,
                seed=seed,
                fewest=fewest_groups(labels, groups),
            )["score"]
        )
    internal, outside = found
    drop = independent_difference(internal, outside)
    return {"internal": list(internal), "outside": list(outside), "drop": list(drop)}


def external_table(tested: list[Run]) -> str:
    """Return internal score, external score and drop as text, one row per run, and what the collection lacks."""
    first, rows = tested[0].summary or {}, {}
    for one in tested:
        summary: Any = one.summary
        values = {"test part": summary["internal"], "external": summary["outside"], "drop": summary["drop"]}
        rows[summary["tested"]] = {name: interval_text(*value, form=".2f") for name, value in values.items()}
    title = plots.marked(f"{first['images']:,} X-rays of {first['collection']}, external test", first["synthetic"])
    lacks = [f"it has no images of: {', '.join(first['missing'])}; left out of both scores"] if first["missing"] else []
    if first["of_other_classes"]:
        lacks.append(f"left out: {first['of_other_classes']:,} images of classes that the network does not know")
    name = metric_name(first["metric"])
    return "\n".join(["", f"{title}: {name} [95% interval]", pd.DataFrame(rows).T.to_string(), *lacks])
