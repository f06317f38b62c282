"""Extended models to export: base512 ×4, and small random ones of every class that becomes a GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config

FACTOR, ORIGINAL_TOKENS = 4.0, 512
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8256,  # more rows than tokens, as published models have
    "max_position_embeddings": ORIGINAL_TOKENS,
    "eos_token_id": 0,
    "initializer_range": 0.1,
}

Extend = Callable[..., Path]


def extend(base: Path, out: Path, **rope: Any) -> Path:
    """A copy of a base with its config extended, weights as they are."""
    asked = Rope(**{"method": "yarn", "factor": FACTOR, **rope})
    shutil.copytree(base, out)
    config = json.loads((base / "config.json").read_bytes())
    patched, _ = patch_config(config, asked, factor=FACTOR, original_context_tokens=ORIGINAL_TOKENS)
    (out / "config.json").write_text(json.dumps(patched))
    return out


@pytest.fixture
def extended(base512: Path, tmp_path: Path) -> Extend:
    """extended(**rope): base512, extended ×4 to 2048 tokens."""
    return lambda **rope: extend(base512, tmp_path / "extended", **rope)


@pytest.fixture
def random_model(base512: Path, tmp_path: Path) -> Extend:
    """random_model(model_type, **config): random weights, base512's tokenizer, extended ×4."""

    def make(model_type: str, **changes: Any) -> Path:
        torch.manual_seed(0)
        config = CONFIG_MAPPING[model_type](**{**SMALL, "sliding_window": None, **changes})
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith((".bias", "norm.weight")):  # as built they are 0 and 1, which hides their loss
                torch.nn.init.normal_(parameter, mean=float(not name.endswith(".bias")), std=0.3)
        model.bfloat16().save_pretrained(tmp_path / "random")  # float16 holds these values exactly
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(base512 / name, tmp_path / "random" / name)
        return extend(tmp_path / "random", tmp_path / f"{model_type}-extended")

    return make


@pytest.fixture
def quiet() -> Callable[[int, int, str], None]:
    return lambda done, total, note: None
