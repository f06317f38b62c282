"""A base served with its adapter: the engine adds the LoRA matrices, the base brings the longer RoPE.

An adapter does not carry its base's RoPE, so base and adapter are exported together, the base with the
patched config.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from yarn_ops.errors import ExportError
from yarn_ops.export.engines import Engine
from yarn_ops.export.model import Export, new_directory, place_files
from yarn_ops.export.serving import serving_settings
from yarn_ops.models.checkpoints import checkpoint_files
from yarn_ops.models.context import context_tokens_of
from yarn_ops.models.files import CONFIG as BASE_CONFIG
from yarn_ops.models.files import GENERATION_CONFIG, read_config, tokenizer_files, write_object
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.patch import prove_directory
from yarn_ops.rope.config import rope_spec_of

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
SERVERS: tuple[Engine, ...] = ("vllm", "vllm-0.29", "sglang")
LORA_MARK = ".lora_"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # --max-lora-rank takes no other
OF_THE_BASE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "model_type")


def export_adapter(adapter: Path, engine: Engine, *, base: Path, patched: Path, to: Path) -> Export:
    """Write `to`/base (weights of `base`, config and tokenizer of `patched`) and `to`/adapter; the command.

    `base` is the unextended model, `patched` any directory with the extended model's config.json. Raises
    ExportError where the engine serves no adapters, or the adapter trained more than LoRA matrices.
    """
    if engine not in SERVERS:
        raise ExportError(f"--adapter: {engine} is given the merged model; leave --adapter out")
    rank = _rank(adapter, engine)
    config = read_config(patched)
    settings = serving_settings(config, engine, context_tokens_of(patched))
    spec = rope_spec_of(config)
    inspect_checkpoint(base, source=str(base), original_context_tokens=spec.original_context_tokens)
    plain = read_config(base)
    for key in OF_THE_BASE:
        if plain.get(key) != config.get(key):
            raise ExportError(
                f"{patched}: {key} is {config.get(key)}, but {plain.get(key)} in {base}; "
                "give the base that was extended"
            )
    with new_directory(to) as partial:
        beside = {
            name for name in (GENERATION_CONFIG, *tokenizer_files(patched)) if (patched / name).is_file()
        }
        of_base = set(checkpoint_files(base)) - beside - {BASE_CONFIG}
        place_files(base, partial / "base", of_base)
        place_files(patched, partial / "base", beside)
        write_object(partial / "base", BASE_CONFIG, config)
        prove_directory(partial / "base", spec)
        if settings.config is not None:
            write_object(partial / "base", BASE_CONFIG, settings.config)
        place_files(adapter, partial / "adapter", (CONFIG, TENSORS))
    command = settings.command(str(to / "base"), adapter=str(to / "adapter"), rank=rank)
    return Export(command, settings.requires)


def _rank(adapter: Path, engine: Engine) -> int:
    """What --max-lora-rank has to be for an adapter of LoRA matrices alone."""
    described = _describe(adapter)
    whole = sorted(name for name in _names(adapter / TENSORS) if LORA_MARK not in name)
    merge = "serve the merged model instead: leave --adapter out"
    if whole or described.get("modules_to_save"):
        trained = whole[0] if whole else described["modules_to_save"][0]
        raise ExportError(
            f"{adapter}: trained norms or embeddings ({trained}, {len(whole)} in all), and {engine} serves "
            f"LoRA matrices only; {merge}"
        )
    if described.get("use_dora") or described.get("bias", "none") != "none":
        raise ExportError(f"{adapter / CONFIG}: {engine} serves neither DoRA nor LoRA biases; {merge}")
    rank = int(described["r"])
    if engine == "sglang":
        return rank
    if rank > VLLM_RANKS[-1]:
        raise ExportError(f"{adapter / CONFIG}: rank {rank}, and vLLM serves up to {VLLM_RANKS[-1]}; {merge}")
    return next(served for served in VLLM_RANKS if served >= rank)


def _describe(adapter: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads((adapter / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{adapter / CONFIG}: unreadable ({error}); name the directory of a LoRA adapter, "
            "or serve the merged model"
        ) from None
    return described


def _names(tensors: Path) -> list[str]:
    try:
        with safe_open(tensors, framework="numpy") as opened:
            names = list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{tensors}: unreadable ({error}); train again") from None
    if not names:
        raise ExportError(f"{tensors}: holds no tensor; train again")
    return names
