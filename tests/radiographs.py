"""DICOM files of digital radiographs, written here."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SIZE = 64
RAMP = np.linspace(0, 4095, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)


def write_radiograph(path: Path, pixels: Any = RAMP, bits: Any = 12, **header: Any) -> Path:
    """A digital radiograph with the pixels [H, W], or [frames, H, W], and some attributes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3", "DX"
    if pixels is not None:
        dataset.Rows, dataset.Columns = pixels.shape[-2:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.itemsize, bits, bits - 1
        dataset.PixelRepresentation, dataset.PixelData = 0, pixels.tobytes()
        dataset["PixelData"].VR = "OW"
    for name, value in header.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path
