"""Positives of one patient and study: who is whose partner, and what the second view shows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_config import opened
from PIL import Image

from augmentations.transform_utils import plain_view
from dataset_loader.phantoms.dataset import CHEXPERT_ROOT, COVID_ROOT
from dataset_loader.xrays import XRays
from selfsup_task.pretraining import Partners, PretrainConfig, partners_of, pretraining_step
from selfsup_task.train_barlow_twins import config as DEFAULTS
from utils import distributed
from utils.config import UserError, make_config
from utils.distributed import Shard


@pytest.fixture(scope="module")
def xrays(phantoms: Path) -> XRays:
    """Phantoms of which every study holds all X-rays of its patient, one study of one apart."""
    found = opened("chexpert", phantoms / CHEXPERT_ROOT)
    return replace(found, columns=replace(found.columns, details=found.columns.details.assign(study="study1")))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_partner_is_another_xray_of_the_patient_among_those_of_the_pretraining(xrays: XRays) -> None:
    train, groups = xrays.indices("train"), xrays.columns.groups
    partners = Partners(xrays, train)
    batch = torch.from_numpy(train)
    whole = Shard(slice(None), len(batch))
    drawn = torch.stack([partners.draw(batch, generator(seed), whole) for seed in range(60)]).numpy()  # [60, n]
    assert (groups[drawn] == groups[train]).all()
    several = 0
    for column, image in zip(drawn.T, train, strict=True):
        others = [other for other in train if groups[other] == groups[image] and other != image]
        assert set(column) == set(others or [image])
        several += len(others) > 1
    assert several > 5, "patients with three X-rays or more are among the phantoms"
    half = len(batch) // 2
    for rows in (slice(0, half), slice(half, len(batch))):  # as two processes draw them
        again = partners.draw(batch[rows], generator(0), Shard(rows, len(batch)))
        np.testing.assert_array_equal(drawn[0][rows], again.numpy())


def written(root: Path, xrays: XRays, rows: list[tuple[str, str]]) -> Path:
    """Write a folder of X-rays with a table; `rows` are label and patient of each."""
    root.mkdir()
    for n, _ in enumerate(rows):
        Image.fromarray(xrays.batch(torch.tensor([n]))[0, 0].numpy()).resize((80, 80)).save(root / f"{n:02}.png")
    table = pd.DataFrame(rows, columns=["label", "patient"])
    table["file"] = [f"{n:02}.png" for n in range(len(rows))]
    held_out = np.where(np.arange(len(rows)) % 8 == 7, "test", "val")  # of those without a patient
    table["part"] = np.where(table["label"] == "", "", np.where(table["patient"] == "", held_out, "train"))
    table.to_csv(root / "labels.csv", index=False)
    return root


def test_partners_are_found_among_films_without_a_label_but_not_among_other_peoples(
    phantoms: Path, tmp_path: Path
) -> None:
    covid, chexpert = opened("covid", phantoms / COVID_ROOT), opened("chexpert", phantoms / CHEXPERT_ROOT)
    labelled = [("a", "p1"), ("b", "p2"), ("a", "p3"), ("b", "")] * 3
    here = written(tmp_path / "here", covid, [*labelled, ("", "p1"), ("", "p4"), ("", "p4"), ("", "")])
    there = written(tmp_path / "there", chexpert, [("c", "p1"), ("c", "p1"), ("d", "p5"), ("d", "p6")])
    xrays = opened("folder", here, [f"folder:{there}"])
    assert [len(one) for one in xrays.also] == [4, 4]
    rows = xrays.pretraining_indices("train")
    partners, whole = Partners(xrays, rows), Shard(slice(None), len(rows))
    drawn = np.array([partners.draw(torch.from_numpy(rows), generator(seed), whole).numpy() for seed in range(60)])
    of = {row: set(column.tolist()) for row, column in zip(rows.tolist(), drawn.T, strict=True)}
    n = len(xrays)
    p1 = {*np.flatnonzero(xrays.columns.details["patient"].to_numpy() == "p1").tolist(), n}
    assert of[n] == p1 - {n} and all(of[row] == p1 - {row} for row in p1)
    assert (of[n + 1], of[n + 2], of[n + 3]) == ({n + 2}, {n + 1}, {n + 3})
    assert (of[n + 4], of[n + 5], of[n + 6]) == ({n + 5}, {n + 4}, {n + 6})  # the p1 of another folder


def test_another_study_is_another_visit(xrays: XRays) -> None:
    studies = np.arange(len(xrays)).astype(str)
    with pytest.raises(UserError, match="no patient has two X-rays of one study"):
        Partners(
            replace(xrays, columns=replace(xrays.columns, details=xrays.columns.details.assign(study=studies))),
            xrays.indices("train"),
        )


class Twins:
    """In a network's place: keeps the views that it is given."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, *views: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.extend(views)
        return {}


@pytest.mark.parametrize("positives", ["image", "patient"])
def test_two_processes_draw_the_views_of_one(xrays: XRays, monkeypatch: pytest.MonkeyPatch, positives: str) -> None:
    changes: dict[str, Any] = {"recipe": "original", "positives": positives, "run_name": "unused"}
    config = make_config(PretrainConfig, {**DEFAULTS, **changes})
    batch, views = torch.from_numpy(xrays.indices("train")[:16]), []
    for processes in (1, 2):
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        for rank, rows in enumerate(batch.split(16 // processes)):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            twins = Twins()
            pretraining_step(twins, xrays.batch, config, partners_of(xrays, config))(rows, 1, 2)
            views.append(torch.stack(twins.seen))  # [V, B, 1, R, R]
    torch.testing.assert_close(torch.cat(views[1:], 1), views[0])


def test_every_second_view_is_of_the_partner(xrays: XRays, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"recipe": "none", "views": 4, "positives": "patient", "run_name": "unused"}
    config = make_config(PretrainConfig, {**DEFAULTS, **changes})
    partners = Partners(xrays, xrays.indices("train"))
    batch = torch.from_numpy(xrays.indices("train")[:8])
    other = torch.from_numpy(xrays.indices("train")[8:16])
    monkeypatch.setattr(partners, "draw", lambda asked, *_: other if asked is batch else None)
    twins = Twins()
    pretraining_step(twins, xrays.batch, config, partners)(batch, 0, 0)
    own, others = (plain_view(xrays.batch(rows), 32, 1) for rows in (batch, other))
    assert len(twins.seen) == 4
    for view, expected in zip(twins.seen, (own, own, others, others), strict=True):
        torch.testing.assert_close(view, expected)
