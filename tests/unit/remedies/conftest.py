"""What every test of the remedies shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attention_loop import CLASSES, VOCAB, tiny
from torch import Tensor
from transformers import PreTrainedModel

from yarn_ops.data.haystack import Encode, Ids
from yarn_ops.models.checkpoints import load_tokenizer


@pytest.fixture(scope="session", params=list(CLASSES))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(request.param)


@pytest.fixture(scope="session")
def ids() -> Tensor:
    """All different: keys of equal tokens tie in the first layer."""
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))[:110]


@pytest.fixture(scope="session")
def tokenizer(base512: Path):
    return load_tokenizer(base512)


@pytest.fixture(scope="session")
def encode(tokenizer) -> Encode:
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(scope="session")
def texts(tokenizer) -> list[Ids]:
    """Pieces of words: nothing that looks like a key, nor any word of a question."""
    pieces = [token for token in range(300, 700) if "assert" not in tokenizer.decode([token])]
    return list(np.random.default_rng(0).choice(pieces, (3, 600)))
