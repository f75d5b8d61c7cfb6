"""What makes pretrainings of tests quick where their probes and pictures are not looked at."""

import pytest
from matplotlib.figure import Figure

from selfsup_task import monitor


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes learn from one draw of labels; all figures but the views are blank."""
    monkeypatch.setattr(monitor, "PROBE_DRAWS", 1)
    for name in ("recipe_figure", "correlation_figure", "curves_figure"):
        monkeypatch.setattr(monitor.Monitor, name, lambda *_: Figure(figsize=(1, 1)))
