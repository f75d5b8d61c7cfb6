"""What an audit's scores come to, in words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from interpretability.alterations import AS_IS, BORDER, NO_LUNGS, ONLY_BORDER
from interpretability.shortcuts import RELEARNT, TRAINED
from utils.wording import interval_text, metric_name

Row = Mapping[Any, Any]  # of a table of scores


def audit_verdict(scores: pd.DataFrame, metric: str, chance: float) -> str:
    """How much of the score above chance needs the lungs? One sentence by the head as trained, one by the relearnt."""
    what = metric_name(metric)
    rows = {(r["images"], r["head"]): r for r in _records(scores, scores["score"] == metric)}
    whole = rows[AS_IS, TRAINED]
    if not whole["low"] > chance:
        return f"It does not tell the classes: {what} {_cell(whole)}, chance {chance:.2f}."
    rest, place = rows.get((NO_LUNGS, TRAINED)), "Without the lungs"
    if rest is None:
        rest, place = (
            rows[ONLY_BORDER, TRAINED],
            f"There are too few lung masks. By a border of {BORDER:.0%} alone",
        )
    shares = [max(0.0, min((rest[key] - chance) / (whole["value"] - chance), 1.0)) for key in ("value", "low", "high")]
    change = f"{what} {whole['value']:.2f} -> {_cell(rest)}, chance {chance:.2f}"
    left = f"{shares[0]:.0%} [{shares[1]:.0%}, {shares[2]:.0%}] of its score above chance is left"
    return f"{place} {left} ({change}); its head never saw such pictures. {_rest(scores, rows, what, chance)}"


def _rest(scores: pd.DataFrame, rows: Mapping[tuple[str, str], Row], what: str, chance: float) -> str:
    """What its features still tell of the pictures without lungs (without masks, of the border), and of which class."""
    name = NO_LUNGS if (NO_LUNGS, RELEARNT) in rows else ONLY_BORDER
    told = rows[name, RELEARNT]
    sentence = f"A new head on its features ({name}) gets {what} {_cell(told)}"
    if not told["low"] > chance:
        return f"{sentence}: not shown to differ from chance."
    rest = "the background, or the lungs' outline, tells" if name == NO_LUNGS else "the background tells"
    of_head = (scores["images"] == name) & (scores["head"] == RELEARNT)
    by_class = [r for r in _records(scores, of_head) if r["score"].startswith("auroc ") and r["low"] == r["low"]]
    if not by_class:
        return f"{sentence}: {rest} the labels."
    most = max(by_class, key=lambda row: row["low"])
    return f"{sentence}: {rest} the classes, most of all {most['score'][6:]} (AUROC {_cell(most)})."


def _records(scores: pd.DataFrame, chosen: Any) -> list[dict[Any, Any]]:
    return pd.DataFrame(scores[chosen]).to_dict("records")


def _cell(row: Row) -> str:
    return interval_text(row["value"], row["low"], row["high"], ".2f")
