"""What an encoder has seen, carried inside its file, so that nobody tests it on an image of its training."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset_loader.xrays import XRays
from utils.config import UserError

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Provenance:
    """The split that a network was trained under, and the ids (XRays.image_ids) of all images it was trained on."""

    split_hash: str
    seen: np.ndarray

    @property
    def list_hash(self) -> str:
        """16 hex digits that name the list of images."""
        return hashlib.sha256(np.sort(self.seen).tobytes()).hexdigest()[:16]

    def joined(self, split_hash: str, seen: np.ndarray) -> "Provenance":
        """After further training, under another split maybe, on other images."""
        return Provenance(split_hash, np.union1d(self.seen, seen))

    def attach(self, state: Any) -> None:
        """Put it onto a state_dict (an OrderedDict), where torch.save keeps it and torch's modules do not look."""
        state.provenance = {
            "split_hash": self.split_hash,
            "list_hash": self.list_hash,
            "seen": torch.from_numpy(np.sort(self.seen)),
        }


NOTHING_SEEN = Provenance("", np.array([], dtype=np.int64))


def provenance_of(state: Mapping[str, Tensor]) -> Provenance | None:
    """What `Provenance.attach` put there, or None: a network from elsewhere."""
    facts = getattr(state, "provenance", None)
    return None if facts is None else Provenance(facts["split_hash"], facts["seen"].numpy())


def check_unseen(provenance: Provenance | None, xrays: XRays, allow_seen: bool, encoder: str) -> str:
    """A note on what the `encoder` has seen of today's validation and test parts, "" if nothing.

    Raises UserError, with the count and the first names, if it has seen any or does not say, unless `allow_seen`.
    """
    if provenance is None:
        note = f"{encoder} does not say which images it was trained on"
    else:
        held_out = np.concatenate([xrays.indices("val"), xrays.indices("test")])
        seen = held_out[np.isin(xrays.image_ids(held_out), provenance.seen)]
        if len(seen) == 0:
            return ""
        names = ", ".join(xrays.columns.paths[seen[:_NAMES_SHOWN]])
        note = (
            f"{encoder} was trained on {len(seen):,} of the {len(held_out):,} images of the validation and test parts "
            f"({names}{', ...' if len(seen) > _NAMES_SHOWN else ''})"
        )
    if not allow_seen:
        raise UserError(
            f"{note}, so a score on them would not count. Pretrain on the train part with the same split_seed, "
            "or pass --allow-seen to go on; every result will then say so."
        )
    return f"transductive: {note}"
