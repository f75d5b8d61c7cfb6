"""What bench_time_to_quality.py says and draws of its curves; tables have the columns variant, minutes, score, std."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils import plots


def minutes_to_reach(minutes: np.ndarray, scores: np.ndarray, target: float) -> float | None:
    """Return when a curve, linear between its points, is at `target` for the first time; None if it never is."""
    if scores.max() < target:
        return None
    first = int(np.argmax(scores >= target))
    if first == 0:
        return float(minutes[0])
    return float(np.interp(target, scores[first - 1 : first + 1], minutes[first - 1 : first + 1]))


def final_scores(table: pd.DataFrame) -> list[str]:
    """Return one line per variant: its score at the end, and that of random weights."""
    lines = []
    for name, rows in table.groupby("variant", sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        lines.append(
            f"{name}: balanced accuracy {last['score']:.3f} after {last['minutes']:.1f} min "
            f"(std of the label draws {last['std']:.3f}; random weights {first['score']:.3f})"
        )
    return lines


def time_ratios(table: pd.DataFrame) -> list[str]:
    """Return one line per other variant: its minutes for its final score, those of ours for the same, and the ratio."""
    curves = {str(name): rows for name, rows in table.groupby("variant", sort=False)}
    if "ours" not in curves:
        return []
    ours = curves.pop("ours")
    return [f"{name}: {_ratio(ours, rows)}" for name, rows in curves.items()]


def _ratio(ours: pd.DataFrame, other: pd.DataFrame) -> str:
    target, theirs = float(other["score"].iloc[-1]), float(other["minutes"].iloc[-1])
    needed = minutes_to_reach(ours["minutes"].to_numpy(), ours["score"].to_numpy(), target)
    text = f"{theirs:.1f} min for its final score {target:.3f}; ours "
    if needed is None:
        return f"{text}has not reached it"
    if needed == 0:
        return f"{text}has it with random weights, so a ratio says nothing"
    return f"{text}reached it after {needed:.1f} min: x{theirs / needed:.1f}"


def draw_curves(table: pd.DataFrame, title: str, chance: float) -> Figure:
    """Return score over minutes, one line per variant with a band of one standard deviation over the label draws."""
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    ax = figure.subplots()
    curves = {str(name): rows for name, rows in table.groupby("variant", sort=False)}
    for name, colour, marker in plots.styled(curves):
        rows = curves[name]
        minutes, score, std = (rows[column].to_numpy() for column in ("minutes", "score", "std"))
        ax.plot(minutes, score, color=colour, marker=marker, markersize=5, label=name)
        ax.fill_between(minutes, score - std, score + std, color=colour, alpha=0.15, linewidth=0)
    ax.axhline(chance, color=plots.BLACK, linestyle=":", linewidth=1, label="chance")
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="pretraining (minutes)", ylabel="balanced accuracy, mean ± std of label draws")
    ax.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=len(curves) + 1)
    return figure
