"""The parts of an earlier split, kept while films come and go."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dataset_loader.columns import UNLABELLED, Columns
from dataset_loader.ids import earlier_ids
from dataset_loader.image_files import shown
from dataset_loader.readers.tables import column_of, read_table
from dataset_loader.splits import FOLD_NAMES, PARTS
from utils.config import UserError, repo_path
from utils.messages import say

# Of what joins films of several parts, the first of these wins: no held-out film is one that training has seen. A film
# of one fold was train for the others, so what joins it with another place makes all of them train.
_RANKS = [*PARTS, *FOLD_NAMES, UNLABELLED]
_FIRST_FOLD, _NO_LABEL, _NEW = len(PARTS), len(_RANKS) - 1, len(_RANKS)


@dataclass(frozen=True)
class KeptSplit:
    """What an earlier split says of N films.

    name    of its file, as the config has it
    before  [N] the place that a film had (splits.places_of), UNLABELLED, or "" for a new one
    places  [N] the place that its group keeps, or "" to draw
    gone    labelled films of then that are not among these any more
    """

    name: str
    before: np.ndarray
    places: np.ndarray
    gone: int

    def facts(self, parts: np.ndarray) -> dict[str, int]:
        """Return how many films are known, new (also by part) and gone, given the parts [N] of now."""
        new = ~np.isin(self.before, _RANKS[:_NO_LABEL])
        by_part = {f"new_{part}": int((parts[new] == part).sum()) for part in PARTS}
        return {"known": int((~new).sum()), "new": int(new.sum()), **by_part, "gone": self.gone}

    def say(self, columns: Columns, parts: np.ndarray, places: np.ndarray) -> None:
        """Print what was kept and drawn, and which known films have another place now, on stderr."""
        facts = self.facts(parts)
        new = ", ".join(f"{facts[f'new_{part}']:,} {part}" for part in PARTS)
        say(f"{self.name}: {facts['known']:,} films known, {facts['new']:,} new ({new}), {self.gone:,} gone")
        if seen := int((self.before == UNLABELLED).sum()):
            say(
                f"{seen:,} of the new ones had no label then, and pretraining may have seen them: they are train, "
                "unless a held-out film has their patient"
            )
        moved = np.isin(self.before, _RANKS[:_NO_LABEL]) & (self.before != places)
        by_source = moved & np.isin(columns.groups, columns.groups[columns.named_parts == places])
        for which, why in (
            (moved & ~by_source, "they share a patient or a picture with a film of that part"),
            (by_source, "the source names it, and keep_split does not change that"),
        ):
            names = [
                f"{file}: {_shown(before)} -> {_shown(place)}"
                for file, before, place in zip(columns.paths[which], self.before[which], places[which], strict=True)
            ]
            if names:
                say(f"warning: known films have another part now, for {why}: {shown(names)}")


def _shown(place: str) -> str:
    return f"fold {place}" if place in FOLD_NAMES else place


def _first(groups: np.ndarray, ranks: np.ndarray, count: int) -> np.ndarray:
    """Return the rank [count] that wins in each group, given the number of the group and the rank of each film [M]."""
    lowest, highest = np.full(count, _NEW), np.full(count, -1)
    np.minimum.at(lowest, groups, ranks)
    np.maximum.at(highest, groups, np.where(ranks < _NO_LABEL, ranks, -1))
    return np.where((highest > lowest) & (highest >= _FIRST_FOLD), 0, lowest)


def read_kept_split(name: str, columns: Columns) -> KeptSplit:
    """Return what a split.csv, named as in the config, says of opened data.

    A film keeps its part or fold, and a new one takes that of its group: of films that share its patient, also if they
    are gone, or its picture. Where a group has several, train wins, then val, and a fold with another place becomes
    train: so no film is held out that training or a choice has seen. A film that had no label then is train, unless a
    labelled one of its group says otherwise. A split of before there were folds has none: its parts are kept.
    Raises UserError if the file is no split, or of other data.
    """
    path = repo_path(name)
    table = read_table(path) if path.is_file() else pd.DataFrame()
    files, written, folds = (column_of(table, name) for name in ("file", "part", "fold"))
    written = [fold or part for part, fold in zip(written, folds, strict=True)]
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
    ranks = np.array([_RANKS.index(place) for place in written])
    own = np.where(row >= 0, ranks[row], _NEW)
    patients, names = pd.factorize(np.array(column_of(table, "group")))
    of_patient = dict(zip(names, _first(patients, ranks, len(names)), strict=True))  # whose films may all be gone
    by_patient = np.array([of_patient.get(patient, _NEW) for patient in ids.names(columns.details["patient"])])
    groups = np.unique(columns.groups, return_inverse=True)[1]
    first = _first(np.tile(groups, 2), np.concatenate([own, by_patient]), groups.max() + 1)
    places = np.array([*_RANKS[:_NO_LABEL], "train", ""])[first[groups]]
    gone = int((~np.isin(ranks, [_NO_LABEL]) & ~np.isin(np.arange(len(table)), row)).sum())
    return KeptSplit(name, np.array([*_RANKS, ""])[own], places, gone)
