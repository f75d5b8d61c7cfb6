"""The X-rays that a user names, files, folders and tables, and which of them are left out."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_loader.decoding import square_or_error
from dataset_loader.dicom import RADIOGRAPHS, dicom_facts
from dataset_loader.ids import PLAIN, Ids
from dataset_loader.image_files import BrokenImageError, NoXRayError, is_dicom_name, sorted_files
from dataset_loader.readers.known_columns import known_columns
from dataset_loader.readers.listed_files import on_disk
from dataset_loader.readers.patients import id_keys
from dataset_loader.readers.tables import column_of, counted, read_table
from dataset_loader.readers.values import projection
from utils.config import UserError, repo_path
from utils.files import stamps_hash
from utils.hardware import usable_cores
from utils.messages import say
from utils.scripts import progress_bar, tracked

PATH = "path on disk"  # a column's name that no table has
FACTS = ("patient", "accession", "view")  # of tables or, where they do not say, of DICOM headers
OTHERS = ("CT", "MR", "PT", "NM", "US", "MG", "ES", "IO", "PX", "SM")  # modalities that are no chest X-rays
SHEETS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
AT_ONCE = 128  # images decoded together


@dataclass
class Films:
    """X-rays that a user names.

    table     one row per X-ray: file as the user knows it, PATH, FACTS, and the other columns of tables
    left_out  one row per file that is not taken: file, PATH, kind, reason
    """

    table: pd.DataFrame
    left_out: pd.DataFrame

    def content_hash(self) -> str:
        """Return 16 hex digits that name the files, as stamps_hash does, and what tables and headers say of them."""
        stamps = stamps_hash(Path(path) for part in (self.table, self.left_out) for path in part[PATH])
        return hashlib.sha256(f"{stamps}\n{self.table.to_csv()}\n{self.left_out.to_csv()}".encode()).hexdigest()[:16]

    def batches(self, size: int, doing: str) -> Iterator[np.ndarray]:
        """Yield the X-rays of `table`, decoded: uint8 [n, size, size]. Afterwards those that cannot be are left out.

        Raises UserError if none can be.
        """
        errors: dict[int, BrokenImageError] = {}
        decode, paths = partial(square_or_error, size=size), self.table[PATH].tolist()
        with ThreadPoolExecutor(usable_cores()) as pool, progress_bar(len(paths), doing) as bar:
            for start in range(0, len(paths), AT_ONCE):
                images = list(pool.map(decode, paths[start : start + AT_ONCE]))
                errors |= {row: image for row, image in enumerate(images, start) if isinstance(image, BrokenImageError)}
                if usable := [image for image in images if not isinstance(image, BrokenImageError)]:
                    yield np.stack(usable)
                bar.update(len(images))
        kinds = {row: "no X-ray" if isinstance(error, NoXRayError) else "broken" for row, error in errors.items()}
        self.leave_out({row: (kinds[row], str(error)) for row, error in errors.items()})

    def leave_out(self, why: Mapping[int, tuple[str, str]]) -> None:
        """Move rows from `table` to `left_out`, each for its kind and reason. Raises UserError if none remains."""
        kinds, reasons = zip(*why.values(), strict=True) if why else ((), ())
        gone = self.table.iloc[[*why]][["file", PATH]].assign(kind=kinds, reason=reasons)
        self.left_out = pd.concat([self.left_out, gone], ignore_index=True)
        self.table = self.table.drop(index=[*why]).reset_index(drop=True)
        if self.table.empty:
            first = self.left_out.iloc[len(self.left_out) - len(why)]
            raise UserError(
                f"none of the {len(self.left_out):,} files can be used ({self.counts()}); {first['file']}: "
                f"{first['reason']}."
            )

    def counts(self) -> str:
        """Return how many files of each kind are left out, such as "3 broken, 1 lateral"."""
        return ", ".join(f"{count:,} {kind}" for kind, count in self.left_out["kind"].value_counts().items())

    def written(self, ids: Ids) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return `table` and `left_out` as files under runs/ may hold them: without other columns if ids are hidden."""
        table, left_out = self.table.copy(), self.left_out.copy()
        if ids == PLAIN:
            return table, left_out
        if others := [str(name) for name in table if name not in ("file", PATH, "label", *FACTS)]:
            say(f"note: ids are hidden, and so are the tables' columns {', '.join(others)}")
        table["file"], left_out["file"] = ids.files(table["file"]), ids.names(left_out["file"], "left-out-")
        for name in ("patient", "accession"):
            table[name] = ids.numbers(table[name])
        return table.drop(columns=[PATH, *others]), left_out.drop(columns=PATH)


def find_films(names: Sequence[str], laterals: bool) -> Films:
    """Return the X-rays of files, folders and tables, each path once; lateral ones only if `laterals`.

    Of a path that is named again, the row of a table counts; the others are counted on stderr.
    Raises UserError for a name that does not exist, a folder without images, a table without the column file, or a
    spreadsheet.
    """
    tables, others, left_out = [], [], []
    for name in names:
        path = repo_path(name)
        if path.is_dir():
            found, without = _read_folder(path)
            others.append(found)
            left_out.append(without)
        elif path.suffix.lower() in (".csv", ".tsv") and path.is_file():
            tables.append(_read_table(path))
        elif path.suffix.lower() in SHEETS:
            raise UserError(f"images names the spreadsheet {path}; save its table as CSV (UTF-8), and name that.")
        elif path.is_file():
            others.append(pd.DataFrame({"file": [name], PATH: [str(path.resolve())]}))
        else:
            raise UserError(f"images names {name!r}, but {path} does not exist.")
    films = pd.concat([*tables, *others])
    once = films.drop_duplicates(PATH, ignore_index=True).fillna("")
    if len(once) < len(films):
        say(f"warning: {len(films) - len(once):,} X-rays are named again; each is used once")
    empty = pd.DataFrame(columns=["file", PATH, "kind", "reason"], dtype=object)
    left = pd.concat([empty, *left_out]).drop_duplicates(PATH, ignore_index=True)
    headers, named = _headers(once[PATH].tolist()), left[PATH].isin(once[PATH]).to_numpy()
    films = Films(_with_facts(once, headers), left.iloc[~named])
    films.leave_out(_unfit(films, headers, laterals))
    return films


def _read_folder(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    files, left_out = sorted_files(folder)
    if not len(files):
        raise UserError(f"there is no image below {folder}; name files or folders that hold X-rays.")
    found, without = (
        pd.DataFrame({"file": names, PATH: [str((folder / file).resolve()) for file in names]}, dtype=object)
        for names in (files, list(left_out))
    )
    kinds, reasons = zip(*left_out.values(), strict=True) if left_out else ((), ())
    return found, without.assign(kind=kinds, reason=reasons)


def _read_table(path: Path) -> pd.DataFrame:
    written, folder = read_table(path), path.parent
    table = known_columns(written, path, lambda cell: (folder / cell).is_file(), ("file", "label", "patient", "view"))
    if "file" not in table or not len(table):
        raise UserError(f"{path} has the columns {', '.join(map(str, written))}; expected a column file, and rows.")
    return table.assign(**{PATH: [str(file.resolve()) for file in on_disk(folder, table["file"].tolist())]})


def _with_facts(table: pd.DataFrame, headers: pd.DataFrame) -> pd.DataFrame:
    """Return a table with FACTS after the file, of tables or, where they do not say, of DICOM headers."""
    facts = {name: column_of(table, name).mask(lambda cells: cells == "", headers[name]) for name in FACTS}
    differ = (headers["patient"] != "") & (id_keys(facts["patient"]) != id_keys(headers["patient"]))
    if differ.any():
        row = int(differ.argmax())
        say(
            f"warning: {differ.sum():,} films have another patient in the table than in their DICOM header, such as "
            f"{table['file'][row]} ({facts['patient'][row]!r}, {headers['patient'][row]!r}); the table's is written"
        )
    others = table.drop(columns=["file", PATH, *FACTS], errors="ignore")
    return pd.concat([table[["file", PATH]].assign(**facts), others], axis=1)


def _headers(paths: Sequence[str]) -> pd.DataFrame:
    """Return what DICOM headers say of each of N files: FACTS and the modality, "" for other files."""
    names = [*FACTS, "modality"]
    rows = [row for row, path in enumerate(paths) if is_dicom_name(path)]
    found = [dicom_facts(Path(paths[row])) for row in tracked(rows, "DICOM headers", "img")] if rows else []
    return pd.DataFrame(found, index=rows, columns=names, dtype=object).reindex(range(len(paths)), fill_value="")


def _unfit(films: Films, headers: pd.DataFrame, laterals: bool) -> dict[int, tuple[str, str]]:
    """Return the rows without a file, or that a classifier of chest X-rays should not see, with kinds and reasons."""
    modalities, views = headers["modality"].tolist(), films.table["view"].tolist()
    why = {row: ("no X-ray", f"DICOM of modality {name}") for row, name in enumerate(modalities) if name in OTHERS}
    if not laterals:
        lateral = {row: view for row, view in enumerate(views) if projection(view) == "lateral"}
        why |= {row: ("lateral", f"lateral view ({view})") for row, view in lateral.items()}
    lost = [row for row, path in enumerate(films.table[PATH]) if not Path(path).is_file()]
    why |= dict.fromkeys(lost, ("missing", "no file is there"))
    if odd := [name for name in modalities if name not in (*RADIOGRAPHS, *OTHERS)]:
        say(f"warning: DICOM of other modalities than radiographs, taken all the same: {counted(odd)}")
    return why
