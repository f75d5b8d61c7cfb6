"""Features of a few clusters, for tests of probes."""

import numpy as np
import torch


def clusters(n: int, classes: int = 3, noise: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Features [n, 10] round one centre a class, and the classes, the last of them rare."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, 10))
    labels = generator.choice(classes, n, p=[0.6, 0.35, 0.05][:classes] if classes == 3 else None)
    features = (centres[labels] + noise * generator.normal(size=(n, 10))) * np.linspace(0.1, 30, 10)
    return torch.from_numpy(features).float(), labels
