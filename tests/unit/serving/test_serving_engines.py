"""Real engines, served rightly and under each fault: what serve-check names is what was done.

`infra/llama` builds llama.cpp's Python server into .venv-llama; `pip install 'transformers[serving]'` brings
what transformers' own needs. Without them these tests skip.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import CHECKOUT

LLAMA_PYTHON = CHECKOUT / ".venv-llama/bin/python"
HAS_LLAMA_SERVER = (
    LLAMA_PYTHON.exists()
    and not subprocess.run(
        [LLAMA_PYTHON, "-c", "import llama_cpp.server.app"], capture_output=True, check=False
    ).returncode
)
HAS_SERVING = importlib.util.find_spec("openai") is not None

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("engine", "cases"),
    [
        pytest.param(
            "llama-cpp-python", 27,
            marks=pytest.mark.skipif(not HAS_LLAMA_SERVER, reason="no .venv-llama; run infra/llama"),
        ),
        pytest.param(
            "transformers", 12,
            marks=pytest.mark.skipif(not HAS_SERVING, reason="no transformers[serving]; pip install it"),
        ),
    ],
)  # fmt: skip
def test_right_servers_pass_and_every_fault_is_named(engine: str, cases: int, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        CHECKOUT / "infra/benchmarks/serve_check.py",
        "--engine",
        engine,
        "--json",
        rows,
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, cwd=tmp_path)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(found) == cases
    assert {row["case"]: row["named"] for row in found} == {row["case"]: row["fault"] for row in found}
