"""Any folder of X-rays, and what a table says about some of them."""

import posixpath
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.dicom import RADIOGRAPHS, dicom_facts
from dataset_loader.image_files import image_files, is_dicom_name, shown
from dataset_loader.readers.class_folders import by_folder, like_classes, lung_masks
from dataset_loader.readers.tables import checked_findings, column_of, finding_values, read_table
from dataset_loader.synthetic import without_synthetic
from utils.config import UserError
from utils.scripts import tracked

TABLE = "labels.csv"
KNOWN = ("file", "label", "patient", "mask", "sex", "age", "view", "source", "part")
_DETAILS = ("sex", "age", "view", "source")
_PARTS = {"": "", "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SEXES = {"m": "Male", "male": "Male", "f": "Female", "female": "Female"}
_EXPECTED = "datasets/README.md shows the tables that are read"


def read_folder(root: Path, labels: str = "table") -> Columns:
    """Read every image file below a folder and, if it is there, what `labels.csv` says about them; no pixel is opened.

    With `labels` "folders", an image's class is its top folder, as by_folder says, and labels.csv is not read.

    Columns of the table: file (relative to the folder), and either label (a class) or one column for each finding. A
    finding is a column that is not in KNOWN, most of whose cells that are not blank are 1, 0 or -1; then all must be.
    Other columns are details, and so is every unknown column beside a label. Files without a row, or with a blank
    label, are UNLABELLED; all of them without a table.
    Rows without a file are counted on stderr and left out.
    Raises UserError if there is no image, or the table cannot be understood.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"found no folder {root}; data_root names the folder that holds your images.")
    files, path = without_synthetic(root, image_files(root)), root / TABLE
    if not len(files):
        raise UserError(f"found no image below {root}; data_root names the folder that holds your images.")
    if labels == "folders":
        return _read_class_folders(root, files)
    if not path.is_file():
        if counts := like_classes(files):
            print(f"note: {root} has no {TABLE}; {offer_of_folders(counts)}", file=sys.stderr)
        rows = pd.DataFrame({"file": pd.Series(dtype=object)})
        return described(root, files, rows, np.empty((0, 0), dtype=np.float32), (), path)
    rows = read_table(path).rename(columns=lambda name: name.lower() if name.lower() in KNOWN else name)
    if "file" not in rows:
        raise UserError(f"{path} has no column 'file', but {', '.join(rows.columns)}; {_EXPECTED}.")
    for name in rows.columns.intersection(["file", "mask"]):
        written = [(file, f"{path}, line {line}, column {name!r},") for line, file in column_of(rows, name).items()]
        rows[name] = [_relative(file, root, where) if file or name == "file" else "" for file, where in written]
    if "label" in rows:
        has_file = column_of(rows, "file").isin(files)
        # a class that only rows without a file have does not count
        written = column_of(rows, "label").where(has_file | (not has_file.any()), "")
        names, values = _classes(written, path)
    else:
        names = _findings(rows, path)
        values = np.stack([checked_findings(column_of(rows, name), path) for name in names], axis=1)
        rows = rows.drop(columns=list(names))
    columns = described(root, files, rows, values, names, path)
    kind = "classes" if "label" in rows else "findings"
    print(f"{path}: {len(columns.labelled()):,} labelled images, {kind} {', '.join(names)}", file=sys.stderr)
    return columns


def offer_of_folders(counts: Mapping[str, int]) -> str:
    """Return what to do where folders look like classes, of which each has some images."""
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"its folders look like classes ({listed}): --labels folders reads them"


def _read_class_folders(root: Path, files: np.ndarray) -> Columns:
    """Return the columns of images whose class is their top folder; the others are UNLABELLED."""
    found = by_folder(files, deep=True)
    found.check(root, "with --labels folders each class has a folder of its own.")
    found.note_others("so without a label")
    if (root / TABLE).is_file():
        print(f"note: {root / TABLE} is not read: labels is 'folders'", file=sys.stderr)
    names, labelled = found.names, np.flatnonzero(found.classes != "")
    rows = pd.DataFrame({"file": files[labelled], "label": found.classes[labelled], "part": found.parts[labelled]})
    rows["mask"] = [mask or "" for mask in lung_masks(root, files[labelled])]
    return described(root, files, rows, np.searchsorted(names, found.classes[labelled]), tuple(names), root)


def described(
    root: Path, files: np.ndarray, rows: pd.DataFrame, labels: np.ndarray, names: tuple[str, ...], table: Path
) -> Columns:
    """Return the columns of the files [N], of which the rows [M] of a `table` describe some.

    rows    text; file, and any of the KNOWN columns and of details
    labels  [M] class indices, -1 where blank, or findings [M, C]
    names   the classes or findings

    Raises UserError if a file is listed twice, no row has a file, a part is unknown or an image without a label is
    in an official validation or test part.
    """
    masks = set(column_of(rows, "mask"))
    files = np.array([file for file in files if file not in masks], dtype=object)
    place = _places(files, rows, table)  # -1 without a row, which takes the last, a blank one
    known = pd.concat([rows, pd.DataFrame("", index=[0], columns=rows.columns)]).iloc[place].reset_index(drop=True)
    _fill_from_headers(known, root, files)
    blank = np.full((1, *labels.shape[1:]), -1 if labels.ndim == 1 else np.nan, dtype=labels.dtype)
    labels = np.concatenate([labels, blank])[place]
    unlabelled = (place < 0) | (labels == -1 if labels.ndim == 1 else False)
    parts = column_of(known, "part").str.lower()
    if not parts.isin(_PARTS).all():
        wrong = parts[~parts.isin(_PARTS)].iloc[0]
        raise UserError(f"{table} holds {wrong!r} as 'part'; expected train, val, test or blank.")
    official = parts.map(_PARTS).to_numpy(dtype="<U10")
    kept = np.flatnonzero(~unlabelled | ~np.isin(official, ("val", "test")))
    if len(kept) < len(files):
        lost = len(files) - len(kept)
        print(f"warning: {lost:,} images of the official validation or test part left out: no label", file=sys.stderr)
    official[unlabelled] = UNLABELLED
    patients = column_of(known, "patient").to_numpy()
    return Columns(
        root=root,
        paths=files,
        labels=labels,
        label_names=names,
        groups=np.where(patients == "", files, patients),
        masks=_existing_masks(root, column_of(known, "mask"), table),
        official=official,
        details=_details(known),
    ).take(kept)


def _relative(written: str, root: Path, where: str) -> str:
    """Return the POSIX path below root of a file as a table writes it; UserError if it lies elsewhere."""
    name = posixpath.normpath(written.replace("\\", "/"))
    for top in {root.as_posix(), root.resolve().as_posix()}:
        name = name.removeprefix(f"{top}/")
    if not written or name.startswith(("/", "../")) or name in (".", "..") or name[1:2] == ":":
        raise UserError(f"{where} holds {written!r}; expected a path below {root}, relative to it.")
    return name


def _classes(written: pd.Series, path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the class names and, for each row, the index of its class, -1 where the label is blank."""
    names = sorted(set(written) - {""})
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no class"
        raise UserError(f"{path} holds {found} in its column 'label'; expected two or more. {_EXPECTED}.")
    if 2 * len(names) > max(4, count := int((written != "").sum())):
        raise UserError(
            f"{path} holds {len(names):,} different labels for {count:,} images, such as {names[0]!r}; expected the "
            f"name of one class in each row. {_EXPECTED}."
        )
    return tuple(names), np.array([names.index(label) if label else -1 for label in written], dtype=np.int64)


def _findings(rows: pd.DataFrame, path: Path) -> tuple[str, ...]:
    """Return the columns of findings; one wrong cell does not turn a finding into a detail."""
    names = []
    for name in rows.columns.difference(KNOWN, sort=False):
        values, wrong = finding_values(column_of(rows, name))
        if (np.isfinite(values) & ~wrong).sum() > wrong.sum():
            names.append(name)
    if not names:
        raise UserError(
            f"{path} has neither a column 'label' nor one for each finding (1, 0, -1, blank); its columns are "
            f"{', '.join(rows.columns)}. {_EXPECTED}."
        )
    return tuple(names)


def _places(files: np.ndarray, rows: pd.DataFrame, table: Path) -> np.ndarray:
    """Return the row [N] of each file, -1 without one; rows without a file are counted on stderr."""
    listed = column_of(rows, "file")
    again = listed[listed.duplicated()].tolist()
    if again:
        raise UserError(f"{table} lists {shown(again)} more than once; keep one row for each file.")
    lost = sorted(set(listed) - set(files))
    if lost and len(lost) == len(rows):
        raise UserError(
            f"{table} has no row for any image below {table.parent}: it names {lost[0]!r}, and there is {files[0]!r}; "
            "expected paths relative to that folder, with their suffix."
        )
    if lost:
        print(f"warning: {table} has rows without a file, left out: {shown(lost)}", file=sys.stderr)
    return pd.Index(listed).get_indexer(pd.Index(files))


def _fill_from_headers(known: pd.DataFrame, root: Path, files: np.ndarray) -> None:
    """Fill what the table leaves blank of patient, sex, age and view from the headers of DICOM files."""
    rows = [row for row, file in enumerate(files) if is_dicom_name(file)]
    if not rows:
        return
    facts = pd.DataFrame([dicom_facts(root / files[row]) for row in tracked(rows, "DICOM headers", "img")], index=rows)
    others = facts.pop("modality").value_counts().drop(list(RADIOGRAPHS), errors="ignore")
    if len(others):
        counts = ", ".join(f"{count:,} {name}" for name, count in others.items())
        print(
            f"warning: {root} has DICOM files of other modalities than radiographs: {counts}; take them out",
            file=sys.stderr,
        )
    if len(rows) > 1 and len(set(column_of(facts, "patient")) - {""}) == 1:
        facts["patient"] = ""  # what a program wrote in place of the patients
    for name in facts:
        column = column_of(known, str(name))
        known[name] = column.mask(column == "", facts[name].reindex(known.index, fill_value=""))


def _existing_masks(root: Path, written: pd.Series, table: Path) -> np.ndarray:
    """Return [N] the masks that exist, as they are written, and None; the others are counted on stderr."""
    masks = [name if name and (root / name).is_file() else None for name in written]
    lost = [name for name, mask in zip(written, masks, strict=True) if name and not mask]
    if lost:
        print(f"warning: {table} names masks that do not exist, left out: {shown(lost)}", file=sys.stderr)
    return np.array(masks, dtype=object)


def _details(known: pd.DataFrame) -> pd.DataFrame:
    """Return sex ("Male", "Female" or as written), age in years, view, source, and whatever else the table has."""
    details = known.drop(columns=[name for name in KNOWN if name in known and name not in _DETAILS])
    if "sex" in details:
        details["sex"] = [_SEXES.get(sex.lower(), sex) for sex in details["sex"]]
    if "age" in details:
        details["age"] = pd.to_numeric(details["age"].str.replace(",", "."), errors="coerce")
    return details.replace("", np.nan)
