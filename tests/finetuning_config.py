"""The config of one fine-tuning, as a comparison makes it of its own."""

from typing import Any

from downstream_task.trained_vs_no_trained_compare import config as comparison

COMPARISON_ONLY = ("encoders", "methods", "fractions", "draws", "lrs")


def finetuning_config(**changes: Any) -> Any:
    """All labels of a data set in the COVID layout, random weights; with changes."""
    return {
        **{key: value for key, value in comparison.items() if key not in COMPARISON_ONLY},
        **{"dataset": "covid", "encoder": "random", "method": "finetune", "trainable": "all", "lr": 1e-3},
        **{"label_fraction": 1.0, "label_draw": 0},
        **changes,
    }
