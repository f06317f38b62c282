"""The context of a model directory: its config's, or its tokenizer's where the factor is larger than that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yarn_ops.models.context import context_tokens_of
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Rope
from yarn_ops.records import Local
from yarn_ops.shipped import MODELS

BASE = MODELS / "base512"


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({"factor": 4}, 2048),
        ({"target_context_tokens": 2048}, 2048),
        ({"factor": 8, "target_context_tokens": 2048}, 2048),
        ({"factor": 8, "target_context_tokens": 4096}, 4096),
        ({"factor": 8, "target_context_tokens": 2048, "method": "linear"}, 2048),
        ({"factor": 8, "target_context_tokens": 2048, "method": "dynamic-ntk"}, 2048),
        ({"factor": 4, "method": "dynamic-ntk"}, 2048),
    ],
)
def test_it_is_the_target_whatever_the_factor(asked: dict, tokens: int, tmp_path: Path) -> None:
    base, rope, out = inspect_checkpoint(BASE, source="base"), Rope.model_validate(asked), tmp_path / "out"
    factor = rope.resolve_factor(512)
    made = patch(rope, Local(base, BASE), out, factor=factor)
    assert (made.factor, made.target_context_tokens) == (factor, tokens)
    assert context_tokens_of(out) == tokens
    config = json.loads((out / "config.json").read_text())
    reads = 512 if rope.method == "dynamic-ntk" else 512 * factor
    assert config["max_position_embeddings"] == reads, "transformers 4.51 to 4.55 derive the factor from it"
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == tokens


@pytest.mark.parametrize("stated", [10**30, 2048, 512, 128, None, "many", True])
def test_a_tokenizer_s_limit_that_is_no_target_is_passed_over(stated: object, tmp_path: Path) -> None:
    base = inspect_checkpoint(BASE, source="base")
    patch(Rope(factor=4), Local(base, BASE), tmp_path / "out", factor=4)
    path = tmp_path / "out/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": stated}))
    assert context_tokens_of(tmp_path / "out") == 2048
    path.unlink()
    assert context_tokens_of(tmp_path / "out") == 2048
    assert context_tokens_of(BASE) == 512
