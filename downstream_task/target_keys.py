"""The keys that say what a classifier learns: plain data, which each script's flags reach."""

from typing import Any

TARGETS: dict[str, Any] = {
    "findings": [],  # to learn; none: the data set's own (datasets/README.md) that can be learnt | "all"
    "uncertain": "ignore",  # CheXpert's -1: "ignore" | "zeros" | "ones"
    "blank": "zero",  # a blank finding: "zero" (not mentioned is negative, as CheXpert's authors count) | "ignore"
    "class_weights": True,  # rare classes count as much as frequent ones
}
