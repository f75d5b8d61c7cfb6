"""Runs entry scripts for tests in forks of one process that has imported everything: a start takes no seconds.

Reads one JSON object per line, {script, flags, output, die_at, memory}, and answers each with [exit code, CPU seconds]:
what the script printed is in `output`; it is killed after `die_at` seconds of CPU time, and may take `memory` bytes.
"""

import json
import os
import resource
import runpy
import signal
import sys
import traceback
from typing import Any

from matplotlib.figure import Figure

from downstream_task import compare_networks, probes  # noqa: F401  # imported once, for all
from selfsup_task import monitor
from selfsup_task.train_barlow_twins import main  # noqa: F401
from utils.config import REPO_ROOT
from utils.report import sections  # noqa: F401


def child(job: dict[str, Any]) -> None:
    """Run the script as a user's process of its own would, and exit."""
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [str(REPO_ROOT / job["script"]), *job["flags"]]
    if job.get("memory"):
        resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    if job.get("die_at"):
        signal.setitimer(signal.ITIMER_PROF, job["die_at"])  # nobody handles SIGPROF: the process ends at once
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def serve() -> None:
    """Answer jobs until stdin ends; probes are short and figures blank."""
    monitor.PROBE_DRAWS = 1
    for name in ("recipe_figure", "correlation_figure", "curves_figure", "views_figure"):
        setattr(monitor.Monitor, name, lambda *_: Figure(figsize=(1, 1)))
    for line in sys.stdin:
        process = os.fork()
        if not process:
            child(json.loads(line))
        _, status, used = os.wait4(process, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]), flush=True)


if __name__ == "__main__":
    serve()
