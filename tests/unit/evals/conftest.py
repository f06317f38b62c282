"""A tiny random Llama, the small real tokenizer, and scorecards written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from yarn_ops.evals.names import BY_POSITION, LAST_QUARTER
from yarn_ops.scores import Score, Scorecard
from yarn_ops.shipped import MODELS

BASE512 = MODELS / "base512"
VOCAB = 97

Encode = Callable[[str], list[int]]


@pytest.fixture(scope="session")
def tiny_llama() -> PreTrainedModel:
    """Random weights, wide enough (initializer 0.2) that its losses differ from ln(vocabulary)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def base512_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(BASE512)


@pytest.fixture(scope="session")
def encode(base512_tokenizer: PreTrainedTokenizerFast) -> Encode:
    return lambda text: base512_tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture
def scorecard() -> Callable[..., Scorecard]:
    """scorecard(perplexity={512: 8.9}, code={512: .97}, prose={}, depths={2048: (.1, .9)}) -> Scorecard"""

    def build(
        perplexity: Mapping[int, float],
        code: Mapping[int, float] | None = None,
        prose: Mapping[int, float] | None = None,
        depths: Mapping[int, tuple[float, ...]] | None = None,
        by_position: Mapping[int, float] | None = None,
    ) -> Scorecard:
        def score(task: str, length: int, value: float, depth: float | None = None) -> Score:
            spread = 0.05 * value
            return Score(
                task=task, context_tokens=length, depth=depth, value=value, low=value - spread,
                high=value + spread, samples=96, seed=0,
            )  # fmt: skip

        scores = [score(LAST_QUARTER, length, value) for length, value in perplexity.items()]
        for template, values in (("code", code or {}), ("prose", prose or {})):
            scores += [score(f"recall/{template}", length, value) for length, value in values.items()]
        for length, parts in (depths or {}).items():
            scores += [
                score("recall/code", length, value, (part + 0.5) / len(parts))
                for part, value in enumerate(parts)
            ]
        scores += [score(BY_POSITION, end, value) for end, value in (by_position or {}).items()]
        return Scorecard(model_digest="0" * 64, original_context_tokens=512, scores=tuple(scores))

    return build
