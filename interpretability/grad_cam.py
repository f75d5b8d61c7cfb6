"""What does a fine-tuned network look at, and is it the lungs?

    python interpretability/grad_cam.py
    python interpretability/grad_cam.py --images some/xray.png some/folder --run-name grad_cam/mine \\
        --checkpoints 'runs/compare/covid/random_finetune_*_f0.1_d0' 'runs/compare/covid/pretrained_finetune_*_f0.1_d0'

Takes X-rays (files, folders, or some of each class from the test part) and fine-tuning runs, and leaves, in
runs/<run_name>/, figures/panel.png (a row a run, a column an X-ray; lungs outlined where a mask is known), overlays/
(each as its own picture, in the X-ray's own size), saliency.csv (a row an image and run) and summary.json:
  lung mass        share of the evidence that lies in the lungs, against their share of the area (x1 = chance)
  peak in lungs    share of the images whose strongest evidence lies there (pointing game)
  deletion, insertion  area under the class's probability as pixels go or come, strongest evidence first
  sanity check     whether the maps change when the weights are made random; maps that do not are not to be trusted

As it stands it takes two runs that trained_vs_no_trained_compare.py leaves, on synthetic X-rays: half a minute.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "checkpoints": [  # fine-tuning runs, a * for any part of a comparison's; differences are to the first
        "runs/compare/phantom/random_finetune_*_f1_d0",
        "runs/compare/phantom/pretrained_finetune_*_f1_d0",
    ],
    "images": [],  # files or folders; [] takes X-rays of the test part of the first run's data
    "per_class": 20,  # of the test part
    "classes": [],  # of the test part; [] takes all
    "shown": 8,  # X-rays on the panel; the tables hold all
    "target": "",  # the class whose evidence is shown; "" is the predicted one
    "method": "grad_cam",  # "grad_cam" | "integrated_gradients" | "occlusion"
    "layer": "",  # of Grad-CAM, such as "layer3"; "" is the last with a map of 4 x 4 or more
    "patch": 0,  # of occlusion, in the network's pixels; 0 is an eighth of the image
    "stride": 0,  # of occlusion; 0 is half a patch
    "sanity_check": True,  # also maps of networks with random weights, which should differ
    "run_name": "",  # runs/<run_name>/; "" is grad_cam/ and where the checkpoints come from
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import shlex

from interpretability.explanations import QUANTITIES, explain
from utils.wording import interval_text


def main(config: ExplainConfig) -> None:
    """Explain, then print each network's quantities and how they differ."""
    run = explain(config)
    assert run.summary is not None
    kind = "synthetic X-rays" if run.summary["synthetic"] else "X-rays"
    print(f"\n{run.summary['images']} {kind}, {run.summary['with_lung_mask']} with a lung mask; mean [95% interval]")
    for name, found in run.summary["checkpoints"].items():
        print(f"\n{name}")
        for quantity in QUANTITIES:
            print(f"  {quantity.replace('_', ' '):22s} {_cell(found[quantity])}")
        if "sanity" in found:
            print(f"  {'sanity check':22s} {found['sanity']}")
    for name, found in run.summary["differences"].items():
        print(f"\n{name} less {next(iter(run.summary['checkpoints']))}")
        for quantity in QUANTITIES:
            print(f"  {quantity.replace('_', ' '):22s} {_cell(found[quantity], '+')}")
    for note in run.summary["notes"]:
        print(f"\n{note}")
    print(f"\npanel   {run}/figures/panel.png\ntables  {run}/saliency.csv")
    print(f"next    python interpretability/shortcut_audit.py --checkpoints {shlex.join(config.checkpoints)}")


def _cell(values: list[float | None], sign: str = "") -> str:
    mean, low, high = values
    if mean is None:
        return "not known: no lung masks"
    return interval_text(mean, low, high, f"{sign}.3f")


if __name__ == "__main__":
    run_script(main, ExplainConfig, config)
