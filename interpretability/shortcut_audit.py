"""How much of the accuracy needs the lungs at all? Finished classifiers on test X-rays with a part taken away.

    python interpretability/shortcut_audit.py
    python interpretability/shortcut_audit.py --checkpoints 'runs/compare/covid/pretrained_finetune_*_f0.05_d0'

Scores, with 95% intervals over patients or duplicate groups, of each network on the test part as it is, with the lungs
blacked out, with all but the lungs blacked out, with all but a border of a tenth blacked out, and shuffled in 8 x 8
patches: by its own head, and by one that learns such pictures anew on its features, since the first may fail merely
because it never saw black lungs. Then the lung mass of Grad-CAM and of occlusion by class; a probe that tells the known
source of an X-ray (a CSV with the columns file and source, sources.csv beside the data, or CheXpert's AP / PA) from
the features; a verdict. Each network gets runs/<run_name>/<its name below runs/>/ with scores.csv (also each class's
AUROC), lung_mass.csv, figures/audit.png, summary.json and its embeddings in TensorBoard's projector. What needs lung
masks is left out where there are too few, and says so.

To see it catch a shortcut: --dataset phantom_marker draws synthetic X-rays of which one class carries a corner marker.

    python downstream_task/trained_vs_no_trained_compare.py --dataset phantom_marker --run-name compare/marker \\
        --encoders random --methods finetune --fractions 1.0 --draws 1 --img-res 64 --store-res 64 --recipe none \\
        --head zeros --backbone-lr-factor 1 --num-steps 80 --lrs 1e-3
    python interpretability/shortcut_audit.py --checkpoints 'runs/compare/marker/random_finetune_*_f1_d0'
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    "checkpoints": [  # fine-tuning runs, a * for any part of a comparison's
        "runs/compare/phantom/random_finetune_*_f1_d0",
        "runs/compare/phantom/pretrained_finetune_*_f1_d0",
    ],
    "source_table": "",  # a CSV with the columns file (below the data's folder) and source; "" looks for sources.csv
    "run_name": "shortcut_audit",  # runs/<run_name>/
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads; 0 leaves it to torch
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import pandas as pd

from interpretability.audits import audit
from utils.wording import interval_text, metric_name


def main(config: AuditConfig) -> None:
    """Audit, then print scores and verdicts."""
    for name, run in audit(config).items():
        assert run.summary is not None
        kind = "synthetic test X-rays" if run.summary["synthetic"] else "test X-rays"
        print(f"\n{name}: {run.summary['images']:,} {kind} {run.summary['note']}")
        for row in pd.read_csv(run.folder / "scores.csv").to_dict("records"):
            if " " in row["score"]:  # a single class's
                continue
            what = f"{row['images']:18s} {row['head']:11s} {metric_name(row['score']):18s}"
            print(f"  {what} {interval_text(row['value'], row['low'], row['high'])}")
        masses = pd.read_csv(run.folder / "lung_mass.csv").to_dict("records")
        few = f"not known: {run.summary['with_lung_mask']} test X-rays have a lung mask, too few"
        print(f"  lung mass over the lungs' area (1 is chance){'' if masses else f' {few}'}")
        for row in masses:
            what = f"{row['class']:18s} {row['method'].replace('_', '-'):11s} {row['images']} images"
            print(f"    {what:47s} {interval_text(row['value'], row['low'], row['high'], '.2f')}")
        source = run.summary["source"]
        if source:
            cell = interval_text(source["value"], source["low"], source["high"])
            alone = f", by the class alone {source['by_class']:.2f}" if "by_class" in source else ""
            what = "source" if run.config.sources else "projection (AP or PA)"
            print(f"  {what}, by a probe: balanced accuracy {cell}, chance {source['chance']:.2f}{alone}")
        else:
            print("  source: not known; --source-table takes a CSV with the columns file and source")
        print(f"  {run.summary['verdict']}")
        print(f"  figure  {run}/figures/audit.png")
    print("\nnext   python utils/make_report.py")


if __name__ == "__main__":
    run_script(main, AuditConfig, config)
