"""How long the demo's run takes, fresh and again, on this machine.   python infra/benchmarks/demo.py

Runs `yarn-ops --help`, `yarn-ops extend demo` in a fresh state directory, the same again, `yarn-ops runs`.
Wall-clock seconds of whole processes, for an otherwise idle machine, and the processor seconds of each with
all that it started, which other work on the machine changes less.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time


def main() -> None:
    with tempfile.TemporaryDirectory() as state:
        environment = {**os.environ, "YARN_OPS_STATE_DIR": state}
        figures = {
            "--help": min(seconds(environment, "--help") for _ in range(5)),
            "extend demo, fresh": seconds(environment, "extend", "demo"),
            "extend demo, again": seconds(environment, "extend", "demo"),
            "runs": seconds(environment, "runs"),
        }
        shown = run(environment, "runs", "show", "--last", "--json").stdout
        reused = [stage["reused"] for stage in json.loads(shown)["stages"]]
    for what, (took_s, processor_s) in figures.items():
        print(f"{what:<22} {took_s:7.2f} s {processor_s:7.2f} s of processor")
    print(f"stages reused the second time: {sum(reused)} of {len(reused)}")


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yarn_ops.cli", *arguments]
    return subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE)


def seconds(environment: dict[str, str], *arguments: str) -> tuple[float, float]:
    """By the clock, and of processor."""
    started, used = time.perf_counter(), processor_s()
    run(environment, *arguments)
    return time.perf_counter() - started, processor_s() - used


def processor_s() -> float:
    """Of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


main()
