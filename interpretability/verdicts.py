"""What an audit's scores come to, in words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from interpretability.alterations import AS_IS, BORDER, NO_LUNGS, ONLY_BORDER
from interpretability.shortcuts import RELEARNT, TRAINED

Row = Mapping[Any, Any]  # of a table of scores


def audit_verdict(scores: pd.DataFrame, metric: str, chance: float) -> str:
    """How much of the score above chance needs the lungs? One sentence by the head as trained, one by the relearnt."""
    what = metric.replace("_", " ").replace("auroc", "AUROC")
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
    share = (rest["value"] - chance) / (whole["value"] - chance)
    left = f"{max(0.0, min(share, 1.0)):.0%} of its" if rest["low"] > chance else "none of its"
    change = f"{what} {whole['value']:.2f} -> {_cell(rest)}, chance {chance:.2f}"
    return f"{place} {left} accuracy above chance is left ({change}). {_background(scores, rows, what, chance)}"


def _background(
    scores: pd.DataFrame, rows: Mapping[tuple[str, str], Mapping[str, float]], what: str, chance: float
) -> str:
    """What its features still tell of pictures without lungs, and of which class most."""
    name = max(
        (name for name in (NO_LUNGS, ONLY_BORDER) if (name, RELEARNT) in rows), key=lambda n: rows[n, RELEARNT]["low"]
    )
    told = rows[name, RELEARNT]
    sentence = f"A new head on its features ({name}) gets {what} {_cell(told)}"
    if not told["low"] > chance:
        return f"{sentence}: chance."
    of_head = (scores["images"] == name) & (scores["head"] == RELEARNT)
    by_class = [row for row in _records(scores, of_head) if row["score"].startswith("auroc ")]
    if not by_class:
        return f"{sentence}: the background tells the findings."
    most = max(by_class, key=lambda row: row["low"])
    return f"{sentence}: the background tells the classes, most of all {most['score'][6:]} (AUROC {_cell(most)})."


def _records(scores: pd.DataFrame, chosen: Any) -> list[dict[Any, Any]]:
    return pd.DataFrame(scores[chosen]).to_dict("records")


def _cell(row: Row) -> str:
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
