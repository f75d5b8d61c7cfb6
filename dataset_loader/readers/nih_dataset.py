"""NIH ChestX-ray14 (Wang et al. 2017) as it is downloaded: one table, 14 findings, patients, an official test list."""

from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.columns import Columns
from dataset_loader.image_files import image_files
from dataset_loader.readers.folder_dataset import described
from dataset_loader.readers.tables import file_text, once, read_table
from dataset_loader.synthetic import without_synthetic
from utils.config import UserError

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
TEST_LIST = "test_list.txt"

_NO_FINDING = "No Finding"
_NAMES = {
    "Image Index": "file",
    "Patient ID": "patient",
    "Patient Age": "age",
    "Patient Gender": "sex",
    "Patient Sex": "sex",
    "View Position": "view",
}
_HOW_TO_PLACE = (
    "get ChestX-ray14 from the NIH (https://nihcc.app.box.com/v/ChestXray-NIHCC), place it as "
    f"datasets/ChestX-ray14/{TABLES[0]} beside the folders of images (or point --data-root at that folder), or run "
    "with --dataset phantom, which needs no download."
)


def read_nih(root: Path) -> Columns:
    """Read the images that the table lists, wherever they lie below the folder; no pixel is opened.

    Labels are [N, 14] float32 in the order of FINDINGS, 1 or 0. A patient is a group. `test_list.txt`, where it is
    there, is the test part. Rows without a file, as in a partial download, are counted on stderr and left out.
    Raises UserError if the table is missing or not the NIH's, or there is no image.
    """
    root = Path(root)
    table = next((root / name for name in TABLES if (root / name).is_file()), None)
    if table is None:
        raise UserError(f"found no {TABLES[0]} in {root}; {_HOW_TO_PLACE}")
    rows = read_table(table)
    missing = [name for name in ("Image Index", "Finding Labels", "Patient ID") if name not in rows]
    if missing:
        raise UserError(f"{table} lacks the column {missing[0]!r}; it has {', '.join(rows.columns)}; {_HOW_TO_PLACE}")
    files = without_synthetic(root, image_files(root))
    rows = once(rows.rename(columns=_NAMES), table)
    labels = _labels(rows.pop("Finding Labels"), table)
    tested = file_text(root / TEST_LIST).split() if (root / TEST_LIST).is_file() else []
    rows["part"] = np.where(rows["file"].isin(tested), "test", "train" if tested else "")
    path_of = {file.rpartition("/")[2]: file for file in files}
    rows["file"] = [path_of.get(name, name) for name in rows["file"]]
    if not path_of.keys() & set(rows["file"].str.rpartition("/")[2]):
        raise UserError(f"found no image of {table} below {root}; {_HOW_TO_PLACE}")
    return described(root, files, rows, labels, FINDINGS, table)


def _labels(written: pd.Series, table: Path) -> np.ndarray:
    """Return [N, 14] float32: 1 for each finding that a row names, else 0."""
    labels = np.zeros((len(written), len(FINDINGS)), dtype=np.float32)
    for row, (line, text) in enumerate(written.items()):
        for name in text.split("|"):
            if name in FINDINGS:
                labels[row, FINDINGS.index(name)] = 1
            elif name != _NO_FINDING:
                raise UserError(
                    f"{table} holds the finding {name!r} in line {line}; expected {', '.join(FINDINGS)} or "
                    f"{_NO_FINDING}, separated by |."
                )
    return labels
