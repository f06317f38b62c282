"""From a model directory and documents to the remedies side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yarn_ops.checkpoints import load_tokenizer, read_config, rope_type
from yarn_ops.data.files import Files
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.errors import EvaluationError
from yarn_ops.recipe import Rope
from yarn_ops.remedies.documents import read_texts
from yarn_ops.remedies.side_by_side import Progress, SideBySide, families, measure
from yarn_ops.remedies.usual import usual_remedies
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.rope.proof import load_proven

NOT_SCALED = "default"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to compare, on what."""

    model: Path
    name: str
    base: Path | None = None
    """the model before it was extended; None: `model` itself, by its own config"""
    factor: float | None = None
    """read an unscaled `model` zero-shot by YaRN with that factor"""
    documents: Sequence[str] = ("stdlib:**/*.py",)
    context_tokens: int | None = None
    """None: what the config allows"""
    windows: int = 16
    templates: Sequence[str] = ("code",)
    seed: int = 0


def compare(
    asked: Asked, files: Files, *, device: torch.device | str, dtype: torch.dtype, report: Progress
) -> SideBySide:
    """Every remedy on the same questions in `asked.windows` documents of `asked.context_tokens`.

    EvaluationError, DataError, RopeError or BaseModelError where the request cannot be met; documents and
    questions are made before a model is loaded.
    """
    config, window = _extended(asked)
    length = asked.context_tokens or int(config["max_position_embeddings"])
    if length <= window:
        raise EvaluationError(
            f"--length: {length} tokens lie within the {window} that {asked.name} was trained on, where "
            "nothing needs a remedy; ask for more, or extend it with --factor"
        )
    tokenizer = load_tokenizer(asked.model)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    fast = Tokenizer(asked.model, int(config["vocab_size"]))
    texts = read_texts(asked.documents, files, fast, count=asked.windows, tokens=length + 1, seed=asked.seed)
    cases = families(texts, encode, tokenizer.decode, asked.templates, length, asked.seed)

    model = load_proven(asked.model, config, rope_spec_of(config), dtype=dtype, device=device)
    base = model
    if asked.base is not None or asked.factor is not None:
        source = asked.base or asked.model
        own = read_config(source)
        base = load_proven(source, own, rope_spec_of(own), dtype=dtype, device=device)
    remedies, unavailable = usual_remedies(
        model,
        base,
        window=window,
        encode=encode,
        decode=tokenizer.decode,
        prefix=[int(token) for token in fast.prefix],
    )
    return SideBySide(
        model=asked.name,
        context_tokens=length,
        window_tokens=window,
        device=_device_name(model.device),
        rows=measure(remedies, cases, asked.seed, report),
        unavailable=unavailable,
    )


def _extended(asked: Asked) -> tuple[Mapping[str, Any], int]:
    """The config to read the model by, and the window that its base was trained on."""
    config = read_config(asked.model)
    scaled = rope_type(config) != NOT_SCALED
    if scaled and asked.factor is not None:
        raise EvaluationError(f"--factor: {asked.name} is already extended; leave the factor out")
    if asked.factor is not None:
        rope = Rope(method="yarn", factor=asked.factor)
        config, spec = patch_config(config, rope, factor=asked.factor, original_context_tokens=None)
        return config, spec.original_context_tokens
    return config, rope_spec_of(config).original_context_tokens


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
