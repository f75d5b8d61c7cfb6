"""The COVID-19 Radiography Database (Chowdhury et al. 2020, Rahman et al. 2021): classes with lung masks."""

from pathlib import Path

from dataset_loader.columns import Columns
from dataset_loader.readers.folder_dataset import read_class_folders
from dataset_loader.synthetic import without_synthetic
from utils.config import UserError

_HOW_TO_PLACE = (
    'get the "COVID-19 Radiography Database" from Kaggle (tawsifurrahman/covid19-radiography-database), '
    "unpack it so that datasets/COVID-19_Radiography_Dataset/COVID/images/COVID-1.png exists (or point "
    "--data-root at the classes' folder), or run with --dataset phantom, which needs no download."
)


def read_covid(root: Path) -> Columns:
    """Read `<Class>/images/*` with optional `<Class>/masks/*`, or the older `<Class>/*`; no pixel is opened.

    Classes are the folders that hold images, in alphabetical order. Each image is a group of its own, unless it is a
    DICOM file that names its patient. Folders of train, val and test images above or below the classes are the
    named parts. Images elsewhere are counted on stderr, and left out.

    Raises UserError if there is no such folder, fewer than two classes or a class without images.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"found no folder {root}, looked there for <Class>/images/*.png; {_HOW_TO_PLACE}")
    files = without_synthetic(root)
    columns = read_class_folders(root, files, deep=False, fate="left out", instead=_HOW_TO_PLACE)
    return columns.labelled().with_left_out(columns.labelled(False).paths, "in no class folder")
