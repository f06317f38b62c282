"""`infra/audit` does not take silence for safety: pip-audit calls packages clean that nobody knows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOLD = Path(__file__).parents[2] / "infra" / "audit.py"
CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([CLEAN], 0, ""),
        ([CLEAN, BAD], 1, "b 2: PYSEC-1, fixed in 3\n"),
        ([CLEAN, UNKNOWN], 0, "not known to PyPI: c\n"),
        ([UNKNOWN], 2, "audit: PyPI's advisories cannot be reached; nothing was audited\n"),
        (None, 2, "audit: PyPI's advisories cannot be reached (no network); nothing was audited\n"),
    ],
)
def test_what_is_told_of_an_audit(tmp_path: Path, packages: Any, status: int, said: str) -> None:
    log = tmp_path / "log"
    log.write_text("a warning\nno network\n")
    found = "" if packages is None else json.dumps({"dependencies": packages})
    done = subprocess.run([sys.executable, TOLD, log], input=found, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (status, said)
