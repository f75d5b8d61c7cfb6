"""CheXpert and CheXpert-small (Irvin et al. 2019): one CSV with one row per image, 14 findings, views.

It comes as one folder, CheXpert-v1.0-small/{train.csv,valid.csv,train/,valid/}, and from Stanford AIMI in full size as
four beside each other, whose tables say CheXpert-v1.0/train/... of patients that lie directly in three of them:
"CheXpert-v1.0 batch 1 (validate & csv)"/{train.csv,valid.csv,valid/}, "CheXpert-v1.0 batch 2 (train 1)"/patient...
The test set of 500 patients comes apart, with CheXlocalize as CheXpert/{test_labels.csv,test/}.
"""

import os
import re
from itertools import filterfalse
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.columns import Columns
from dataset_loader.image_files import is_left_out, shown
from dataset_loader.readers.tables import check_columns, checked_findings, column_of, read_table
from dataset_loader.readers.values import read_ages
from utils.config import UserError
from utils.messages import say

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

COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")  # its five findings

# A copy may lack a file or two; if more are missing, the download is incomplete or it is another folder.
MAX_MISSING_SHARE = 0.1

_TABLES = {"train": ("train.csv",), "valid": ("valid.csv", "val_labels.csv")}
_TABLES |= {"test": ("test.csv", "test_labels.csv", "groundtruth.csv")}
_OTHER_NAMES = {"valid": "val", "val": "valid"}  # of the same folder
_PARTS = ("train", "valid", "val", "test")
_DEPTH = 3  # folders between the root and those of the patients, at most: an unpacked zip may add one
_VIEW = "Frontal/Lateral"
_DETAILS = {"Sex": "sex", "AP/PA": "view"}
_EXAMPLE_PATH = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
_HOW_TO_PLACE = (
    "get CheXpert from Stanford AIMI (https://stanfordaimi.azurewebsites.net, after registration), place it "
    "as datasets/CheXpert-v1.0-small/train.csv beside datasets/CheXpert-v1.0-small/train/ (or point "
    "--data-root at that folder), or run with --dataset phantom, which needs no download."
)


def read_chexpert(root: Path) -> Columns:
    """Read the frontal images that `train.csv` lists and that exist below `root`; no pixel is opened.

    Labels are [N, 14] float32 in the order of FINDINGS: 1 positive, 0 negative, -1 uncertain, NaN not
    mentioned. A patient is a group. Without a name of findings, those of the competition are learnt. The images of
    valid.csv, which radiologists labelled, are the official test part; where those of the test set are there, they are,
    and valid.csv's are the validation part. The folders may be one or AIMI's four batches. What is left out is counted
    on stderr. Raises UserError if the folder or the table is missing or malformed, or more than MAX_MISSING_SHARE of
    the files are missing.
    """
    root, tables = _tables(Path(root))
    rows = {part: read_chexpert_table(path) for part, path in tables.items()}
    _place(rows, root, tables["train"])
    checked = [part for part in ("test", "valid") if part in rows and any(rows[part]["exists"])]
    for part in rows.keys() - {"train", *checked}:
        say(f"note: {tables[part]} is not used: there is none of its images")
    named = {"train": "", **dict(zip(checked, ("test", "val"), strict=False))}
    used = [_existing(rows[part], tables[part]).assign(named=name) for part, name in named.items()]
    for part, found in zip(checked, used[1:], strict=True):
        say(f"the {len(found):,} images of {tables[part]} are the {named[part]} part")
    table = pd.concat(used).sort_values("path", ignore_index=True)
    return Columns(
        root=root,
        paths=table["path"].to_numpy(dtype=str),
        labels=table.filter(FINDINGS).to_numpy(dtype=np.float32),
        label_names=FINDINGS,
        groups=table["patient"].to_numpy(dtype=str),
        masks=np.full(len(table), None, dtype=object),
        named_parts=table["named"].to_numpy(dtype="<U10"),
        details=table.filter(("study", "sex", "age", "view")),
        default_findings=COMPETITION,
    )


def _tables(root: Path) -> tuple[Path, dict[str, Path]]:
    """Return the folder that the images are below, and the table of each part of _TABLES that is there.

    They lie in the root, or in one folder up to two levels below. The tables' folder may be the first of AIMI's
    batches; then the images are beside it. Raises UserError without a train.csv, or with two.
    """
    levels = (sorted(root.glob(f"{above}train.csv")) for above in ("", "*/", "*/*/"))  # as deep as need be
    found = next(filter(None, levels), [])
    if len(found) != 1:
        above = [*root.parent.glob("train.csv"), *root.parent.glob("*batch*/train.csv")]
        near = [path.parent for path in found] or ([root.parent] if above else [])
        hint = f"did you mean {' or '.join(map(str, near))}? Else " if near else ""
        what = f"{len(found)} train.csv below {root}" if found else f"no train.csv in {root}"
        what = what if root.is_dir() else f"no folder {root}, where train.csv should be"
        raise UserError(f"found {what}; {hint}{_HOW_TO_PLACE}")
    home = found[0].parent
    if "batch" in home.name.lower():
        root = home.parent
    elif (home / "train").is_dir():
        root = home
    nearby = [home, root, *(path for path in sorted(root.glob("*")) if path.is_dir())]
    tables = {}
    for part, names in _TABLES.items():
        paths = [folder / name for folder in nearby for name in names if (folder / name).is_file()]
        tables |= {part: paths[0]} if paths else {}
    others = [path.name for path in sorted(home.glob("*.csv")) if path not in tables.values()]
    if others:
        say(f"note: {shown(others)} in {home} not read")
    return root, tables


def read_chexpert_table(csv_path: Path) -> pd.DataFrame:
    """Return the frontal rows of a CheXpert table in the order of their paths; opens no other file.

    Columns: path (from the folder of the part on), patient, study, sex, age, view (AP, PA, LL, RL) and the 14
    FINDINGS. Lateral rows, and those that are neither frontal nor lateral, are counted on stderr and left out; a table
    without that column, as the test set's, says it in the files' names. Raises UserError for a column that is missing
    or a value that CheXpert does not use.
    """
    table = read_table(csv_path)
    check_columns(table, ("Path", *FINDINGS), csv_path, "expected CheXpert's own header.")
    named = table["Path"].str.extract("_(frontal|lateral)", re.IGNORECASE, expand=False).fillna("")
    view = column_of(table.assign(**{_VIEW: table.get(_VIEW, named)}), _VIEW).str.lower()
    frontal = table.loc[view == "frontal"]
    if frontal.empty:
        raise UserError(f"{csv_path} lists no frontal image: none of its {len(table)} rows says 'Frontal'.")
    lateral, odd = (view == "lateral").sum(), ~view.isin(["frontal", "lateral"])
    if lateral:
        say(f"note: {lateral:,} lateral images of {csv_path} left out")
    if odd.any():
        say(
            f"warning: {odd.sum():,} of {len(table):,} rows of {csv_path} are neither Frontal nor Lateral "
            f"(line {table.index[odd][0]}); left out"
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


def _place(rows: dict[str, pd.DataFrame], root: Path, table: Path) -> None:
    """Make the paths of each part's rows relative to `root`, wherever the patients' folders lie; add column exists.

    One look-up per file: a folder holds one or two images, so listing the folders takes 3 times as long.
    """
    patients = {patient for part in rows.values() for patient in part["patient"]}
    homes, unlisted = _homes(root, "", patients, _DEPTH)
    if unlisted:
        say(f"note: {unlisted:,} patients' folders below {root} left out: no table lists a frontal image of theirs")
    folders: dict[str, dict[str, str]] = {patient: {} for patient in patients}  # that hold each, by the last name
    for home, found in homes.items():
        for patient in found:
            folders[patient][home.rpartition("/")[2].lower()] = home
    for part in rows.values():
        placed = zip(part["path"], part["patient"], strict=True)
        part["path"] = [_placed(path, folders[patient]) for path, patient in placed]
        part["exists"] = [os.path.exists(f"{root}/{path}") for path in part["path"]]


def _homes(root: Path, folder: str, patients: set[str], depth: int) -> tuple[dict[str, set[str]], int]:
    """Return the patients in each folder below `root` that holds any of these, and how many others there are."""
    with os.scandir(root / folder) as entries:
        names = {entry.name for entry in entries if entry.is_dir()}
    others = {name for name in names - patients if name.startswith("patient")}
    homes, unlisted = {folder: names & patients} if names & patients else {}, len(others)
    for name in sorted(filterfalse(is_left_out, names - patients - others)) if depth else []:
        found, more = _homes(root, f"{folder}/{name}" if folder else name, patients, depth - 1)
        homes, unlisted = homes | found, unlisted + more
    return homes, unlisted


def _placed(path: str, holding: dict[str, str]) -> str:
    """Return where a table's path lies: in the folder of its part or, where that has not its patient, in a batch."""
    *above, patient, study, file = path.split("/")
    part = "".join(above).lower()
    own = holding.get(part, holding.get(_OTHER_NAMES.get(part, "")))
    batch = next((home for name, home in holding.items() if name not in _PARTS), "".join(above))
    home = batch if own is None else own
    return "/".join([*filter(None, [home]), patient, study, file])


def _existing(rows: pd.DataFrame, csv_path: Path) -> pd.DataFrame:
    """Return the rows whose image file exists."""
    exists = rows.pop("exists").to_numpy(dtype=bool)
    if exists.all():
        return rows
    lost = rows["path"][~exists].tolist()
    found = f"{len(lost):,} of {len(rows):,} frontal images that {csv_path} lists are missing ({shown(lost)})"
    if len(lost) > MAX_MISSING_SHARE * len(rows):
        raise UserError(f"{found}, more than {MAX_MISSING_SHARE:.0%}; complete the download: {_HOW_TO_PLACE}")
    say(f"warning: {found}; continuing without them")
    return rows.loc[exists].reset_index(drop=True)
