"""How often do the intervals of a comparison hold, and how wide are they? Simulated comparisons with known truths.

    python tests/simulated_comparisons.py [REPEATS]

Prints, for each design, how many of the 95% intervals hold the true difference (of two pretrainings' worth of luck,
new labels and new patients), the median of their widths over 1.96 true standard errors, and the same for the score of
an arm and for the labels needed. 1,000 repeats take two minutes a design on one core.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pandas as pd
from scipy.stats import norm

from downstream_task.label_efficiency import FOLDS, Cell, Images, in_common, labels_needed
from utils.intervals import resample_weights
from utils.metrics import weighted_scores

OF_GROUP, OF_IMAGE, OF_ARM, OF_DRAW = 0.7, 1.0, 0.5, 0.6  # sd of what makes an image's answer right, beside skill
SPREAD = float(np.hypot(np.hypot(OF_GROUP, OF_IMAGE), np.hypot(OF_ARM, OF_DRAW)))
CLASSES = np.array([0.1, 0.2, 0.3, 0.4])  # shares of the images; balanced accuracy is the mean of their recalls
FINDINGS = np.array([0.1, 0.2, 0.4])


@dataclass(frozen=True)
class Design:
    """One kind of comparison. Luck is in score points, of each arm by itself.

    starts   how the second arm's pretrainings are spread: one per "fold", one per "draw", the "same" for all, or a
             number that take turns; the first arm has one per draw
    labels   of `pool` images in the four other folds
    luck     standard deviations of the effects of the labelled images, of a draw's seed, of a pretraining
    part     "test": each fold's own images; "val": all draws on the same
    """

    score: float = 0.60
    gap: float = 0.07
    folds: int = 5
    draws: int = 10
    starts: str | int = "fold"
    labels: int = 187
    luck: tuple[float, float, float] = (0.015, 0.01, 0.01)
    part: str = "test"
    findings: bool = False
    images: int = 2100  # of all five folds, or of the validation part
    resamples: int = 200


def some_groups(generator: np.random.Generator, images: int) -> np.ndarray:
    """Groups [images] of 1 to 3 images."""
    return np.repeat(np.arange(images), generator.integers(1, 4, images))[:images]


def skill_of(design: Design, score: float) -> tuple[float, float]:
    """Return the mean skill at which the expected score is as asked, and how much skill is one unit of score."""
    scale = np.sqrt(2) * SPREAD if design.findings else SPREAD
    slope = scale / norm.pdf(norm.ppf(score))
    return float(np.hypot(scale, slope * np.linalg.norm(design.luck)) * norm.ppf(score)), float(slope)


class Comparison:
    """One simulated comparison: images in folds, and nested label subsets of each draw, the same for both arms."""

    def __init__(self, design: Design, seed: int) -> None:
        self.design, self.generator = design, np.random.default_rng(seed)
        pooled, shared = 2100, design.part == "val"
        self.folds = np.arange(design.draws) % design.folds
        of_fold = self.generator.integers(0, FOLDS, pooled // 2)[np.arange(pooled) // 2]  # whole groups of two
        self.orders = [self.generator.permutation(np.flatnonzero(of_fold != fold)) for fold in self.folds]
        self.pool = pooled * (FOLDS - 1) / FOLDS
        groups = some_groups(self.generator, design.images)
        test_fold = self.generator.integers(0, FOLDS, groups[-1] + 1)[groups]
        if design.folds < FOLDS and not shared:
            groups, test_fold = groups[test_fold < design.folds], test_fold[test_fold < design.folds]
        groups = np.unique(groups, return_inverse=True)[1]
        self.places = [np.arange(len(groups)) if shared else np.flatnonzero(test_fold == fold) for fold in self.folds]
        self.groups, count = groups, int(groups.max()) + 1
        self.difficulty = self.normal(OF_GROUP, count)[groups] + self.normal(OF_IMAGE, len(groups))
        if design.findings:
            self.labels = (self.generator.random((len(groups), len(FINDINGS))) < FINDINGS).astype(float)
            self.difficulty = self.normal(OF_GROUP, (count, 3))[groups] + self.normal(OF_IMAGE, (len(groups), 3))
        else:
            self.labels = self.generator.choice(len(CLASSES), len(groups), p=CLASSES)
        weights = resample_weights(groups, design.resamples, seed)
        self.images = Images(pd.Index([]), {}, weights, count, self.pool)
        self.influences: dict[str, np.ndarray] = {}
        self.common = self.generator.normal(size=pooled)

    def normal(self, spread: float, size: int | tuple[int, ...]) -> np.ndarray:
        return self.generator.normal(0, spread, size)

    def cell(self, arm: str, score: float, labels: int, starts: np.ndarray, pretrained: np.ndarray) -> Cell:
        """One arm's heads, trained on `labels` images, with the luck `pretrained` [K] of their pretrainings."""
        design, (skill, slope) = self.design, skill_of(self.design, score)
        of_labels, of_seed, _ = design.luck
        influences = self.influences.setdefault(arm, (self.common + self.generator.normal(size=2100)) / np.sqrt(2))
        taste = self.normal(OF_ARM, (int(self.groups.max()) + 1, *self.difficulty.shape[1:]))[self.groups]
        scored = []
        for k, places in enumerate(self.places):
            subset = self.orders[k][:labels]
            luck = of_labels * influences[subset].sum() / np.sqrt(len(subset)) + self.normal(of_seed, 1)[0]
            answers = (self.difficulty + taste)[places]
            answers = answers + self.normal(OF_DRAW, answers.shape)
            known = self.labels[places]
            skilled = skill + slope * (luck + pretrained[k])
            if design.findings:
                probabilities = norm.cdf(answers + known * skilled)
            else:
                right = answers + skilled > 0
                probabilities = np.eye(len(CLASSES))[np.where(right, known, (known + 1) % len(CLASSES))]
            scored.append(weighted_scores(known, probabilities, self.images.weights[:, places]))
        scores = np.stack(scored, axis=1)
        draws = tuple(zip(self.folds.tolist(), range(len(self.folds)), strict=True))
        return Cell(arm, "linear", labels, True, draws, starts, scores[0], scores[1:], self.images)

    def starts(self) -> np.ndarray:
        """The second arm's pretraining of each draw."""
        of, draws = self.design.starts, np.arange(self.design.draws)
        return {"fold": self.folds, "draw": draws, "same": 0 * draws}[of] if isinstance(of, str) else draws % of

    def pretrained(self, starts: np.ndarray) -> np.ndarray:
        luck = self.normal(self.design.luck[2], int(starts.max()) + 1)[starts]
        return luck if len(set(starts)) > 1 else 0 * luck  # a single pretraining is taken as given

    def arms(self) -> tuple[Cell, Cell]:
        """Two arms, the second better by the gap."""
        design, draws = self.design, np.arange(self.design.draws)
        labels = min(design.labels, *map(len, self.orders))
        reference = self.cell("random", design.score, labels, draws, 0.0 * draws)
        starts = self.starts()
        return reference, self.cell("ours", design.score + design.gap, labels, starts, self.pretrained(starts))


def truth(design: Design) -> tuple[float, float]:
    """Return the true difference and score, expected over all luck; skill_of takes all three kinds for each arm."""

    def expected(score: float, luck: Sequence[float]) -> float:
        skill, slope = skill_of(design, score)
        scale = np.sqrt(2) * SPREAD if design.findings else SPREAD
        return float(norm.cdf(skill / np.hypot(scale, slope * np.linalg.norm(luck))))

    ours = design.luck if design.starts != "same" else design.luck[:2]
    score = expected(design.score + design.gap, ours)
    return score - expected(design.score, design.luck[:2]), score


def coverage(design: Design, repeats: int) -> dict[str, float]:
    """Simulate comparisons; return the shares of intervals that hold the truth, and their relative widths."""
    gap, score = truth(design)
    found = []
    for seed in range(repeats):
        reference, ours = Comparison(design, seed).arms()
        found.append([in_common(ours, reference).contrast([1, -1]), in_common(ours).contrast([1])])
    means, low, high = np.array(found).transpose(2, 0, 1)  # [repeats, 2]
    held, width = (low <= [gap, score]) & ([gap, score] <= high), (high - low) / 2
    relative = np.median(width, axis=0) / (1.96 * means.std(0, ddof=1))
    return {
        "difference": held[:, 0].mean(),
        "width": relative[0],
        "score": held[:, 1].mean(),
        "width of score": relative[1],
        "half width": np.median(width[:, 0]),
        "bias": means[:, 0].mean() - gap,
    }


NUMBERS, CURVE = (20, 93, 187, 1600), (0.50, 0.58, 0.64, 0.70)  # labels and expected scores of the first arm


def coverage_of_labels_needed(design: Design, repeats: int) -> dict[str, float]:
    """The same for the labels that the first arm needs to score as the second one does with NUMBERS[0] labels."""
    starts_of_random, held, finite = np.arange(design.draws), [], []
    for seed in range(repeats):
        comparison = Comparison(design, seed)
        curve = [
            comparison.cell("random", score, labels, starts_of_random, 0.0 * starts_of_random)
            for labels, score in zip(NUMBERS, CURVE, strict=True)
        ]
        starts = comparison.starts()
        ours = comparison.cell("ours", design.score, NUMBERS[0], starts, comparison.pretrained(starts))
        needed = labels_needed(ours, curve)
        target = truth(replace(design, gap=0.0))[1]
        levels = [truth(replace(design, score=score, gap=0.0)) for score in CURVE]
        true = np.exp(np.interp(target, [score - gap for gap, score in levels], np.log(NUMBERS)))
        held.append(needed["reference_needs_low"] <= true <= needed["reference_needs_high"])
        finite.append(np.log(needed["reference_needs_high"] / max(needed["reference_needs_low"], 1)))
    return {"labels needed": float(np.mean(held)), "factor": float(np.exp(np.median(finite)))}


def designs() -> Iterator[tuple[str, Design]]:
    """The designs of the table, by name."""
    few, some, every = (0.025, 0.015, 0.01), (0.015, 0.01, 0.01), (0.0075, 0.01, 0.01)
    five = Design()
    yield "five folds x 2, 20 labels", replace(five, labels=20, luck=few)
    yield "five folds x 2, 93 labels", replace(five, labels=93, luck=(0.02, 0.015, 0.01))
    yield "five folds x 2, 187 labels", five
    yield "five folds x 2, all labels", replace(five, labels=1700, luck=every)
    yield "five folds x 1, 187 labels", replace(five, draws=5)
    yield "five folds x 1, all labels", replace(five, draws=5, labels=1700, luck=every)
    yield "little luck", replace(five, luck=(0.005, 0.005, 0.005))
    yield "much luck of pretrainings", replace(five, luck=(0.015, 0.01, 0.03))
    yield "equal arms, 187 labels", replace(five, gap=0.0)
    yield "equal arms, all labels", replace(five, gap=0.0, labels=1700, luck=every)
    yield "one pretraining (ImageNet), 187", replace(five, starts="same")
    yield "one pretraining (ImageNet), all", replace(five, starts="same", labels=1700, luck=every)
    yield "five pretrainings take turns in 15", replace(five, starts=5, draws=15, folds=3)
    yield "three pretrainings take turns in 10", replace(five, starts=3)
    yield "three folds x 1, 187 labels", replace(five, folds=3, draws=3)
    yield "three folds x 2, 20 labels", replace(five, folds=3, draws=6, labels=20, luck=few)
    yield "three folds x 2, all labels", replace(five, folds=3, draws=6, labels=1700, luck=every)
    yield "findings, 187 labels", replace(five, findings=True, score=0.70, gap=0.05)
    yield "validation part, 187 labels", replace(five, part="val", images=234)
    yield "validation part, all labels", replace(five, part="val", images=234, labels=1700, luck=every)
    yield "validation part, three folds x 1", replace(five, part="val", images=234, folds=3, draws=3, luck=some)


if __name__ == "__main__":
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    chosen = sys.argv[2] if len(sys.argv) > 2 else ""
    for name, design in designs():
        if chosen in name:
            print(name.ljust(36), "  ".join(f"{k} {v:.3f}" for k, v in coverage(design, repeats).items()), flush=True)
    for name, design in {"five folds x 2": Design(), "three folds x 2": Design(folds=3, draws=6)}.items():
        if chosen in "labels needed":
            values = coverage_of_labels_needed(replace(design, luck=(0.02, 0.01, 0.01)), repeats)
            print(f"labels needed, {name}".ljust(36), "  ".join(f"{k} {v:.3f}" for k, v in values.items()), flush=True)
