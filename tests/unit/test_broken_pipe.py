"""A flow whose worker was killed prints into a broken pipe, and goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """\
import sys
from flows.logs import outlive_readers
from yarn_ops.progress import ProgressBars
outlive_readers()
bars = ProgressBars()
sys.stdin.read()
for number in range(3):
    bars.say(f"line {number}")
    print("and on standard output", flush=True)
open(sys.argv[1], "w").write("still here")
"""


def test_a_process_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(witness)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stderr.close()
        process.stdin.close()
        assert process.wait(60) == 0
    assert witness.read_text() == "still here"
