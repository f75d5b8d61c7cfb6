"""The audit: what is taken away, what is exposed, what is said."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from downstream_task import probes
from downstream_task.finished_runs import OpenedData, find_finished
from interpretability import shortcut_audit
from interpretability.shortcut_audit import verdict
from interpretability.shortcuts import (
    ALTERATIONS,
    AS_IS,
    GRID,
    NO_LUNGS,
    ONLY_BORDER,
    ONLY_LUNGS,
    REFITTED,
    SHUFFLED,
    TRAINED,
    Scores,
    known_sources,
    read_sources,
)
from utils.config import UserError, make_config
from utils.logging_utils import Run

IMAGES = torch.randint(1, 256, (3, 1, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MASKS = torch.zeros(3, 40, 40, dtype=torch.bool)
MASKS[:, 10:30, 5:20] = True
ROWS = np.array([4, 7, 9])


def test_lungs_and_the_rest_make_the_whole_and_a_border_is_a_tenth_of_the_side() -> None:
    without, only = (ALTERATIONS[name](IMAGES, MASKS, ROWS) for name in (NO_LUNGS, ONLY_LUNGS))
    assert torch.equal(without + only, IMAGES)
    assert (without[:, 0][MASKS] == 0).all() and (only[:, 0][~MASKS] == 0).all()
    left = ALTERATIONS[ONLY_BORDER](IMAGES, MASKS, ROWS) > 0
    expected = torch.ones(40, 40, dtype=torch.bool)
    expected[4:36, 4:36] = False
    assert (left[:, 0] == expected).all()


def test_patches_are_moved_whole_and_by_each_image_s_own_order() -> None:
    moved = ALTERATIONS[SHUFFLED](IMAGES, MASKS, ROWS)
    assert torch.equal(moved, ALTERATIONS[SHUFFLED](IMAGES.clone(), MASKS, ROWS))
    assert torch.equal(moved[1:2], ALTERATIONS[SHUFFLED](IMAGES[1:2], MASKS[1:2], ROWS[1:2]))

    def patches(image: torch.Tensor) -> list[tuple[int, ...]]:
        size = 40 // GRID
        cells = image[0].unfold(0, size, size).unfold(1, size, size).reshape(GRID * GRID, -1)
        return [tuple(cell.tolist()) for cell in cells]

    before, after = patches(IMAGES[0]), patches(moved[0])
    assert sorted(before) == sorted(after)
    assert sum(a == b for a, b in zip(before, after, strict=True)) < 8
    same = ALTERATIONS[SHUFFLED](IMAGES[:1].expand(2, -1, -1, -1), MASKS[:2], ROWS[:2])
    assert not torch.equal(same[0], same[1])


def audit(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(probes, "STRENGTHS", (probes.DEFAULT_STRENGTH,))
    monkeypatch.setattr("interpretability.shortcuts.MAX_MAPPED", 4)
    monkeypatch.setattr("interpretability.shortcuts.MAX_REFIT", 300)
    monkeypatch.setattr(shortcut_audit, "Run", partial(Run, runs_root=tmp_path))
    config = {**shortcut_audit.config, "checkpoints": [str(trained.folder)]}
    return next(iter(shortcut_audit.main(make_config(shortcut_audit.AuditConfig, config)).values()))


def value(run: Run, images: str, head: str, score: str) -> tuple[float, float, float]:
    rows = pd.read_csv(run.folder / "scores.csv").to_dict("records")
    row = next(r for r in rows if (r["images"], r["head"], r["score"]) == (images, head, score))
    return row["value"], row["low"], row["high"]


def test_a_planted_marker_is_exposed(
    marked: Run, plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shortcut = audit(marked, tmp_path / "marked", monkeypatch)
    honest = audit(plain, tmp_path / "plain", monkeypatch)
    assert shortcut.summary is not None and honest.summary is not None
    for images in (NO_LUNGS, ONLY_BORDER):
        assert value(shortcut, images, REFITTED, "auroc COVID")[1] > 0.7, images
        assert value(shortcut, images, REFITTED, "balanced_accuracy")[1] > 0.25, images
        assert value(honest, images, TRAINED, "balanced_accuracy")[1] <= 0.25, images
    assert value(honest, NO_LUNGS, REFITTED, "balanced_accuracy")[1] <= 0.25
    assert value(honest, NO_LUNGS, REFITTED, "auroc COVID")[1] <= 0.5
    assert "predicts the classes, most of all COVID" in shortcut.summary["verdict"]
    masses = []
    for run in (shortcut, honest):
        rows = pd.read_csv(run.folder / "lung_mass.csv").to_dict("records")
        masses += [row["value"] for row in rows if (row["class"], row["method"]) == ("COVID", "occlusion")]
    assert masses[0] < masses[1] - 0.2
    assert shortcut.summary["source"]["low"] > 0.6  # the marker, by a probe on the features
    assert 0.7 < shortcut.summary["source"]["by_class"] < 1
    assert honest.summary["source"] == {}
    printed = capsys.readouterr().out
    assert "A probe predicts the source: balanced accuracy" in printed  # sources.csv, found beside the data
    assert shortcut.summary["verdict"] in printed
    assert (shortcut.folder / "figures" / "audit.png").exists()
    assert list(shortcut.folder.rglob("metadata.tsv")), "nothing for TensorBoard's projector"
    assert audit(marked, tmp_path / "marked", monkeypatch).summary == shortcut.summary


def test_without_masks_the_rest_runs_and_says_so(plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interpretability.shortcuts.MIN_MASKED", 10_000)
    run = audit(plain, tmp_path, monkeypatch)
    assert run.summary is not None
    assert set(pd.read_csv(run.folder / "scores.csv")["images"].tolist()) == {AS_IS, ONLY_BORDER, SHUFFLED}
    assert "too few lung masks" in run.summary["verdict"]
    assert len(pd.read_csv(run.folder / "lung_mass.csv")) == 0


def test_sources_are_read_as_other_tables_are(marked: Run, tmp_path: Path) -> None:
    xrays = OpenedData(torch.device("cpu")).of(find_finished(str(marked.folder))[0].config)
    one, other = xrays.columns.paths[:2]
    rows = f"sep=;\nImage;Hospital\n./{one.upper()};Süd\n{other};unknown\n{one};süd\n"
    (tmp_path / "t.csv").write_text(rows, encoding="cp1252")
    table = read_sources(str(tmp_path / "t.csv"), xrays.columns.root)
    assert known_sources(xrays, table).tolist() == ["Süd", *[""] * (len(xrays) - 1)]
    assert table is not None
    table.loc[5, "source"] = "Nord"
    with pytest.raises(UserError, match="contradicts itself"):
        known_sources(xrays, table)


def scores(**values: tuple[float, float, float]) -> Scores:
    """Balanced accuracy by what is left and by head, and the AUROC of two classes."""
    names = {"whole": (AS_IS, TRAINED), "rest": (NO_LUNGS, TRAINED), "again": (NO_LUNGS, REFITTED)}
    names |= {"border": (ONLY_BORDER, TRAINED), "border_again": (ONLY_BORDER, REFITTED)}
    found: Scores = {(*names[name], "balanced_accuracy"): cell for name, cell in values.items()}
    areas = {"auroc A": (0.6, 0.5, 0.7), "auroc B": (0.9, 0.8, 0.95)}
    return found | {(NO_LUNGS, REFITTED, name): cell for name, cell in areas.items()}


WHOLE, CHANCE = (0.85, 0.8, 0.9), (0.27, 0.2, 0.34)


@pytest.mark.parametrize(
    ("rest", "again", "expected"),
    [
        (CHANCE, CHANCE, ["3% [0%, 15%] of its score above chance", "not shown to differ from chance"]),
        (CHANCE, (0.5, 0.4, 0.6), ["most of all B (AUROC 0.90"]),
        ((0.45, 0.2, 0.7), CHANCE, ["33% [0%, 75%] of its score above chance"]),
        (WHOLE, WHOLE, ["100% [92%, 100%] of its score above chance", "predicts the classes"]),
    ],
)
def test_the_verdict_says_how_much_needs_the_lungs(
    rest: tuple[float, float, float], again: tuple[float, float, float], expected: list[str]
) -> None:
    said = verdict(scores(whole=WHOLE, rest=rest, again=again), "balanced_accuracy", 0.25)
    assert all(words in said for words in expected), said


def test_the_verdict_without_masks_or_without_skill() -> None:
    border = (0.4, 0.35, 0.45)
    said = verdict(scores(whole=WHOLE, border=border, border_again=border), "balanced_accuracy", 0.25)
    assert "too few lung masks" in said and "border of 10%" in said
    unskilled = verdict(scores(whole=CHANCE, rest=CHANCE, again=CHANCE), "balanced_accuracy", 0.25)
    assert "does not distinguish the classes" in unskilled
