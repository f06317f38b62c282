"""What every test shares: the checkout's paths and a quiet, closed environment."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

CHECKOUT = Path(__file__).parent.parent

hypothesis.settings.register_profile("repository", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("repository")

for name in [name for name in os.environ if name.startswith(("YARN_OPS_", "PREFECT_", "MLFLOW_"))]:
    del os.environ[name]  # no test may reach what the person at this machine uses
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def base512() -> Path:
    """The demo's base: a real Llama of 5 M parameters, 512 tokens."""
    return CHECKOUT / "infra" / "models" / "base512"
