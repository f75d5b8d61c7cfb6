"""How much code does a command pass through? Lines of this repo's functions that it executes, by file.

    python tests/benchmarks/executed_lines.py downstream_task/confusion_matrix.py --runs FOLDER
    python tests/benchmarks/executed_lines.py --within score_comparison downstream_task/confusion_matrix.py
    python tests/benchmarks/executed_lines.py --within finetune downstream_task/trained_vs_no_trained_compare.py \\
        --ways zeros --num-labels 20 --draws 1 --encoders random --jobs 1 --run-name compare/one

A line counts once, however often it is executed; imports and definitions do not count. `--within` counts only what
happens inside a function of that name.
"""

import inspect
import runpy
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def executed_lines(script: str, within: str = "") -> dict[str, set[int]]:
    """Run a script, whose arguments are in sys.argv, and return its lines by file below the repo."""
    lines: dict[str, set[int]] = defaultdict(set)
    inside, names = [not within], dict[CodeType, str]()

    def name_of(code: CodeType) -> str:
        if code not in names:
            path = (ROOT / code.co_filename).resolve()
            ours = path.is_file() and path.is_relative_to(ROOT) and ".venv" not in path.parts
            in_function = code.co_flags & inspect.CO_OPTIMIZED
            names[code] = path.relative_to(ROOT).as_posix() if ours and in_function else ""
        return names[code]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name, entered = name_of(frame.f_code), frame.f_code.co_name == within
        if not name:
            return None
        inside[0] = inside[0] or entered

        def local(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line" and inside[0]:
                lines[name].add(frame.f_lineno)
            if event == "return" and entered:
                inside[0] = False
            return local

        return local

    sys.settrace(trace)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.settrace(None)
    return dict(lines)


if __name__ == "__main__":
    words = sys.argv[1:]
    within = words[1] if words[0] == "--within" else ""
    sys.argv = words[2:] if within else words
    found = executed_lines(sys.argv[0], within)
    for file, numbers in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"{len(numbers):5} {file}")
    print(f"{sum(map(len, found.values())):5} lines in {len(found)} files")
