"""The firewall: an encoder that has seen held-out images is refused, or every result says so."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.xrays import DataConfig, XRays, open_xrays
from self_sup_classes.provenance import NOTHING_SEEN, Provenance, check_unseen
from utils.config import UserError


@pytest.fixture(scope="module")
def xrays(phantoms: Path) -> XRays:
    config = DataConfig(dataset="covid", data_root=str(phantoms / COVID_ROOT), store_res=32, img_res=32, split_seed=0)
    return open_xrays(config, torch.device("cpu"))


def seen(xrays: XRays, indices: np.ndarray) -> Provenance:
    return Provenance("abc", xrays.image_ids(indices))


def test_an_encoder_of_the_train_part_is_accepted(xrays: XRays) -> None:
    assert check_unseen(seen(xrays, xrays.indices("train")), xrays, False, "encoder.pt") == ""
    assert check_unseen(NOTHING_SEEN, xrays, False, "random") == ""


def test_a_contaminated_encoder_is_refused_with_count_and_names(xrays: XRays) -> None:
    test = xrays.indices("test")
    spoilt = seen(xrays, np.concatenate([xrays.indices("train"), test[:2]]))
    with pytest.raises(UserError, match=f"trained on 2 of the .*{xrays.columns.paths[test[0]]}") as refusal:
        check_unseen(spoilt, xrays, False, "encoder.pt")
    assert "--allow-seen" in str(refusal.value)
    note = check_unseen(spoilt, xrays, True, "encoder.pt")
    assert note.startswith("transductive: encoder.pt was trained on 2 of")


def test_an_encoder_without_provenance_is_accepted_only_on_request(xrays: XRays) -> None:
    with pytest.raises(UserError, match="does not say which images"):
        check_unseen(None, xrays, False, "encoder.pt")
    assert "does not say" in check_unseen(None, xrays, True, "encoder.pt")


def test_further_training_adds_to_what_was_seen() -> None:
    before = Provenance("abc", np.array([1, 2]))
    after = before.joined("def", np.array([2, 3]))
    assert after.seen.tolist() == [1, 2, 3]
    assert after.split_hash == "def"
    assert after.list_hash == Provenance("", np.array([3, 1, 2])).list_hash != before.list_hash
