"""What a result was made with: command, commit and versions, without torch."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from utils.config import REPO_ROOT

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pillow", "scikit-learn")


def software() -> dict[str, Any]:
    """Return command, git commit, Python, platform and package versions, as environment.json holds them."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _commit() -> str:
    try:
        arguments = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(
            arguments, cwd=REPO_ROOT, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
