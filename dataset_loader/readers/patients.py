"""Who is who: the patients of a table and those of DICOM headers, which write one id in several ways."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dataset_loader.readers.tables import UNKNOWN, clean
from utils.config import UserError
from utils.messages import say

# What stands in place of an id: of a patient whom nobody knows.
NO_PATIENT = UNKNOWN | {"anonymous", "anonymized", "anonymised", "anonym", "anonymisiert", "anon", "removed", "xxx"}
_MAX_PATIENTS = 10  # of the table whose films share one id in their headers: more, and a program wrote it for all
_MIN_FILMS = 20  # of one patient, from which on half of all films is a mistake
_SHORTENED = re.compile(r"\d+([.,]\d+)?E\+\d+", re.IGNORECASE)


def id_keys(ids: Iterable[str]) -> np.ndarray:
    """Return [N] str: ids without what spreadsheets and devices change in them.

    That is leading zeros, upper and lower case, blanks, the .0 of a number, and Excel's apostrophe or ="...".
    """
    ids = list(map(str, ids))
    key_of = {one: _id_key(one) for one in set(ids)}
    return np.array([key_of[one] for one in ids], dtype=object)


def _id_key(one: str) -> str:
    key = "".join(clean(one).casefold().strip("'=\"").split())
    key = re.sub(r"^(\d+)[.,]0+$", r"\1", key)
    return key.lstrip("0") or key[-1:]


def joined_patients(
    ids: np.ndarray, header_ids: np.ndarray, files: np.ndarray, table: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return the patient [N] of each of N films, from the ids of a table and of DICOM headers, "" where unknown.

    Ids that differ only as id_keys says are one patient, and so are the two ids of a film: whoever has one of them is
    in one part of a split. A patient is called as the table writes it. Ids of headers that mostly differ from the
    table's are of another kind, and equal ones mean nothing; then these ids are returned too, [N], else blanks. What
    was joined is counted on stderr.
    Raises UserError if a spreadsheet has shortened ids, or the ids contradict each other so that half of all films
    would be one patient's.
    """
    if short := sorted(filter(_SHORTENED.fullmatch, ids)):
        raise UserError(
            f"{table} holds {short[0]!r} as a patient: a spreadsheet has shortened the id; format the column as text "
            "there, get the ids again, and save the table."
        )
    known = id_keys(ids)
    headers = _without_shared(known, id_keys(header_ids), header_ids, table)
    both = (known != "") & (headers != "")
    differ = both & (known != headers)
    same_kind = 2 * differ.sum() <= both.sum()
    headers = headers if same_kind else np.where(headers == "", "", "header " + headers)
    films: Any = pd.DataFrame({"id": ids, "key": known, "header_id": header_ids, "header": headers})
    films["person"] = _components(known, headers)
    in_table, in_header = films[known != ""], films[headers != ""]
    names = in_table.groupby("person")["id"].min().combine_first(in_header.groupby("person")["header_id"].min())
    name_of = names.to_dict()
    patients = np.array([name_of.get(one, "") for one in films["person"]], dtype=object)
    _say_joined(in_table, in_header, same_kind, table)
    if same_kind and differ.any():
        row = int(differ.argmax())
        say(
            f"warning: {differ.sum():,} films have another patient in {table} than in their DICOM header, such as "
            f"{files[row]} ({ids[row]!r}, {header_ids[row]!r}): both ids count as one patient"
        )
    _check_largest(patients, known, table)
    foreign = np.where((headers == "") | same_kind, "", header_ids)
    return patients, foreign.astype(object)


def _without_shared(known: np.ndarray, headers: np.ndarray, header_ids: np.ndarray, table: Path) -> np.ndarray:
    """Return the headers' ids without those that films of many patients share, which is said on stderr."""
    both = (known != "") & (headers != "")
    patients: Any = pd.Series(known[both]).groupby(headers[both]).nunique()
    shared = patients[patients > _MAX_PATIENTS]
    for header, count in shared.items():
        say(
            f"warning: the DICOM headers of {count:,} patients of {table} hold the one id "
            f"{header_ids[headers == header][0]!r}: not read"
        )
    return np.where(np.isin(headers, shared.index), "", headers)


def _components(known: np.ndarray, headers: np.ndarray) -> np.ndarray:
    """Return for each film [N] the number of the person whom its ids lead to, -1 without one."""
    names, nodes = np.unique(np.concatenate([known, headers]).astype(str), return_inverse=True)
    one, other = nodes[: len(known)], nodes[len(known) :]
    both = (known != "") & (headers != "")
    graph = coo_array((np.ones(both.sum()), (one[both], other[both])), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]
    return np.where(known != "", component[one], np.where(headers != "", component[other], -1))


def _say_joined(in_table: Any, in_header: Any, same_kind: bool, table: Path) -> None:
    """Say on stderr how many ids lead to one person.

    in_table, in_header  data frames of the films that have an id there: id, key, header_id, header, person
    """
    if again := in_table["id"].nunique() - in_table["key"].nunique():
        say(f"{table}: {again:,} patient ids differ only in zeros, case or blanks: joined")
    if len(in_table) and len(in_header):
        joined = in_header[in_header["person"].isin(in_table["person"])]
        changed = joined.loc[~joined["header_id"].isin(in_table["id"]), "header"].nunique()
        how = f"{changed:,} of them without leading zeros, case and blanks" if same_kind else "by films that have both"
        say(
            f"patients: {in_table['key'].nunique():,} ids of {table} and {in_header['header'].nunique():,} of DICOM "
            f"headers, {joined['header'].nunique():,} joined, {how}"
        )
    if several := [sorted(keys) for keys in in_table.groupby("person")["key"].unique() if len(keys) > 1]:
        say(
            f"warning: DICOM headers join {sum(map(len, several)):,} patients of {table} to {len(several):,}, such as "
            f"{', '.join(map(repr, several[0][:3]))}"
        )


def _check_largest(patients: np.ndarray, known: np.ndarray, table: Path) -> None:
    """Warn if one patient has more than half of the films; UserError if only joined ids make it so."""
    counts: Any = pd.Series(patients[patients != ""]).value_counts()
    if counts.empty or counts.iloc[0] <= max(_MIN_FILMS, len(patients) / 2):
        return
    name, share = counts.index[0], f"{counts.iloc[0]:,} of {len(patients):,} films"
    ids = sorted(set(known[patients == name]) - {""})
    if len(ids) > 1:
        raise UserError(
            f"DICOM headers join {len(ids):,} patients of {table} to one with {share} "
            f"({', '.join(map(repr, ids[:3]))}, ...): the ids contradict each other; correct the column patient."
        )
    say(f"warning: {share} are of one patient, {str(name)!r}")
