"""CheXpert and CheXpert-small (Irvin et al. 2019): one CSV with one row per image, 14 findings, views."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.columns import Columns
from dataset_loader.readers.tables import checked_findings, column_of, read_table
from dataset_loader.readers.values import read_ages
from utils.config import UserError

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

# A copy may lack a file or two; if more are missing, the download is incomplete or it is another folder.
MAX_MISSING_SHARE = 0.1

_NEEDED = ("Path", "Frontal/Lateral", *FINDINGS)
_DETAILS = {"Sex": "sex", "AP/PA": "view"}
_EXAMPLE_PATH = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
_HOW_TO_PLACE = (
    "get CheXpert from Stanford AIMI (https://stanfordaimi.azurewebsites.net, after registration), place it "
    "as datasets/CheXpert-v1.0-small/train.csv beside datasets/CheXpert-v1.0-small/train/ (or point "
    "--data-root at that folder), or run with --dataset phantom, which needs no download."
)


def read_chexpert(root: Path) -> Columns:
    """Read the frontal images that `root/train.csv` lists and that exist; no pixel is opened.

    Labels are [N, 14] float32 in the order of FINDINGS: 1 positive, 0 negative, -1 uncertain, NaN not
    mentioned. A patient is a group. Where there are valid.csv and valid/, which radiologists labelled, these images are
    the official test part. Files that are missing are counted on stderr and left out. Raises UserError if the folder or
    the table is missing or malformed, or more than MAX_MISSING_SHARE of the files are missing.
    """
    root = Path(root)
    csv_path, checked = root / "train.csv", root / "valid.csv"
    if not csv_path.is_file():
        near = next(iter(sorted(root.glob("*/train.csv"))), None) if root.is_dir() else None
        hint = f"did you mean {near.parent}? Else " if near else ""
        found = f"no train.csv in {root}" if root.is_dir() else f"no folder {root}, where train.csv should be"
        raise UserError(f"found {found}; {hint}{_HOW_TO_PLACE}")
    rows = _existing(read_chexpert_table(csv_path), root, csv_path).assign(official="")
    if checked.is_file() and (root / "valid").is_dir():
        test = _existing(read_chexpert_table(checked), root, checked).assign(official="test")
        print(f"the {len(test):,} images of {checked} are the test part", file=sys.stderr)
        rows = pd.concat([rows, test]).sort_values("path", ignore_index=True)
    return Columns(
        root=root,
        paths=rows["path"].to_numpy(dtype=str),
        labels=rows.filter(FINDINGS).to_numpy(dtype=np.float32),
        label_names=FINDINGS,
        groups=rows["patient"].to_numpy(dtype=str),
        masks=np.full(len(rows), None, dtype=object),
        official=rows["official"].to_numpy(dtype="<U10"),
        details=rows.filter(("study", "sex", "age", "view")),
    )


def read_chexpert_table(csv_path: Path) -> pd.DataFrame:
    """Return the frontal rows of a CheXpert table in the order of their paths; opens no other file.

    Columns: path (relative to the data root), patient, study, sex, age, view (AP, PA, LL, RL) and the 14
    FINDINGS. Rows that are neither frontal nor lateral are counted on stderr and left out. Raises UserError for a
    column that is missing or a value that CheXpert does not use.
    """
    table = read_table(csv_path)
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise UserError(
            f"{csv_path} lacks the column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(str, table.columns))}; expected CheXpert's own header."
        )
    view = table["Frontal/Lateral"].str.lower()
    frontal = table.loc[view == "frontal"]
    if frontal.empty:
        raise UserError(f"{csv_path} lists no frontal image: none of its {len(table)} rows says 'Frontal'.")
    odd = ~view.isin(["frontal", "lateral"])
    if odd.any():
        print(
            f"warning: {odd.sum():,} of {len(table):,} rows of {csv_path} are neither Frontal nor Lateral "
            f"(line {table.index[odd][0]}); left out",
            file=sys.stderr,
        )
    rows = _split_paths(frontal["Path"].tolist(), csv_path)
    for column, name in _DETAILS.items():
        rows[name] = column_of(frontal, column).replace("", np.nan).to_numpy()
    rows["age"] = read_ages(column_of(frontal, "Age"), str(csv_path)).to_numpy()
    for finding in FINDINGS:
        rows[finding] = checked_findings(frontal[finding], csv_path)
    return rows.sort_values("path", ignore_index=True)


def _split_paths(written: list[str], csv_path: Path) -> pd.DataFrame:
    """Return columns path, patient, study; the path starts at train/, whatever precedes it in the table."""
    parts = [path.replace("\\", "/").split("/")[-4:] for path in written]
    odd = next((path for path, names in zip(written, parts, strict=True) if len(names) < 3), None)
    if odd is not None:
        raise UserError(f"{csv_path} holds the path {odd!r}, expected one like {_EXAMPLE_PATH}.")
    paths = pd.Series(["/".join(names) for names in parts])
    again = paths.duplicated().to_numpy()
    if again.any():
        raise UserError(
            f"{csv_path} lists {again.sum()} frontal images more than once, such as "
            f"{paths[int(again.argmax())]}; keep one row for each."
        )
    return pd.DataFrame(
        {"path": paths, "patient": [names[-3] for names in parts], "study": [names[-2] for names in parts]}
    )


def _existing(rows: pd.DataFrame, root: Path, csv_path: Path) -> pd.DataFrame:
    """Return the rows whose image file exists.

    One look-up per file: a folder holds one or two images, so listing the folders takes 3 times as long.
    """
    paths = rows["path"].tolist()
    exists = np.array([os.path.exists(f"{root}/{path}") for path in paths])
    if exists.all():
        return rows
    lost = [paths[row] for row in np.flatnonzero(~exists)]
    found = (
        f"{len(lost):,} of {len(rows):,} frontal images that {csv_path} lists are missing "
        f"({', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''})"
    )
    if len(lost) > MAX_MISSING_SHARE * len(rows):
        raise UserError(f"{found}, more than {MAX_MISSING_SHARE:.0%}; complete the download: {_HOW_TO_PLACE}")
    print(f"warning: {found}; continuing without them", file=sys.stderr)
    return rows.loc[exists].reset_index(drop=True)
