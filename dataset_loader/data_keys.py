"""The keys that say which X-rays an experiment takes: plain data, which each script's flags reach."""

from typing import Any

DATA: dict[str, Any] = {
    "dataset": "phantom",  # "phantom", "phantom_folds" (synthetic) | "covid" | "chexpert" | "nih" | "folder"
    "data_root": "",  # the data set's folder, from the repo root; "" is where datasets/README.md says
    "labels": "table",  # of a folder: "table" (labels.csv) | "folders" (one for each class)
    "laterals": False,  # True: also take lateral views of one's own folder, which are left out and listed
    "store_res": 0,  # side of the cached images, in pixels; 0 is 8/7 of img_res, or the files' side if that is less
    "split_seed": 0,  # of validation and five folds, where the data do not name parts; keep it: runs can be compared
    "val_share": 0.1,  # of the images whose part is drawn: validation; the others are the folds
    "keep_split": "",  # split.csv of an earlier run: its films keep their parts, new ones are drawn beside them
    "ids": "plain",  # patient and accession numbers in what is written: "plain" | "hashed" (keyed) | "none"
}
