"""Data sets as they are downloaded or collected: tables and folders into columns, before any pixel is opened."""

import io
from contextlib import redirect_stderr
from pathlib import Path

from dataset_loader.image_files import image_files
from dataset_loader.readers.chexpert_dataset import read_chexpert
from dataset_loader.readers.class_folders import by_folder, like_classes
from dataset_loader.readers.covid_dataset import read_covid
from dataset_loader.readers.folder_dataset import TABLE, read_folder
from dataset_loader.readers.nih_dataset import TABLES, read_nih

# The layouts that are read, by the config's name.
READERS = {"covid": read_covid, "chexpert": read_chexpert, "nih": read_nih, "folder": read_folder}


def likely_dataset(folder: Path) -> str:
    """Return the layout that a folder seems to have, as one writes it after --dataset, or "" if it holds no images."""
    if any((folder / name).is_file() for name in TABLES):
        return "nih"
    if any(folder.glob("train.csv")) or any(folder.glob("*/train.csv")):
        return "chexpert"
    with redirect_stderr(io.StringIO()):  # the guess is all that is said
        files = image_files(folder)
    if (folder / TABLE).is_file() or not len(files):
        return "folder" if len(files) else ""
    found = by_folder(files, deep=False)
    if len(found.names) > 1 and any(inside.lower() == "images" for inside in found.inside):
        return "covid"
    return "folder --labels folders" if like_classes(files) else "folder"
