"""The images that an encoder was trained on, stored in its file, so that it is not tested on them."""

import base64
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset_loader.signatures import copies_among
from dataset_loader.xrays import XRays
from utils.config import UserError

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Provenance:
    """What a network was trained on.

    split_hash  of its split
    seen        [n, 49] uint8, the signatures (XRays.image_ids) of all images
    """

    split_hash: str
    seen: np.ndarray

    @functools.cached_property
    def list_hash(self) -> str:
        """16 hex digits that identify the list of images."""
        return hashlib.sha256(np.unique(self.seen, axis=0).tobytes()).hexdigest()[:16]

    def joined(self, split_hash: str, seen: np.ndarray) -> "Provenance":
        """Return the provenance after further training on other images, perhaps with another split."""
        return Provenance(split_hash, np.unique(np.concatenate([self.seen, seen]), axis=0))

    def attach(self, state: Any) -> None:
        """Attach it to a state_dict (an OrderedDict): torch.save keeps the attribute, torch's modules ignore it."""
        state.provenance = {
            "split_hash": self.split_hash,
            "list_hash": self.list_hash,
            "pictures": torch.from_numpy(np.unique(self.seen, axis=0)),
        }

    def as_text(self) -> dict[str, str]:
        """Return it as the metadata of a safetensors file."""
        pictures = np.unique(self.seen, axis=0).tobytes()
        return {"split_hash": self.split_hash, "pictures": base64.b64encode(pictures).decode()}

    @staticmethod
    def of_text(metadata: Mapping[str, str]) -> "Provenance | None":
        """Return what `as_text` wrote, None if a file's metadata does not have it."""
        if "pictures" not in metadata or "split_hash" not in metadata:
            return None
        pictures = np.frombuffer(base64.b64decode(metadata["pictures"]), dtype=np.uint8)
        return Provenance(metadata["split_hash"], pictures.reshape(-1, SIGNATURE_BYTES))


SIGNATURE_BYTES = 49
NOTHING_SEEN = Provenance("", np.empty((0, SIGNATURE_BYTES), dtype=np.uint8))


def provenance_of(state: Mapping[str, Tensor]) -> Provenance | None:
    """Return what `Provenance.attach` stored; None for a network from elsewhere, or of a version that listed names."""
    facts = getattr(state, "provenance", None)
    split_hash, pictures = (facts.get("split_hash"), facts.get("pictures")) if isinstance(facts, dict) else ("", None)
    if not isinstance(pictures, Tensor) or pictures.dtype != torch.uint8 or pictures.shape[1:] != (SIGNATURE_BYTES,):
        return None
    return Provenance(split_hash, pictures.numpy()) if isinstance(split_hash, str) else None


def check_unseen(
    provenance: Provenance | None, xrays: XRays, allow_seen: bool, encoder: str, rows: np.ndarray | None = None
) -> str:
    """Return a note on which validation and test images the `encoder` was trained on, "" if none.

    `rows` [n] are other images to check instead, such as all of another collection.

    Unless `allow_seen`, raises UserError with the count and the first names if there are any, or if it is not known.
    """
    advice = ""
    if provenance is None:
        note = f"{encoder} does not say which images it was trained on (it is from elsewhere, or of an earlier version)"
    else:
        held_out = np.concatenate([xrays.indices("val"), xrays.indices("test")]) if rows is None else rows
        if provenance.list_hash not in xrays.seen:  # of all images, since each fold holds out others
            everything = xrays.image_ids(np.arange(len(xrays)))
            xrays.seen[provenance.list_hash] = copies_among(everything, provenance.seen)
        seen = held_out[xrays.seen[provenance.list_hash][held_out]]
        if len(seen) == 0:
            return ""
        files = xrays.written["file"].to_numpy() if allow_seen else xrays.columns.paths  # a note goes into runs
        names = ", ".join(files[seen[:_NAMES_SHOWN]])
        note = (
            f"{encoder} was trained on {len(seen):,} of the {len(held_out):,} images that it is to be scored on "
            f"({names}{', ...' if len(seen) > _NAMES_SHOWN else ''})"
        )
        advice = (
            " If films came after its training, --keep-split with the split.csv beside it keeps their parts. Films "
            "that it saw without a label, and whose patients are known only now, need another pretraining, or stay "
            "without a label."
        )
    if not allow_seen:
        raise UserError(f"{note}, so a score may be too good.{advice} --allow-seen takes all and marks all results.")
    return f"transductive: {note}"
