"""Make a folder from which others can use an encoder: weights, what they are, and a picture to check them by.

    python selfsup_task/share_weights.py --run runs/pretrain/nih --scores runs/test/compare/nih

Writes runs/shared/<run>/, or the folder of --output, for a model hub: model.safetensors (half precision, the library's
own names, no head), config.json, README.md (a card: data, start, the terms of both, split, scores with intervals,
environment), reference.png (a synthetic X-ray) and reference.json (the features that the loaded weights must give it).
The weights know which pictures they have seen, as every encoder here does: `--encoders` and `--start` take the file.
With `--output self_sup_classes/shared_encoder` they are the start that all scripts know as "shared".

The terms of the data and of the start decide whether weights may be shared. The script knows those of ChestX-ray14, of
the synthetic X-rays and of weights that timm downloads; --terms states others, after you have read them:

    python selfsup_task/share_weights.py --run runs/pretrain/films --terms "folder: ours, released as CC BY 4.0"
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "run": "runs/pretrain/phantom",  # a finished pretraining
    "scores": [],  # runs/test/compare/NAME: comparisons whose test scores go into the card
    "terms": [],  # NAME: TEXT for a collection (covid, chexpert, folder) or "start", whose terms are not known here
    "output": "",  # the folder; "" is runs/shared/<the run's name>
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import safetensors.torch
import torch
from PIL import Image

from augmentations.transform_utils import GRAY_MEAN, GRAY_STD, plain_view
from dataset_loader.phantoms.dataset import draw
from dataset_loader.phantoms.plans import plan_classes
from self_sup_classes.backbones import TIMM, weights_file
from self_sup_classes.initialisation import SHARED, SHARED_FOLDER, SHARED_WEIGHTS, Start, start_from
from utils.config import Config, UserError, repo_path
from utils.files import read_json, write_atomically, write_json, write_text
from utils.wording import metric_name

TERMS = {  # under which weights that were trained on a collection may be passed on
    "phantom": "synthetic X-rays, drawn by this software (MIT)",
    "nih": "NIH ChestX-ray14: no restriction on use; cite Wang et al., CVPR 2017, and the NIH Clinical Center",
    "random": "random weights",
}
CARD = """---
library_name: {{ "timm" if config.backbone.startswith("timm/") else "torchvision" }}
license: other
tags: [chest-x-ray, barlow-twins, self-supervised]
---

# {{ config.backbone }}, pretrained on chest X-rays without labels

An encoder for research: not a medical device, and no evidence for using one. Barlow Twins (arXiv 2103.03230) on
{{ "{:,}".format(summary.images) }} X-rays, {{ "{:,}".format(summary.steps) }} steps; no label was read.

| from | terms |
|---|---|
{% for name, text in terms.items() %}
| {{ name }} | {{ text }} |
{% endfor %}

- Recipe: {{ config.recipe }}, {{ config.views }} views of {{ config.img_res }} px, batches of {{ config.batch_size }},
  lr {{ config.lr }}, lambda {{ config.barlow_lambda }}, start {{ start }}.
- Split {{ environment.data.split_hash }}, images by part:
  {{ environment.data.images_by_part.items() | map("join", " ") | join(", ") }}. The weights know which pictures they
  have seen, and comparisons of this software do not test on them.
{% if "probe/linear" in summary %}
- Linear probe on validation: {{ metric_name(summary.metric) }} {{ "%.3f" | format(summary["probe/linear"]) }}, before
  the training {{ "%.3f" | format(summary["probe/linear_at_start"]) }}.
{% endif %}
{% for name, metric, curves in scores %}

Test images of {{ name }}, with 95% intervals:

| arm | way | labels | {{ metric_name(metric) }} |
|---|---|---|---|
{% for row in curves.to_dict("records") %}
| {{ row.arm }} | {{ row.way }} | {{ row.labels }} | {{ "%.3f [%.3f, %.3f]" | format(row.mean, row.low, row.high) }} |
{% endfor %}
{% else %}
- No test scores are given.
{% endfor %}

```python
from safetensors.torch import load_file

weights = load_file("model.safetensors")  # half precision, no head
```

The input is gray in 0..1, less {{ mean }}, divided by {{ std }}: the central square, here at {{ config.img_res }} px.
`reference.json` has the features of `reference.png`, which has that size; yours differ by less than
{{ "{:.0%}".format(exact) }} of the largest.

Made with commit {{ environment.commit or "unknown" }} and torch {{ environment.versions.torch }}.
"""
FILES = {SHARED_WEIGHTS, "config.json", "README.md", "reference.png", "reference.json"}
EXACT = 0.02  # of the largest feature: half precision and another processor differ by less


@dataclass(frozen=True, kw_only=True)
class ShareConfig(Config):
    run: str
    scores: list[str]
    terms: list[str]
    output: str


def main(config: ShareConfig) -> None:
    """Check the terms, then write the folder."""
    folder = repo_path(config.run)
    stored, summary, facts = (read_json(folder / f"{name}.json") for name in ("config", "summary", "environment"))
    if not stored or not summary or not facts or facts.get("kind") != "pretraining":
        raise UserError(
            f"{config.run} is not a finished pretraining; name the folder of one, such as runs/pretrain/nih."
        )
    terms = terms_of(stored, {name: terms for name, _, terms in (text.partition(": ") for text in config.terms)})
    start = start_from(str(folder / weights_file(stored["backbone"])), stored["backbone"], stored["in_channels"], 0)
    scores = [scores_of(name) for name in config.scores]
    target = folder_for(config.output, stored["run_name"].removeprefix("pretrain/") or folder.name)
    save_weights(target / SHARED_WEIGHTS, start)
    write_json(target / "config.json", {**described(stored, start), "terms": terms})
    size = stored["img_res"]  # so that nobody's way to resize counts
    pixels = draw(plan_classes(4, 0, 0, False)[:1], (size, size))[0][0]  # uint8 [R, R]
    write_atomically(target / "reference.png", lambda file: Image.fromarray(pixels).save(file, "PNG"))
    write_json(target / "reference.json", {"features": [float(f"{x:.4g}") for x in features_of(start, pixels)]})
    known = {"config": stored, "summary": summary, "environment": facts}
    write_text(target / "README.md", card(known, terms, scores))
    print(f"{target}/   {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.1f} MB")
    print("read README.md before you publish it: it says what is known, and you answer for the rest")


def scores_of(comparison: str) -> tuple[str, str, pd.DataFrame]:
    """Return the name of a comparison, the metric and the scores of its test images; UserError if there are none."""
    folder = repo_path(comparison) / "all"
    summary = read_json(folder / "summary.json")
    if summary is None or not (folder / "curves.csv").exists():
        raise UserError(
            f"{folder} has no scores of test images; run downstream_task/confusion_matrix.py on the comparison, and "
            "name the folder that it writes, such as runs/test/compare/nih."
        )
    curves = pd.read_csv(folder / "curves.csv").sort_values(["arm", "way", "labels"])
    return folder.parent.name, summary["metric"], curves


def folder_for(output: str, run: str) -> Path:
    """Return the folder to write; UserError if it holds files of something else."""
    target = repo_path(output or f"runs/shared/{run}")
    if others := sorted({path.name for path in target.glob("*")} - FILES):
        raise UserError(f"{target} holds other files, such as {others[0]}; give --output an empty folder or a new one.")
    return target


def terms_of(stored: Mapping[str, Any], stated: Mapping[str, str]) -> dict[str, str]:
    """Return the terms of each collection and of the start; UserError if some are not known."""
    data = [stored["dataset"], *(entry.rpartition(":")[0] or "folder" for entry in stored["also"])]
    names = {name.partition("_")[0]: name.partition("_")[0] for name in data} | {
        "start": stored["start"].partition(":")[0]
    }
    known = {**TERMS, **_terms_of_start(stored), **stated}
    found = {name: known.get(name) or known.get(key, "") for name, key in names.items()}
    if unknown := [name for name, terms in found.items() if not terms]:
        raise UserError(
            f"whether weights from {' and '.join(unknown)} may be shared is not known; read the terms, and if they "
            f'allow it, state them: --terms "{unknown[0]}: ..."'
        )
    return found


def _terms_of_start(stored: Mapping[str, Any]) -> dict[str, str]:
    """Return the terms of this repo's encoder, or the licence that timm records for its ImageNet weights."""
    if stored["start"] == SHARED and (known := read_json(SHARED_FOLDER / "config.json")):
        return {SHARED: "; ".join(f"{name}: {text}" for name, text in known["terms"].items())}
    if stored["start"] != "imagenet" or not stored["backbone"].startswith(TIMM):
        return {}
    import timm

    known = timm.get_pretrained_cfg(stored["backbone"].removeprefix(TIMM))
    licence = known and known.license
    return {"imagenet": f"ImageNet weights of timm, {known.hf_hub_id}, {licence}"} if known and licence else {}


def save_weights(path: Path, start: Start) -> None:
    """Write the backbone in half precision, and in the file's metadata what it has seen."""
    state = {name: x.half() if x.is_floating_point() else x for name, x in start.backbone.net.state_dict().items()}
    seen = start.provenance.as_text() if start.provenance else {}
    content = safetensors.torch.save({name: x.contiguous() for name, x in state.items()}, {"format": "pt", **seen})
    write_atomically(path, lambda file: file.write(content))


def described(stored: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """Return config.json as model hubs have it."""
    size = [stored["in_channels"], stored["img_res"], stored["img_res"]]
    scale = {"mean": [GRAY_MEAN] * stored["in_channels"], "std": [GRAY_STD] * stored["in_channels"]}
    name = stored["backbone"]
    return {
        "architecture": name.removeprefix(TIMM),
        "library": "timm" if name.startswith(TIMM) else "torchvision",
        "num_classes": 0,
        "num_features": start.backbone.num_features,
        "model_args": {"in_chans": stored["in_channels"]},
        "pretrained_cfg": {"input_size": size, **scale, "interpolation": "lanczos", "crop_pct": 1.0},
    }


@torch.no_grad()
def features_of(start: Start, pixels: np.ndarray) -> list[float]:
    """Return the features [F] of one picture, uint8 [R, R], by the weights as they are shared."""
    network = start.backbone.half().float().eval()
    image = torch.from_numpy(pixels)[None, None]  # [1, 1, R, R]
    return network(plain_view(image, len(pixels), network.in_channels))[0].tolist()


def card(facts: Mapping[str, Any], terms: Mapping[str, str], scores: Sequence[tuple[str, str, pd.DataFrame]]) -> str:
    """Return the card: YAML for a hub, then what the weights are, for a reader. `facts` is about the run."""
    kind = facts["config"]["start"].partition(":")[0]
    strict = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = strict.overlay(keep_trailing_newline=True).from_string(CARD)
    start = kind if kind in ("random", "imagenet", SHARED) else "another encoder"  # its path is the machine's
    fixed = {"mean": GRAY_MEAN, "std": GRAY_STD, "exact": EXACT, "metric_name": metric_name}
    return page.render(**facts, start=start, terms=terms, scores=scores, **fixed)


if __name__ == "__main__":
    run_script(main, ShareConfig, config)
