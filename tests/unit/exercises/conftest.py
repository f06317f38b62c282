from __future__ import annotations

import pytest

from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.shipped import MODELS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODELS / "base512", 1 << 16)
