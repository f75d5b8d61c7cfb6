"""Make a folder of an encoder that others can use: weights, what they are, and a picture to check them by.

    python selfsup_task/share_weights.py --run runs/pretrain/nih --scores runs/test/compare/nih

Writes runs/shared/<run>/ for a model hub: model.safetensors (half precision, the library's own names, no head),
config.json, README.md (a card: data, start, the terms of both, split, scores with intervals, environment),
reference.png (a synthetic X-ray) and reference.json (its features, to compare with those of whoever loads the weights).
The weights know which pictures they have seen, as every encoder here does: `--encoders` and `--start` take the file.

The terms of the data and of the start decide whether weights may be shared. The script knows those of ChestX-ray14, of
the synthetic X-rays and of some weights of timm; --terms states others, after you have read them:

    python selfsup_task/share_weights.py --run runs/pretrain/films --terms "folder: ours, released as CC BY 4.0"
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "run": "runs/pretrain/phantom",  # a finished pretraining
    "scores": [],  # runs/test/compare/NAME: comparisons whose test scores go into the card
    "terms": [],  # NAME: TEXT for a collection (covid, chexpert, folder) or "start", whose terms are not known here
    "output": "runs/shared",  # the folder is made below it, under the run's name
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import io
from collections.abc import Mapping
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
from self_sup_classes.initialisation import Start, start_from
from utils.config import Config, UserError, repo_path
from utils.files import read_json, write_atomically, write_json, write_text

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
  lr {{ config.lr }}, lambda {{ config.barlow_lambda }}, start {{ config.start }}.
- Split {{ environment.data.split_hash }}: {{ environment.data.images_by_part }}. The weights know which pictures they
  have seen, and comparisons of this software do not test on them.
{% if "probe/linear" in summary %}
- Linear probe on validation: {{ "%.3f" | format(summary["probe/linear"]) }} ({{ summary.metric }}; random weights
  {{ "%.3f" | format(summary["probe/linear_random_network"]) }}).
{% endif %}
{% for name, curves in scores.items() %}

Test images of {{ name }}, 95% intervals:

| arm | way | labels | score |
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

The input is gray in 0..1, less {{ mean }}, divided by {{ std }}: the central square at {{ config.img_res }} px.
`reference.json` has the features of `reference.png`; yours differ by less than {{ "{:.0%}".format(exact) }} of the
largest.

Made with commit {{ environment.commit or "unknown" }} and torch {{ environment.versions.torch }}.
"""
REFERENCE = 256  # pixels a side of the reference picture
EXACT = 0.02  # of the largest feature: half precision and another processor differ by less


@dataclass(frozen=True, kw_only=True)
class ShareConfig(Config):
    """The config above."""

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
    target = repo_path(config.output) / folder.name
    save_weights(target / "model.safetensors", start)
    write_json(target / "config.json", described(stored, start))
    pixels = draw(plan_classes(4, 0, 0, False)[:1], (REFERENCE, REFERENCE))[0][0]  # uint8 [H, W]
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    write_atomically(target / "reference.png", lambda file: file.write(png.getvalue()))
    features = features_of(start, pixels, stored["img_res"])
    write_json(target / "reference.json", {"img_res": stored["img_res"], "features": [round(x, 4) for x in features]})
    scores = {name: pd.read_csv(repo_path(name) / "all" / "curves.csv") for name in config.scores}
    known = {"config": stored, "summary": summary, "environment": facts}
    write_text(target / "README.md", card(known, terms, scores))
    print(f"{target}/   {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.1f} MB")
    print("read README.md before you publish it: it says what is known, and you answer for the rest")


def terms_of(stored: Mapping[str, Any], stated: Mapping[str, str]) -> dict[str, str]:
    """Return the terms of each collection and of the start; UserError if some are not known."""
    data = [stored["dataset"], *(entry.rpartition(":")[0] or "folder" for entry in stored["also"])]
    names = {name.partition("_")[0]: name.partition("_")[0] for name in data} | {
        "start": stored["start"].partition(":")[0]
    }
    known = {**TERMS, **_timms_licence(stored), **stated}
    found = {name: known.get(name) or known.get(key, "") for name, key in names.items()}
    if unknown := [name for name, terms in found.items() if not terms]:
        raise UserError(
            f"whether weights from {' and '.join(unknown)} may be shared is not known; read the terms, and if they "
            f'allow it, state them: --terms "{unknown[0]}: ..."'
        )
    return found


def _timms_licence(stored: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence that timm records for its ImageNet weights of the backbone, if there is one."""
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
        "pretrained_cfg": {"input_size": size, **scale, "interpolation": "lanczos", "crop_mode": "center"},
    }


@torch.no_grad()
def features_of(start: Start, pixels: np.ndarray, img_res: int) -> list[float]:
    """Return the features [F] of one picture, uint8 [S, S], by the weights as they are shared."""
    network = start.backbone.half().float().eval()
    image = torch.from_numpy(pixels)[None, None]  # [1, 1, S, S]
    return network(plain_view(image, img_res, network.in_channels))[0].tolist()


def card(facts: Mapping[str, Any], terms: Mapping[str, str], scores: Mapping[str, pd.DataFrame]) -> str:
    """Return the card: YAML for a hub, then what the weights are, for a reader. `facts` is about the run."""
    page = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(CARD)
    return page.render(**facts, terms=terms, scores=scores, mean=GRAY_MEAN, std=GRAY_STD, exact=EXACT)


if __name__ == "__main__":
    run_script(main, ShareConfig, config)
