"""A classifier, with all that is needed to show it an X-ray and to read its answer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from downstream_task.classifier import Classifier
from downstream_task.probes import forward
from downstream_task.targets import probabilities_of


@dataclass(frozen=True)
class Predictor:
    """A classifier and how X-rays are shown to it.

    sizes   pixels per side: decoded, and seen by the network
    origin  facts that identify it: where its weights are, and their hash
    """

    network: Classifier
    classes: list[str]
    multilabel: bool
    sizes: tuple[int, int]
    in_channels: int
    dtype: torch.dtype
    temperature: float
    name: str
    origin: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return next(self.network.parameters()).device

    def probabilities(self, squares: np.ndarray) -> np.ndarray:
        """Return [n, C] for decoded X-rays uint8 [n, 1, S, S]."""
        pixels = torch.from_numpy(squares).to(self.device)
        logits = forward(self.network, pixels, self.sizes[1], self.in_channels, self.dtype)
        return probabilities_of(logits.double() / self.temperature, self.multilabel).numpy()
