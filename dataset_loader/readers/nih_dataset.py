"""NIH ChestX-ray14 (Wang et al. 2017) as it is downloaded: one table, 14 findings, patients, an official test list."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.image_files import shown
from dataset_loader.readers.folder_dataset import described
from dataset_loader.readers.patients import id_keys
from dataset_loader.readers.tables import check_columns, file_text, once, read_table
from dataset_loader.synthetic import without_synthetic
from utils.config import UserError
from utils.messages import say

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
TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv", "sample_labels.csv")  # the last: a sample of 5%
TEST_LIST = "test_list.txt"
BOX_FRAME = 1024  # pixels per side of the published images, in which boxes are measured

_INDEX = {name.casefold(): index for index, name in enumerate(FINDINGS)}
_PATIENT = re.compile(r"(\d{8})_\d{3}")  # in the name of an image
_NAMES = {
    "Image Index": "file",
    "Patient ID": "patient",
    "Patient Age": "age",
    "Patient Gender": "sex",
    "Patient Sex": "sex",
    "View Position": "view",
}
_BOX_NAMES = {
    "Image Index": "file", "Finding Label": "finding", "Bbox [x": "x", "y": "y", "w": "w", "h]": "h",
}  # fmt: skip
_HOW_TO_PLACE = (
    "get ChestX-ray14 from the NIH (https://nihcc.app.box.com/v/ChestXray-NIHCC), place it as "
    f"datasets/ChestX-ray14/{TABLES[0]} beside the folders of images (or point --data-root at that folder), or run "
    "with --dataset phantom, which needs no download."
)


def read_nih(root: Path) -> Columns:
    """Read the images that the table lists, wherever they lie below the folder; no pixel is opened.

    Labels are [N, 14] float32 in the order of FINDINGS, 1 or 0. A patient is a group. `test_list.txt`, where it is
    there, is the test part. Names count without folder and suffix. Rows without a file, as in a partial download, and
    images of a name that comes twice are counted on stderr and left out; images without a row are unlabelled.
    Raises UserError if the table is missing or not the NIH's, there is no image, or the list names none of them.
    """
    root = Path(root)
    table = _table(root)
    rows = read_table(table)
    check_columns(rows, ("Image Index", "Finding Labels", "Patient ID"), table, _HOW_TO_PLACE)
    path_of, again = _paths(root)
    rows = rows.rename(columns=_NAMES)
    rows["file"] = [path_of.get(_name(file), file) for file in rows["file"]]
    rows = once(rows, table)
    names = [_name(file) for file in rows["file"]]
    if not path_of.keys() & set(names):
        raise UserError(f"found no image of {table} below {root}; {_HOW_TO_PLACE}")
    if unlisted := [path_of[name] for name in path_of.keys() - set(names)]:
        say(f"note: without a label, as {table} does not list them: {shown(sorted(unlisted))}")
    tested = _test_names(root / TEST_LIST, names, table)
    rows["part"] = np.where(np.isin(names, tested), "test", "train" if tested else "")
    labels = _labels(rows.pop("Finding Labels"), table)
    columns = described(root, np.array(sorted(path_of.values()), dtype=object), rows, labels, FINDINGS, table)
    return replace(columns, groups=_patients(columns)).with_left_out(again, "the name of another image")


def read_boxes(path: Path, columns: Columns) -> pd.DataFrame:
    """Read BBox_List_2017.csv: one row per box, its line in the file as the index.

    Columns: file, a path of `columns` (as read_nih returns them) or, where there is no such image, the name in the
    table; finding, one of FINDINGS ("Infiltrate" is Infiltration); x, y, w, h, the left and upper edge, width and
    height in pixels of the published images, BOX_FRAME a side. OriginalImage[Width,Height] of the other table is the
    size before the NIH resized them: boxes are not in those pixels.
    Raises UserError for a table without these columns, a finding that is not one, or a box without an area.
    """
    rows = read_table(path)
    expected = "expected the columns of the NIH's BBox_List_2017.csv: Image Index, Finding Label, Bbox [x,y,w,h]."
    check_columns(rows, _BOX_NAMES, path, expected)
    rows = rows.rename(columns=_BOX_NAMES)
    path_of = {_name(file): file for file in columns.paths}
    rows["file"] = [path_of.get(_name(file), file) for file in rows["file"]]
    rows["finding"] = rows["finding"].replace({"Infiltrate": "Infiltration"})
    for line, row in rows.iterrows():
        if row["finding"] not in FINDINGS:
            raise UserError(
                f"{path} has the finding {row['finding']!r} in line {line}; expected {', '.join(FINDINGS)}."
            )
    numbers = rows[[*"xywh"]].apply(pd.to_numeric, errors="coerce").astype(float)
    edges = numbers.to_numpy()
    odd = ~np.isfinite(edges).all(axis=1) | (edges[:, 2:] <= 0).any(axis=1)
    if odd.any():
        line = rows.index[odd.argmax()]
        raise UserError(f"{path} has a box in line {line} that is not x, y, width and height, the last two above 0.")
    return pd.concat([rows[["file", "finding"]], numbers], axis=1)


def patients_named(files: Iterable[str]) -> set[str]:
    """Return the patients that the names of NIH images tell; other names tell none."""
    found = (_PATIENT.fullmatch(_name(file)) for file in files)
    return {str(key) for key in id_keys([match[1] for match in found if match])}


def _table(root: Path) -> Path:
    """Return the table in a folder; UserError without one, pointing out one above or below."""
    for name in TABLES:
        if (root / name).is_file():
            return root / name
    near = [path.parent for name in TABLES for place in (f"../{name}", f"*/{name}") for path in root.glob(place)]
    hint = f"did you mean {near[0].resolve()}? Else " if near else ""
    raise UserError(f"found no {TABLES[0]} in {root}; {hint}{_HOW_TO_PLACE}")


def _paths(root: Path) -> tuple[dict[str, str], list[str]]:
    """Return the image of each name below a folder, and the others of the same names, which are said on stderr."""
    files = without_synthetic(root)
    path_of: dict[str, str] = {}
    for file in files:
        path_of.setdefault(_name(file), file)
    again = sorted({*files} - {*path_of.values()})
    if again:
        say(f"note: left out {shown(again)} below {root}: their names come twice")
    return path_of, again


def _name(file: str) -> str:
    """Return the name of an image without its folder and suffix."""
    return os.path.splitext(file.rpartition("/")[2])[0].casefold()


def _test_names(path: Path, names: list[str], table: Path) -> list[str]:
    """Return the names of the images in the test list that the table has, [] without a list."""
    if not path.is_file():
        return []
    listed = {_name(word) for word in file_text(path).split()}
    if listed.isdisjoint(names):
        raise UserError(f"{path} names none of the images of {table}; get it again, or remove it to have parts drawn.")
    if lost := sorted(listed - {*names}):
        say(f"note: {path} names images that {table} does not list: {shown(lost)}")
    return sorted(listed & {*names})


def _patients(columns: Columns) -> np.ndarray:
    """Return the groups [N]; images without a row have the patient that their name tells."""
    groups, extra = columns.groups.astype(object), columns.named_parts == UNLABELLED
    written = dict(zip(id_keys(groups[~extra]), groups[~extra], strict=True))
    for row in np.flatnonzero(extra):
        if found := _PATIENT.fullmatch(_name(columns.paths[row])):
            key = id_keys([found[1]])[0]
            groups[row] = written.get(key, key)
    return groups.astype(str)


def _labels(written: pd.Series, table: Path) -> np.ndarray:
    """Return [N, 14] float32: 1 for each finding that a row names, else 0."""
    labels = np.zeros((len(written), len(FINDINGS)), dtype=np.float32)
    for row, (line, text) in enumerate(written.items()):
        for name in text.split("|"):
            key = "_".join(name.casefold().split())
            if key in _INDEX:
                labels[row, _INDEX[key]] = 1
            elif key != "no_finding":
                raise UserError(
                    f"{table} holds the finding {name!r} in line {line}; expected {', '.join(FINDINGS)} or "
                    f"No Finding, separated by |."
                )
    return labels
