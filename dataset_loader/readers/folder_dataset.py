"""Any folder of X-rays, and what a table says about some of them."""

import os
import re
import unicodedata
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.dicom import RADIOGRAPHS, dicom_facts
from dataset_loader.image_files import is_dicom_name, shown
from dataset_loader.readers.class_folders import by_folder, like_classes, lung_masks
from dataset_loader.readers.known_columns import COLUMNS, column_key, has_meaning, known_columns
from dataset_loader.readers.listed_files import below, file_finder
from dataset_loader.readers.patients import NO_PATIENT, joined_patients
from dataset_loader.readers.tables import (
    UNKNOWN,
    checked_findings,
    clean,
    column_of,
    finding_values,
    once,
    one_spelling,
    read_table,
    without_unknown,
)
from dataset_loader.readers.values import part_of, projection, read_ages, read_sexes, read_views
from dataset_loader.synthetic import without_synthetic
from utils.config import UserError
from utils.messages import say
from utils.scripts import tracked

TABLE = "labels.csv"
FOREIGN_ID = "DICOM patient"  # a detail, where headers write other ids than the table
_DETAILS = ("sex", "age", "view", "source", "study")
_UNREAD_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".gz", ".json")
_EXPECTED = "datasets/README.md shows the tables that are read"


def read_folder(root: Path, labels: str = "table", laterals: bool = False) -> Columns:
    """Read every image file below a folder and, if it is there, what `labels.csv` says about them; no pixel is opened.

    With `labels` "folders", an image's class is its top folder, as by_folder says, and labels.csv is not read.

    The table's columns are those of known_columns: file, and either label (a class) or one column for each finding. A
    finding is a column without another meaning, most of whose cells that are not blank are 1, 0, -1 or words for them;
    then all must be. Other columns are details, and so is every unknown column beside a label. Files without a row, or
    with a blank label, are UNLABELLED; all of them without a table. Lateral views, by the table or the DICOM header,
    are counted on stderr and left out unless `laterals`, and so are rows without a file.
    Raises UserError if there is no image, or the table cannot be understood.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"found no folder {root}; --data-root names the folder that holds your images.")
    files = without_synthetic(root)
    if not len(files):
        raise UserError(f"found no image below {root}; --data-root names the folder that holds your images.")
    if labels == "folders":
        instead = "with --labels folders each class has a folder of its own."
        columns = read_class_folders(root, files, deep=True, fate="so without a label", instead=instead)
    elif path := _table_of(root):
        columns = _read_table(root, files, path)
    else:
        if offer := offer_of_folders(root, files):
            say(f"note: {root} has no {TABLE}. {offer}")
        columns = read_films(root, files)
    return columns if laterals else without_laterals(columns, "; --laterals takes them all the same")


def _read_table(root: Path, files: np.ndarray, path: Path) -> Columns:
    """Return the columns of files [N] of which a table describes some; what it holds is said on stderr."""
    rows, aliased = _rows(root, files, path)
    if aliased and len(mixed := _finding_columns(rows)) > 1:
        raise UserError(
            f"{path} has {aliased!r}, which may be the label, and columns that may be findings: "
            f"{', '.join(mixed)}; call it 'label', or leave it out."
        )
    kind = "classes" if "label" in rows else "findings"
    labels, names = _classes(rows, files, path) if kind == "classes" else _findings(rows, path)
    rows = rows.drop(columns=[] if kind == "classes" else list(names))
    columns = described(root, files, rows, labels, names, path)
    say(f"{path}: {len(columns.labelled()):,} labelled images, {kind} {', '.join(names)}")
    if details := [name for name in rows if name not in COLUMNS]:
        say(f"{path}: other columns kept as details: {', '.join(details)}")
    return columns


def offer_of_folders(root: Path, files: np.ndarray) -> str:
    """Return what to do if the folders of files [N], or those in the one that holds all, look like classes, else ""."""
    top = os.path.commonpath(files.tolist())
    for place, inner in ((root, files), (root / top, [file[len(top) + 1 :] for file in files if top])):
        if counts := like_classes(inner):
            listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            return f"In {place}, the folders look like classes ({listed}): --labels folders reads them"
    return ""


def read_class_folders(root: Path, files: np.ndarray, *, deep: bool, fate: str, instead: str) -> Columns:
    """Return the columns of files [N], whose classes, parts and lung masks their folders tell, as by_folder says.

    Files in no class folder are UNLABELLED; stderr says so, and their `fate`. Raises UserError without two classes,
    which says what to do `instead`.
    """
    found = by_folder(files, deep=deep)
    classes = one_spelling(pd.Series(found.classes, dtype=object), root)
    found = replace(found, classes=classes.to_numpy(object))
    found.check(root, instead)
    labelled = found.classes != ""
    if others := files[~labelled].tolist():
        say(f"note: {shown(others)} in no class folder, {fate}")
    if (root / TABLE).is_file():
        say(f"note: {root / TABLE} is not read, as folders are the classes; --dataset folder --labels table reads it")
    labels = np.searchsorted(found.names, found.classes[labelled])
    rows = pd.DataFrame({"file": files, "label": found.classes, "part": found.parts}).loc[labelled]
    rows["mask"] = [mask or "" for mask in lung_masks(root, files[labelled])]
    return described(root, files, rows, labels, tuple(found.names), root)


def read_films(root: Path, files: np.ndarray) -> Columns:
    """Return the columns of files [N] that no table describes, only DICOM headers."""
    rows = pd.DataFrame({"file": pd.Series(dtype=object)})
    return described(root, files, rows, np.empty((0, 0), dtype=np.float32), (), root)


def _table_of(root: Path) -> Path | None:
    """Return labels.csv, in upper or lower case, or None; UserError if it is there as another kind of file."""
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_file())
    if found := [name for name in names if name.lower() == TABLE]:
        return root / (TABLE if TABLE in found else found[0])
    tables = [name for name in names if name.lower().endswith(_UNREAD_TABLES) and not name.startswith((".", "~"))]
    if meant := [name for name in tables if name.lower().startswith("label")]:
        raise UserError(
            f"{root} holds {meant[0]}, but no {TABLE}; save it as CSV (UTF-8) under the name {TABLE}, or move it "
            "elsewhere if there are no labels."
        )
    if tables := [name for name in tables if not name.lower().endswith((".txt", ".json"))]:
        say(f"note: {root} has no {TABLE}, so nothing is labelled; not read: {shown(tables)}")
    return None


def _rows(root: Path, files: np.ndarray, path: Path) -> tuple[pd.DataFrame, str]:
    """Return what a table says about each file once, and which column is the label under another name, or ""."""
    find = file_finder(files)
    table = read_table(path)
    for cell in filter(re.compile("[\r\n]").search, table.to_numpy().ravel()):
        if inside := [text for text in cell.splitlines()[1:] if find(re.split("[,;\t|]", text)[0])]:
            raise UserError(
                f"{path}: the row {inside[0]!r} lies in a cell of another; close the quotation mark before it."
            )
    rows = known_columns(table, path, lambda cell: find(below(cell, root) or ""))
    if "file" not in rows:
        raise UserError(f"{path} has no column 'file', but {', '.join(table)}; {_EXPECTED}.")
    for name in rows.columns.intersection(["file", "mask"]):
        written = []
        for line, cell in column_of(rows, name).items():
            if (file := below(cell, root)) is None and (cell or name == "file"):
                where = f"{path}, line {line}, column {name!r},"
                raise UserError(f"{where} holds {cell!r}; expected a path below {root}, relative to it.")
            written.append(file or "")
        rows[name] = [find(file) or file for file in written]
        if other := [f"{cell} for {file}" for cell, file in zip(written, rows[name], strict=True) if cell != file]:
            say(f"{path}: files found under another spelling or folder: {shown(other)}")
    rows = once(rows, path)
    for name in [name for name in rows if name in COLUMNS and name not in ("file", "label")]:
        rows[name] = without_unknown(column_of(rows, name), NO_PATIENT if name == "patient" else UNKNOWN, str(path))
    label = next((old for old, new in zip(table, rows, strict=True) if new == "label"), "label")
    return rows, "" if column_key(label) == "label" else label


def described(
    root: Path, files: np.ndarray, rows: pd.DataFrame, labels: np.ndarray, names: tuple[str, ...], table: Path
) -> Columns:
    """Return the columns of the files [N], of which the rows [M] of a `table` describe some.

    rows    text; file, and any of COLUMNS and of details
    labels  [M] class indices, -1 where blank, or findings [M, C]
    names   the classes or findings

    Images without a label that the table puts into validation or test are left out, which is said on stderr.
    Raises UserError if no row has a file, or a part is unknown.
    """
    masks = set(column_of(rows, "mask"))
    files = np.array([file for file in files if file not in masks], dtype=object)
    place = _places(files, rows, table)  # -1 without a row, which takes the last, a blank one
    known = pd.concat([rows, pd.DataFrame("", index=[0], columns=rows.columns)]).iloc[place].reset_index(drop=True)
    header_ids = _fill_from_headers(known, root, files)
    blank = np.full((1, *labels.shape[1:]), -1 if labels.ndim == 1 else np.nan, dtype=labels.dtype)
    labels = np.concatenate([labels, blank])[place]
    unlabelled = (place < 0) | (labels == -1 if labels.ndim == 1 else False)
    named = _named_parts(column_of(known, "part"), table)
    kept = np.flatnonzero(~unlabelled | ~np.isin(named, ("val", "test")))
    if len(kept) < len(files):
        lost = len(files) - len(kept)
        say(f"warning: {lost:,} images of the named validation or test part left out: no label")
    named[unlabelled] = UNLABELLED
    patients, foreign = joined_patients(column_of(known, "patient").to_numpy(), header_ids, files, table)
    study = column_of(known, "study").where(patients == "", "")
    if shared := int(((study != "") & study.duplicated(keep=False)).sum()):
        say(
            f"warning: {table}: {shared:,} films share a study, but no patient is named, so that a split may divide "
            "them; add a column 'patient'"
        )
    columns = Columns(
        root=root,
        paths=files.astype(str),
        labels=labels,
        label_names=names,
        groups=np.where(patients == "", files, patients).astype(str),
        masks=_existing_masks(root, column_of(known, "mask"), table),
        named_parts=named,
        details=_details(known, foreign, str(table)),
    )
    return columns.take(kept).with_left_out(np.delete(files, kept), "validation or test image without a label")


def _named_parts(parts: pd.Series, table: Path) -> np.ndarray:
    """Return [N] the parts that a table names: "train", "val", "test" or ""."""
    part = {word: part_of(word) for word in parts.unique()}
    if wrong := [word for word in part if part[word] is None]:
        raise UserError(f"{table} holds {wrong[0]!r} as 'part'; expected train, val, test or blank.")
    return np.array([part[word] for word in parts], dtype="<U10")


def _classes(rows: pd.DataFrame, files: np.ndarray, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return for each row the index of its class, -1 where the label is blank, and the names of the classes.

    "none" is a class, and "-" beside "+". A class that only rows without a file have does not count.
    """
    cells = column_of(rows, "label")
    written = without_unknown(cells, UNKNOWN - {"none"} - ({"-"} if "+" in set(cells) else set()), str(path))
    has_file = column_of(rows, "file").isin(files)
    written = one_spelling(written.where(has_file | (not has_file.any()), ""), path)
    names = sorted(set(written) - {""})
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no class"
        lost = f" in the rows of files that exist ({has_file.sum():,})" if not has_file.all() else ""
        raise UserError(f"{path} holds {found} in its column 'label'{lost}; expected two or more. {_EXPECTED}.")
    if 2 * len(names) > max(4, count := int((written != "").sum())):
        raise UserError(
            f"{path} holds {len(names):,} different labels for {count:,} images, such as {names[0]!r}; expected the "
            f"name of one class in each row. {_EXPECTED}."
        )
    if joined := [
        name for name in names if len(found := re.split(r"\s*[|;,+/&]\s*", name)) > 1 and {*found} & {*names}
    ]:
        say(
            f"warning: {path}: {shown(joined)} join the names of several classes, and are read as more classes; for "
            "films with several findings, use one column for each finding"
        )
    indices = {name: index for index, name in enumerate(names)} | {"": -1}
    return np.array([indices[label] for label in written], dtype=np.int64), tuple(names)


def _findings(rows: pd.DataFrame, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the findings [M, C] of the rows and their names; how words are read is said on stderr."""
    names = _finding_columns(rows)
    if not names:
        raise UserError(
            f"{path} has neither a column 'label' nor one for each finding (1, 0, -1, blank); its columns are "
            f"{', '.join(rows.columns)}. {_EXPECTED}."
        )
    values = np.stack([checked_findings(column_of(rows, name), path) for name in names], axis=1)
    read: dict[float, set[str]] = {1: set(), 0: set(), -1: set()}
    for name, found in zip(names, values.T, strict=True):
        for value, words in read.items():
            words |= {word for word in column_of(rows, name).to_numpy()[found == value] if not word[-1:].isdigit()}
    if any(read.values()):
        said = "; ".join(f"{value} for {', '.join(map(repr, sorted(words)))}" for value, words in read.items() if words)
        say(f"{path}: findings are read as {said}")
    return values, tuple(names)


def _finding_columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns of findings; one wrong cell does not turn a finding into a detail."""
    names = []
    for name in rows:
        values, wrong = finding_values(column_of(rows, name))
        if not has_meaning(name) and (np.isfinite(values) & ~wrong).sum() > wrong.sum():
            names.append(name)
    return names


def _places(files: np.ndarray, rows: pd.DataFrame, table: Path) -> np.ndarray:
    """Return the row [N] of each file, -1 without one; rows without a file are counted on stderr."""
    listed = column_of(rows, "file")
    lost = sorted(set(listed) - set(files))
    if lost and len(lost) == len(rows):
        name, file = _example(lost, files)
        raise UserError(
            f"{table} has no row for any image below {table.parent}: it names {name!r}, and there is {file!r}; "
            "expected paths relative to that folder, with the folders below it."
        )
    if lost:
        say(f"warning: {table} has rows without a file, left out: {shown(lost)}")
    return pd.Index(listed).get_indexer(pd.Index(files))


def _example(lost: list[str], files: np.ndarray) -> tuple[str, str]:
    """Return a name that is no file's path and a file of that name in some folder, or else the first of both."""
    of_stem = {clean(PurePosixPath(file).stem).casefold(): file for file in files[::-1]}
    for name in lost:
        for bare in (PurePosixPath(name).name, PurePosixPath(name).stem):  # a suffix may be missing
            if file := of_stem.get(clean(bare).casefold()):
                return name, file
    return lost[0], files[0]


def _fill_from_headers(known: pd.DataFrame, root: Path, files: np.ndarray) -> np.ndarray:
    """Fill what the table leaves blank of sex, age and view from the headers of DICOM files; return their patients [N].

    "" is the patient where a header names none, and where all name the same: a program wrote it in place of theirs.
    """
    rows = [row for row, file in enumerate(files) if is_dicom_name(file)]
    if not rows:
        return np.full(len(files), "", dtype=object)
    facts = pd.DataFrame([dicom_facts(root / files[row]) for row in tracked(rows, "DICOM headers", "img")], index=rows)
    others = column_of(facts, "modality").value_counts().drop(list(RADIOGRAPHS), errors="ignore")
    if len(others):
        counts = ", ".join(f"{count:,} {name}" for name, count in others.items())
        say(f"warning: {root} has DICOM files of other modalities than radiographs: {counts}; take them out")
    where = f"DICOM headers below {root}"
    for name in ("sex", "age", "view"):
        column = column_of(known, name)
        found = without_unknown(column_of(facts, name), UNKNOWN, where).reindex(known.index, fill_value="")
        known[name] = column.mask(column == "", found)
    patients = without_unknown(column_of(facts, "patient"), NO_PATIENT, where)
    if len(patients) > 1 and patients.nunique() == 1 and (patients != "").any():
        say(f"{where}, column 'patient': all are {patients.iloc[0]!r}, so nobody is known by it")
        patients = patients.mask(patients != "", "")
    return patients.reindex(known.index, fill_value="").to_numpy(dtype=object)


def _existing_masks(root: Path, written: pd.Series, table: Path) -> np.ndarray:
    """Return [N] the masks that exist, as they are on the disk, and None; the others are counted on stderr."""
    forms = {name: (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)) for name in written}
    found = {name: next((one for one in forms[name] if one and (root / one).is_file()), None) for name in forms}
    lost = [name for name in written if name and not found[name]]
    if lost:
        say(f"warning: {table} names masks that do not exist, left out: {shown(lost)}")
    return np.array([found[name] for name in written], dtype=object)


def _details(known: pd.DataFrame, foreign: np.ndarray, where: str) -> pd.DataFrame:
    """Return sex, age in years, view, source, study, FOREIGN_ID, and whatever else the table has, as it is written."""
    details = known.drop(columns=[name for name in COLUMNS if name in known and name not in _DETAILS])
    for name, read in {"sex": read_sexes, "age": read_ages, "view": read_views}.items():
        if name in details:
            details[name] = read(column_of(details, name), where)
    if (foreign != "").any():
        details[FOREIGN_ID] = foreign
    return details.replace("", np.nan)


def without_laterals(columns: Columns, remedy: str = "") -> Columns:
    """Return the columns without those whose view is lateral, which are counted on stderr, with a remedy."""
    lateral = np.array([projection(view) == "lateral" for view in column_of(columns.details, "view").fillna("")], bool)
    if lateral.any():
        lost = shown(columns.paths[lateral].tolist())
        say(f"note: left out lateral films: {lost}{remedy}")
    return columns.take(np.flatnonzero(~lateral)).with_left_out(columns.paths[lateral], "lateral view")
