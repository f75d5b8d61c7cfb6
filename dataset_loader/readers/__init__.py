"""Data sets as they are downloaded or collected: tables and folders into columns, before any pixel is opened."""

from dataset_loader.readers.chexpert_dataset import read_chexpert
from dataset_loader.readers.covid_dataset import read_covid
from dataset_loader.readers.folder_dataset import read_folder
from dataset_loader.readers.nih_dataset import read_nih

# The layouts that are read, by the config's name.
READERS = {"covid": read_covid, "chexpert": read_chexpert, "nih": read_nih, "folder": read_folder}
