"""Features of X-rays: of a backbone, computed as they are asked for, or a table of vectors from any other model."""

import copy
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dataset_loader.xrays import DataConfig, XRays, open_xrays
from downstream_task.probes import BATCH, InputFormat, forward_all
from self_sup_classes.backbones import Backbone, check_backbone, check_channels
from self_sup_classes.initialisation import Start, start_from
from self_sup_classes.provenance import Provenance
from utils.config import UserError, repo_path
from utils.hardware import placed, prepare

FEATURES = "features:"  # before the name of a table in a config


class NetworkFeatures:
    """Features [N, F] float32 of a backbone, each computed when it is first asked for; N counts XRays.also."""

    def __init__(self, start: Start, xrays: XRays, seen: InputFormat):
        self.xrays, self.seen, self.provenance, self.note = xrays, seen, start.provenance, start.note
        self.net = placed(start.backbone, xrays.store.device)
        self.values = np.empty((xrays.with_also, start.backbone.num_features), dtype=np.float32)
        self.known = np.zeros(xrays.with_also, dtype=bool)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the features [n, F] of the X-rays at `indices` [n]."""
        new = indices[~self.known[indices]]
        if len(new):
            full = np.resize(new, -(-len(new) // BATCH) * BATCH)  # a batch of another size would have other last bits
            found = forward_all(self.net, self.xrays, full, self.seen)[: len(new)]
            self.values[new], self.known[new] = found.numpy(), True
        return self.values[indices]

    def backbone(self) -> Backbone:
        """Return a backbone with these weights, to train."""
        return copy.deepcopy(self.net)


@dataclass(frozen=True)
class TableFeatures:
    """Features [N, F] float32 of the X-rays that a table has; NaN rows of others."""

    name: str
    values: np.ndarray
    paths: np.ndarray
    provenance: Provenance | None = None
    note: str = ""

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the features [n, F] of the X-rays at `indices` [n]; UserError if the table lacks one."""
        found = self.values[indices]
        lacking = ~np.isfinite(found).all(axis=1)
        if lacking.any():
            raise UserError(
                f"{self.name} lacks a vector of finite numbers for {lacking.sum():,} images, such as "
                f"'{self.paths[indices][lacking][0]}'; give each image one, by its path in the data set's folder."
            )
        return found


Features = NetworkFeatures | TableFeatures


def read_features(name: str, xrays: XRays) -> TableFeatures:
    """Return the vectors of a table `features:FILE`: CSV, Parquet or NPZ, by paths in the data set's folder.

    CSV and Parquet: a column `file`, and one for each number of the vector. NPZ: `files` [M] and `features` [M, F].
    Raises UserError if the file cannot be read, names a file twice or has a column that is no number.
    """
    path = repo_path(name.removeprefix(FEATURES))
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                files, values = arrays["files"].astype(str), arrays["features"].astype(np.float32)
        else:
            table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"file": str})
            files, values = table["file"].to_numpy(str), table.drop(columns="file").to_numpy(np.float32)
    except (OSError, KeyError, ValueError, ImportError) as error:
        raise UserError(
            f"{path} is no table of features ({error}); expected CSV or Parquet (which needs pyarrow) with a "
            "column `file`, the image's path in the data set's folder, and numbers beside it, or NPZ with `files` and "
            "`features`."
        ) from error
    if len(set(files)) < len(files) or values.ndim != 2 or not values.shape[1]:
        raise UserError(
            f"{path} has {len(files):,} rows and {values.shape[1:]} numbers each; give each file one vector."
        )
    row = pd.Index(files).get_indexer(pd.Index(xrays.columns.paths))
    found = np.full((len(xrays), values.shape[1]), np.nan, dtype=np.float32)
    found[row >= 0] = values[row[row >= 0]]
    return TableFeatures(name, found, xrays.columns.paths)


def embed(
    encoder: str, data: DataConfig, backbone: str = "timm/tf_efficientnet_lite0", in_channels: int = 1
) -> pd.DataFrame:
    """Return a table of `file` and the features f0, f1, ... [F] that an encoder gives of a data set's X-rays.

    encoder  as in a comparison: "random", "imagenet", "shared" or a file of weights

    Raises UserError for a backbone that neither library knows, channels other than 1 and 3, or weights of another.
    """
    check_backbone("backbone", backbone)
    check_channels("in_channels", in_channels)
    xrays = open_xrays(data, prepare("auto", 0))
    start = start_from(encoder, backbone, in_channels, seed=0)
    values = NetworkFeatures(start, xrays, InputFormat(data.img_res, in_channels)).rows(np.arange(len(xrays)))
    table = pd.DataFrame(values, columns=[f"f{number}" for number in range(values.shape[1])])
    return pd.concat([pd.DataFrame({"file": xrays.columns.paths}), table], axis=1)
