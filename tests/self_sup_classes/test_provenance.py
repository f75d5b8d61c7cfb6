"""The firewall: an encoder that has seen held-out images is refused, or every result says so."""

import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from data_config import opened
from PIL import Image, ImageEnhance, ImageOps

from dataset_loader.image_store import open_store
from dataset_loader.phantoms.dataset import COVID_ROOT
from dataset_loader.signatures import copies_among, signatures
from dataset_loader.splits import FOLDS
from dataset_loader.xrays import XRays
from self_sup_classes.provenance import NOTHING_SEEN, Provenance, check_unseen, provenance_of
from utils.config import UserError


@pytest.fixture(scope="module")
def xrays(phantoms: Path) -> XRays:
    return opened("covid", phantoms / COVID_ROOT)


def seen(xrays: XRays, indices: np.ndarray) -> Provenance:
    return Provenance("abc", xrays.image_ids(indices))


def pictures(*numbers: int) -> np.ndarray:
    return np.array([[number] * 49 for number in numbers], dtype=np.uint8)


def test_an_encoder_of_the_train_part_is_accepted(xrays: XRays) -> None:
    assert check_unseen(seen(xrays, xrays.indices("train")), xrays, False, "encoder.pt") == ""
    assert check_unseen(NOTHING_SEEN, xrays, False, "random") == ""


def test_a_contaminated_encoder_is_refused_with_count_and_names(xrays: XRays) -> None:
    single = ~np.isin(xrays.columns.paths, xrays.duplicates[["file", "other"]].to_numpy())
    test = np.flatnonzero(single & (xrays.parts == "test"))
    spoilt = seen(xrays, np.concatenate([xrays.indices("train"), test[:2]]))
    with pytest.raises(UserError, match=f"trained on 2 of the .*{xrays.columns.paths[test[0]]}") as refusal:
        check_unseen(spoilt, xrays, False, "encoder.pt")
    assert "--allow-seen" in str(refusal.value)
    note = check_unseen(spoilt, xrays, True, "encoder.pt")
    assert note.startswith("transductive: encoder.pt was trained on 2 of")


def test_an_encoder_fits_its_own_fold_alone_and_copies_are_looked_for_once(
    xrays: XRays, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    monkeypatch.setattr(
        "self_sup_classes.provenance.copies_among", lambda *them: searched.append(1) or copies_among(*them)
    )
    for own in range(FOLDS):
        of_own = seen(xrays, xrays.of_fold(own).indices("train"))
        for fold in range(FOLDS):
            if fold == own:
                assert check_unseen(of_own, xrays.of_fold(fold), False, "encoder.pt") == ""
                continue
            held_out = len(xrays.of_fold(fold).indices("test"))
            with pytest.raises(UserError, match=f"trained on {held_out} of the"):
                check_unseen(of_own, xrays.of_fold(fold), False, "encoder.pt")
    assert len(searched) <= FOLDS


def test_an_encoder_without_provenance_is_accepted_only_on_request(xrays: XRays) -> None:
    with pytest.raises(UserError, match="does not say which images"):
        check_unseen(None, xrays, False, "encoder.pt")
    assert "does not say" in check_unseen(None, xrays, True, "encoder.pt")


def test_a_file_that_lists_names_as_earlier_versions_did_counts_as_unknown() -> None:
    state = OrderedDict()
    NOTHING_SEEN.attach(state)
    assert provenance_of(state) is not None
    state.provenance = {"split_hash": "abc", "list_hash": "def", "seen": torch.arange(3)}  # type: ignore[attr-defined]
    assert provenance_of(state) is None


def test_copies_under_other_names_and_in_another_layout_are_recognised(xrays: XRays, tmp_path: Path) -> None:
    held_out = np.concatenate([xrays.indices("val"), xrays.indices("test")])[:12]
    for number, index in enumerate(held_out):
        with Image.open(xrays.columns.root / xrays.columns.paths[index]) as image:
            enlarged = image.convert("L").resize((96, 96), Image.Resampling.BICUBIC)
            altered = [enlarged, ImageEnhance.Brightness(enlarged).enhance(0.7), ImageOps.invert(enlarged)]
            altered[number % 3].save(tmp_path / f"{number}.jpg", quality=30)
    moved = open_store(tmp_path, [f"{number}.jpg" for number in range(12)], 64, tmp_path / "cache", False)
    train = xrays.image_ids(xrays.indices("train"))
    spoilt = Provenance("abc", np.concatenate([train, signatures(moved)]))
    with pytest.raises(UserError, match="was trained on 12 of the 68 images"):
        check_unseen(spoilt, xrays, False, "encoder.pt")


def test_other_pictures_under_the_same_names_are_not_seen(xrays: XRays, phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms / COVID_ROOT, tmp_path / "covid")
    train = xrays.columns.paths[xrays.indices("train")]
    for part in ("val", "test"):
        for index in xrays.indices(part):
            shutil.copy(phantoms / COVID_ROOT / train[index % 50], tmp_path / "covid" / xrays.columns.paths[index])
    other = opened("covid", tmp_path / "covid")
    assert other.columns.paths.tolist() == xrays.columns.paths.tolist()
    everything = seen(other, other.indices("all"))
    assert check_unseen(everything, xrays, False, "encoder.pt") == ""


def test_copies_of_real_xrays_are_recognised_and_others_are_not(real_xrays: Path, tmp_path: Path) -> None:
    for layout in ("COVID-19_Radiography_Dataset/*/images/*.png", "CheXpert-v1.0-small/train/*/*/*.jpg"):
        files = sorted(real_xrays.glob(layout))[::41]
        names = [file.relative_to(real_xrays).as_posix() for file in files]
        known = signatures(open_store(real_xrays, names, 64, tmp_path, False))
        for number, file in enumerate(files[:30]):
            with Image.open(file) as image:
                gray = image.convert("L")
            gray.save(tmp_path / f"{number}-0.jpg", quality=10)
            gray.resize((gray.width // 2, gray.height // 2)).save(tmp_path / f"{number}-1.png")
            ImageEnhance.Contrast(ImageEnhance.Brightness(gray).enhance(0.8)).enhance(1.2).save(
                tmp_path / f"{number}-2.png"
            )
            gray.point([round(255 * (value / 255) ** 0.7) for value in range(256)]).save(tmp_path / f"{number}-3.png")
        copies = [f"{n}-{kind}" + (".jpg" if kind == 0 else ".png") for n in range(30) for kind in range(4)]
        altered = signatures(open_store(tmp_path, copies, 64, tmp_path, False))
        assert copies_among(altered, known[:30]).all()
        assert not copies_among(altered, known[30:]).any()
        for path in tmp_path.glob("*-?.*"):
            path.unlink()


def test_further_training_adds_to_what_was_seen() -> None:
    before = Provenance("abc", pictures(1, 2))
    after = before.joined("def", pictures(2, 3))
    assert after.seen.tolist() == pictures(1, 2, 3).tolist()
    assert after.split_hash == "def"
    assert after.list_hash == Provenance("", pictures(3, 1, 2)).list_hash != before.list_hash
