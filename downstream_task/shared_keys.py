"""The keys that fine-tuning scripts share: plain data, which each script's flags reach."""

from typing import Any

from dataset_loader import data_keys
from dataset_loader.data_keys import DATA as DATA

FILES = __file__, data_keys.__file__  # whose comments --help shows

TARGETS: dict[str, Any] = {
    "findings": [],  # to learn; none: the data set's own (datasets/README.md) that can be learnt | "all"
    "uncertain": "ignore",  # CheXpert's -1: "ignore" | "zeros" | "ones"
    "blank": "zero",  # a blank finding: "zero" (not mentioned is negative, as CheXpert's authors count) | "ignore"
    "class_weights": True,  # rare classes count as much as frequent ones
}
MACHINE: dict[str, Any] = {
    "precision": "auto",  # "auto" | "float32" | "bfloat16"
    "device": "auto",  # "auto" | "cuda" | "mps" | "cpu"
    "threads": 0,  # CPU threads of a process; 0 leaves it to torch
    "jobs": 0,  # processes that share the trials; 0 is one for each GPU or else for each core, with one thread each
}
