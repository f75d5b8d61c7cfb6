"""How good are finished classifiers on the test part? The one script that reads it; run it when the choices are made.

    python downstream_task/confusion_matrix.py
    python downstream_task/confusion_matrix.py --runs runs/compare/covid
    python downstream_task/confusion_matrix.py --runs runs/compare/covid/random_linear_f0.05_d0 --threads 1

`runs` names fine-tuning runs, or folders of a comparison, of which all runs are taken. Each gets runs/test/<its name>/
with predictions.csv, scores.csv (with 95% intervals over patients or duplicate groups), classes.csv, summary.json and
figures/confusion_matrix.png. A comparison also gets curves.csv and differences.csv, as on validation.
Calibration error stands before and after temperature scaling, whose temperature is fitted on validation.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "runs": ["runs/compare/phantom"],  # folders under runs/
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import pandas as pd

from downstream_task.held_out import score_on_test
from utils.wording import interval_text, metric_name


def main(config: HeldOutConfig) -> None:
    """Test, then print every score."""
    tested = score_on_test(config)
    for run in tested:
        scores = pd.read_csv(run.folder / "scores.csv")
        assert run.summary is not None
        kind = "synthetic X-rays" if run.summary["synthetic"] else "X-rays"
        print(
            f"\n{run}: {run.summary['images']:,} test {kind} of {run.summary['groups']:,} groups {run.summary['note']}"
        )
        for row in scores.to_dict("records"):
            print(f"  {metric_name(row['score']):30s} {interval_text(row['value'], row['low'], row['high'])}")
    tried = tested[-1].name.removeprefix("test/")
    print("\ntables and figures   runs/test/")
    print(f"next   python interpretability/shortcut_audit.py --checkpoints runs/{tried}")


if __name__ == "__main__":
    run_script(main, HeldOutConfig, config)
