"""What tests share: a small phantom data set, and the real X-rays where they are at hand."""

import os
from pathlib import Path

# Several test processes run side by side: threads of one would wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from dataset_loader.phantom_dataset import ensure_phantoms


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 240 synthetic X-rays in the COVID layout and those of 48 patients in CheXpert's."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    ensure_phantoms(folder, covid_images=240, chexpert_patients=48, size=64)
    return folder


@pytest.fixture(scope="session")
def real_xrays() -> Path:
    """The folder of real X-rays that CXR_DATA names; the test is skipped without it."""
    if not os.environ.get("CXR_DATA"):
        pytest.skip("CXR_DATA names no folder of real X-rays")
    return Path(os.environ["CXR_DATA"])
