"""The parts of an earlier split, kept while films come and go."""

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.ids import earlier_ids
from dataset_loader.image_files import shown
from dataset_loader.readers.tables import column_of, read_table
from dataset_loader.splits import PARTS
from utils.config import UserError, repo_path

# Of what joins films of several parts, the first of these wins: no held-out film is one that training has seen.
_RANKS = [*PARTS, UNLABELLED]


@dataclass(frozen=True)
class KeptSplit:
    """What an earlier split says of N films.

    name    of its file, as the config has it
    before  [N] the part that a film had, UNLABELLED, or "" for a new one
    parts   [N] the part that its group keeps, or "" to draw
    gone    labelled films of then that are not among these any more
    """

    name: str
    before: np.ndarray
    parts: np.ndarray
    gone: int

    def facts(self, parts: np.ndarray) -> dict[str, int]:
        """Return how many films are known, new (also by part) and gone, given the parts [N] of now."""
        new = ~np.isin(self.before, PARTS)
        by_part = {f"new_{part}": int((parts[new] == part).sum()) for part in PARTS}
        return {"known": int((~new).sum()), "new": int(new.sum()), **by_part, "gone": self.gone}

    def say(self, columns: Columns, parts: np.ndarray) -> None:
        """Print what was kept and drawn, and which known films have another part now, on stderr."""
        facts = self.facts(parts)
        new = ", ".join(f"{facts[f'new_{part}']:,} {part}" for part in PARTS)
        print(
            f"{self.name}: {facts['known']:,} films known, {facts['new']:,} new ({new}), {self.gone:,} gone",
            file=sys.stderr,
        )
        if seen := int((self.before == UNLABELLED).sum()):
            print(
                f"{seen:,} of the new ones had no label then, and pretraining may have seen them: they are train, "
                "unless a held-out film has their patient",
                file=sys.stderr,
            )
        moved = np.isin(self.before, PARTS) & (self.before != parts)
        by_source = moved & np.isin(columns.groups, columns.groups[columns.official == parts])
        for which, why in (
            (moved & ~by_source, "they share a patient or a picture with a film of that part"),
            (by_source, "the source names it, and keep_split does not change that"),
        ):
            names = [
                f"{file}: {before} -> {part}"
                for file, before, part in zip(columns.paths[which], self.before[which], parts[which], strict=True)
            ]
            if names:
                print(f"warning: known films have another part now, for {why}: {shown(names)}", file=sys.stderr)


def read_kept_split(name: str, columns: Columns) -> KeptSplit:
    """Return what a split.csv, named as in the config, says of opened data.

    A film keeps its part, and a new one takes that of its group: of films that share its patient, also if they are
    gone, or its picture. Where a group has several, train wins, then val: so no film is held out that training or a
    choice has seen. A film that had no label then is train, unless a labelled one of its group says otherwise.
    Raises UserError if the file is no split, or of other data.
    """
    path = repo_path(name)
    table = read_table(path) if path.is_file() else pd.DataFrame()
    files, written = column_of(table, "file"), column_of(table, "part")
    if not len(table) or not set(written) <= set(_RANKS) or len(set(files)) < len(files):
        raise UserError(
            f"keep_split is {name!r}, but {path} is no split, which has the columns file (each once) and part "
            f"({', '.join(_RANKS)}); name the split.csv of an earlier run."
        )
    for ids in earlier_ids(columns.root):
        row = pd.Index(files).get_indexer(pd.Index(ids.files(columns.paths)))  # [N], -1 for a new film
        if (row >= 0).any():
            break
    else:
        raise UserError(
            f"{path} names no image of {columns.root}: it is of other data, or was written with --ids none or another "
            "key; name the split.csv of an earlier run on these films."
        )
    new, ranks = len(_RANKS), np.array([_RANKS.index(part) for part in written])
    own = np.where(row >= 0, ranks[row], new)
    of_patient: dict[str, int] = {}  # whose films may all be gone
    for group, rank in zip(column_of(table, "group"), ranks.tolist(), strict=True):
        of_patient[group] = min(rank, of_patient.get(group, new))
    by_patient = [of_patient.get(patient, new) for patient in ids.names(columns.details["patient"])]
    groups = np.unique(columns.groups, return_inverse=True)[1]
    first = np.full(groups.max() + 1, new)
    np.minimum.at(first, groups, np.minimum(own, by_patient))
    parts = np.array([*PARTS, "train", ""])[first[groups]]
    gone = int((np.isin(written, PARTS) & ~np.isin(np.arange(len(table)), row)).sum())
    return KeptSplit(name, np.array([*_RANKS, ""])[own], parts, gone)
