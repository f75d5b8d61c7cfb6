"""How often do the intervals of a comparison hold, and how wide are they? Simulated comparisons with known truths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import norm

from downstream_task.label_efficiency import FOLDS, Cell, Images, in_common, labels_needed
from utils.intervals import resample_weights
from utils.metrics import weighted_scores

OF_GROUP, OF_IMAGE, OF_ARM, OF_DRAW = 0.7, 1.0, 0.5, 0.6  # sd of what makes an image's answer right, beside skill
SPREAD = float(np.hypot(np.hypot(OF_GROUP, OF_IMAGE), np.hypot(OF_ARM, OF_DRAW)))
CLASSES = np.array([0.1, 0.2, 0.3, 0.4])  # shares of the images; balanced accuracy is the mean of their recalls


@dataclass(frozen=True)
class Design:
    """One kind of comparison, of an arm with a start per draw and one with a pretraining per fold.

    Luck is in score points, of each arm by itself.

    labels   of `pool` images in the four other folds
    luck     standard deviations of the effects of the labelled images, of a draw's seed, of a pretraining
    part     "test": each fold's own images; "val": all draws on the same
    """

    score: float = 0.60
    gap: float = 0.07
    draws: int = 10
    labels: int = 187
    luck: tuple[float, float, float] = (0.015, 0.01, 0.01)
    part: str = "test"
    images: int = 2100  # of all five folds, or of the validation part
    resamples: int = 200


def some_groups(generator: np.random.Generator, images: int) -> np.ndarray:
    """Groups [images] of 1 to 3 images."""
    return np.repeat(np.arange(images), generator.integers(1, 4, images))[:images]


def skill_of(design: Design, score: float) -> tuple[float, float]:
    """Return the mean skill at which the expected score is as asked, and how much skill is one unit of score."""
    slope = SPREAD / norm.pdf(norm.ppf(score))
    return float(np.hypot(SPREAD, slope * np.linalg.norm(design.luck)) * norm.ppf(score)), float(slope)


class Comparison:
    """One simulated comparison: images in folds, and nested label subsets of each draw, the same for both arms."""

    def __init__(self, design: Design, seed: int) -> None:
        self.design, self.generator = design, np.random.default_rng(seed)
        pooled, shared = 2100, design.part == "val"
        self.folds = np.arange(design.draws) % FOLDS
        of_fold = self.generator.integers(0, FOLDS, pooled // 2)[np.arange(pooled) // 2]  # whole groups of two
        self.orders = [self.generator.permutation(np.flatnonzero(of_fold != fold)) for fold in self.folds]
        self.pool = pooled * (FOLDS - 1) / FOLDS
        groups = some_groups(self.generator, design.images)
        test_fold = self.generator.integers(0, FOLDS, groups[-1] + 1)[groups]
        self.places = [np.arange(len(groups)) if shared else np.flatnonzero(test_fold == fold) for fold in self.folds]
        self.groups, count = groups, int(groups.max()) + 1
        self.difficulty = self.normal(OF_GROUP, count)[groups] + self.normal(OF_IMAGE, len(groups))
        self.labels = self.generator.choice(len(CLASSES), len(groups), p=CLASSES)
        weights = resample_weights(groups, design.resamples, seed)
        self.images = Images(pd.Index([]), {}, weights, count, self.pool)
        self.influences: dict[str, np.ndarray] = {}
        self.common = self.generator.normal(size=pooled)

    def normal(self, spread: float, size: int) -> np.ndarray:
        return self.generator.normal(0, spread, size)

    def cell(self, arm: str, score: float, labels: int, starts: np.ndarray, pretrained: np.ndarray) -> Cell:
        """One arm's heads, trained on `labels` images, with the luck `pretrained` [K] of their pretrainings."""
        design, (skill, slope) = self.design, skill_of(self.design, score)
        of_labels, of_seed, _ = design.luck
        influences = self.influences.setdefault(arm, (self.common + self.generator.normal(size=2100)) / np.sqrt(2))
        taste = self.normal(OF_ARM, int(self.groups.max()) + 1)[self.groups]
        scored = []
        for k, places in enumerate(self.places):
            subset = self.orders[k][:labels]
            luck = of_labels * influences[subset].sum() / np.sqrt(len(subset)) + self.normal(of_seed, 1)[0]
            answers = (self.difficulty + taste)[places] + self.normal(OF_DRAW, len(places))
            known, right = self.labels[places], answers + skill + slope * (luck + pretrained[k]) > 0
            probabilities = np.eye(len(CLASSES))[np.where(right, known, (known + 1) % len(CLASSES))]
            scored.append(weighted_scores(known, probabilities, self.images.weights[:, places]))
        scores = np.stack(scored, axis=1)
        draws = tuple(zip(self.folds.tolist(), range(len(self.folds)), strict=True))
        return Cell(arm, "linear", labels, True, draws, starts, scores[0], scores[1:], self.images)

    def ours(self, score: float, labels: int) -> Cell:
        """The arm with a pretraining of each fold, and its luck."""
        luck = self.normal(self.design.luck[2], int(self.folds.max()) + 1)[self.folds]
        return self.cell("ours", score, labels, self.folds, luck)

    def arms(self) -> tuple[Cell, Cell]:
        """Two arms, the second better by the gap."""
        design, draws = self.design, np.arange(self.design.draws)
        labels = min(design.labels, *map(len, self.orders))
        reference = self.cell("random", design.score, labels, draws, 0.0 * draws)
        return reference, self.ours(design.score + design.gap, labels)


def truth(design: Design) -> tuple[float, float]:
    """Return the true difference and score, expected over all luck; skill_of takes all three kinds for each arm."""

    def expected(score: float, luck: Sequence[float]) -> float:
        skill, slope = skill_of(design, score)
        return float(norm.cdf(skill / np.hypot(SPREAD, slope * np.linalg.norm(luck))))

    score = expected(design.score + design.gap, design.luck)
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
    bias = means[:, 0].mean() - gap
    return {"difference": held[:, 0].mean(), "score": held[:, 1].mean(), "width": relative[0], "bias": bias}


NUMBERS, CURVE = (20, 93, 187, 1600), (0.50, 0.58, 0.64, 0.70)  # labels and expected scores of the first arm


def coverage_of_labels_needed(design: Design, repeats: int) -> float:
    """The same share for the labels that the first arm needs to score as the second does with NUMBERS[0] labels."""
    starts_of_random, held = np.arange(design.draws), []
    for seed in range(repeats):
        comparison = Comparison(design, seed)
        curve = [
            comparison.cell("random", score, labels, starts_of_random, 0.0 * starts_of_random)
            for labels, score in zip(NUMBERS, CURVE, strict=True)
        ]
        needed = labels_needed(comparison.ours(design.score, NUMBERS[0]), curve)
        target = truth(replace(design, gap=0.0))[1]
        levels = [truth(replace(design, score=score, gap=0.0)) for score in CURVE]
        true = np.exp(np.interp(target, [score - gap for gap, score in levels], np.log(NUMBERS)))
        held.append(needed["reference_needs_low"] <= true <= needed["reference_needs_high"])
    return float(np.mean(held))
