"""The patch stage: a base's config and tokenizer, rewritten for a longer context and proven."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from yarn_ops import recipe
from yarn_ops.atomic import atomic_write
from yarn_ops.models.checkpoints import quiet_transformers
from yarn_ops.models.files import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    copy_model_files,
    read_config,
    read_object,
    tokenizer_files,
    write_object,
)
from yarn_ops.models.loading import lay_out
from yarn_ops.records import BaseModel, Local, PatchedModel
from yarn_ops.rope.config import patch_config
from yarn_ops.rope.methods import RopeSpec, attention_factor
from yarn_ops.rope.proof import prove, rotary_modules


def patch(rope: recipe.Rope, base: Local[BaseModel], out: Path, *, factor: float) -> PatchedModel:
    """Write the patched config, the tokenizer and the generation config into `out`, without weights.

    The model's own rotary module, built by transformers from the written config, must hold the reference
    frequencies. `out` appears whole or not at all. Raises RopeError (ProofError where the proof fails).
    """
    original = base.record.context_tokens
    config = read_config(base.path)
    patched, spec = patch_config(config, rope, factor=factor, original_context_tokens=original)
    target = min(rope.target_context_tokens or spec.target_context_tokens, spec.target_context_tokens)
    with atomic_write(out) as draft:
        draft.mkdir()
        _write_files(base.path, draft, config, patched, target)
        error = prove_directory(draft, spec)
    return PatchedModel(
        parents=(base.record.digest,),
        method=spec.method,
        factor=factor,
        original_context_tokens=original,
        target_context_tokens=target,
        attention_factor=attention_factor(spec, spec.target_context_tokens),
        inverse_frequency_error=error,
    )


def _write_files(
    base: Path, out: Path, config: Mapping[str, Any], patched: Mapping[str, Any], target_context_tokens: int
) -> None:
    copy_model_files(base, out, tokenizer_files(base))
    tokenizer_config = {**_read(base, TOKENIZER_CONFIG), "model_max_length": target_context_tokens}
    write_object(out, TOKENIZER_CONFIG, tokenizer_config)
    if generation := _read(base, GENERATION_CONFIG):
        if generation.get("max_length") == config.get("max_position_embeddings"):
            generation["max_length"] = target_context_tokens
        write_object(out, GENERATION_CONFIG, generation)
    write_object(out, CONFIG, patched)


def prove_directory(path: Path, spec: RopeSpec) -> float:
    """Prove what transformers builds from a directory's config, without its weights; as `proof.prove`.

    Only the rotary modules are built.
    """
    layout = lay_out(path)
    with quiet_transformers():
        rotary = {
            name.replace(".", "_"): type(module)(module.config) for name, module in rotary_modules(layout)
        }
    return prove(torch.nn.ModuleDict(rotary), spec)


def _read(folder: Path, name: str) -> dict[str, Any]:
    return read_object(folder, name) if (folder / name).is_file() else {}
