"""Whether a directory is a checkpoint that can be extended: complete, sound, of one model, without code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from yarn_ops.atomic import atomic_write
from yarn_ops.digests import digest_of, file_digest
from yarn_ops.errors import BaseModelError, ProofError, RopeError
from yarn_ops.models.checkpoints import (
    OUTPUT_HEADS,
    WEIGHTS,
    built_config,
    load_tokenizer,
    refuse_code,
    refuse_links,
    tensor_shapes,
    weight_map,
)
from yarn_ops.models.files import CONFIG, read_config, tokenizer_files
from yarn_ops.models.sizes import Shapes, check_sizes
from yarn_ops.records import BaseModel
from yarn_ops.rope.architectures import require_window
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.rope.fields import rope_thetas, rope_type
from yarn_ops.rope.methods import RopeSpec

INPUT_EMBEDDINGS = (".embed_tokens.weight", ".embed_in.weight")
COMPARED_BYTES = 1 << 24
CAUSAL = re.compile("[A-Za-z][A-Za-z0-9_]{0,70}ForCausalLM")
MULTIPLY_HEAD_DIM = ("yarn", "dynamic", "longrope")
"""kinds of RoPE for which transformers takes a null head_dim for a number"""
FOUND = 2
"""Raise it when `_Found` holds other things, or more is required of what is found."""


class _Found(NamedTuple):
    """What transformers makes of config and tokenizer files."""

    tied_head: bool
    head_dim: int
    largest_token: int
    """-1: none"""


_KEPT = TypeAdapter(_Found)
AskTransformers = Callable[[Path, Mapping[str, Any], RopeSpec], _Found]
"""as `ask_transformers`"""


def inspect_checkpoint(
    path: Path, *, source: str, original_context_tokens: int | None = None, kept: Path | None = None,
    ask: AskTransformers | None = None, only_read: bool = False,
) -> BaseModel:  # fmt: skip
    """Record (without tree) of a causal language model directory that is complete, sound and free of code.

    `source` is what the user asked for. `original_context_tokens` says what the base was trained on, and is
    required where its config is already scaled. `kept`: a directory that keeps what transformers makes of the
    same files, so that it is asked once. `ask`: how it is asked, `ask_transformers` if left out. `only_read`:
    it is not extended, so it may be scaled as it is. Raises BaseModelError in one line.
    """
    if not path.is_dir():
        raise BaseModelError(f"{path}: no such directory; name a model directory or shipped:base512")
    refuse_code(path)
    refuse_links(path)
    config = read_config(path)
    architecture = _architecture(path, config)
    thetas = rope_thetas(config)
    if not thetas:
        raise BaseModelError(
            f"{path / CONFIG}: no rope_theta, and only models with rotary positions can be extended; "
            "if it is one, write the base's there (10000.0 for Llama 1 and 2)"
        )
    for key, theta in thetas.items():
        if theta <= 1:
            raise BaseModelError(f"{path / CONFIG}: {key} is {theta:g} and must be above 1; correct it")
    context_tokens = _original_context(path, config, original_context_tokens, only_read)
    try:
        spec = rope_spec_of(config)
        require_window(config)
    except RopeError as error:
        raise BaseModelError(f"{path / CONFIG}: {error}") from None

    vocab_size = _whole_number(path, config, "vocab_size")
    shapes = tensor_shapes(path)
    _check_embedding(path, shapes, vocab_size)
    check_sizes(path / CONFIG, config, shapes)
    found = _found(path, config, kept, shapes, lambda: (ask or ask_transformers)(path, config, spec))
    repeated = _check_head(path, shapes, tied=found.tied_head)
    _check_tokenizer(path, found.largest_token, vocab_size)
    return BaseModel(
        source=source,
        architecture=architecture,
        model_type=str(config.get("model_type")),
        parameters=sum(math.prod(shape) for name, shape in shapes.items() if name not in repeated),
        vocab_size=vocab_size,
        context_tokens=context_tokens,
        head_dim=found.head_dim,
        rope_theta=next(iter(thetas.values())),
    )


def _found(
    path: Path, config: Mapping[str, Any], kept: Path | None, shapes: Shapes, ask: Callable[[], _Found]
) -> _Found:
    """By transformers, or as kept of files of the same bytes and tensors."""
    names = [CONFIG, *tokenizer_files(path)]
    files = {name: file_digest(path / name) for name in names} if kept else {}
    place = kept / f"{digest_of([FOUND, version('transformers'), files, shapes])}.json" if kept else None
    if place is not None and place.is_file():
        try:
            return _KEPT.validate_json(place.read_bytes())
        except (OSError, ValidationError):
            pass  # damaged: asked again, and replaced
    found = ask()
    if place is not None:
        with suppress(OSError):  # what cannot be kept is asked again
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(place) as draft:
                draft.write_bytes(_KEPT.dump_json(found))
    return found


def ask_transformers(path: Path, config: Mapping[str, Any], spec: RopeSpec) -> _Found:
    """What transformers, whose import takes seconds, makes of a model directory.

    The base's own model is laid out: every tensor has its place, and its RoPE is the one that config.json
    says. BaseModelError where it does not.
    """
    built = built_config(config, str(path / CONFIG))
    if rope_type(config) in MULTIPLY_HEAD_DIM and getattr(built, "head_dim", 0) is None:
        raise BaseModelError(
            f"{path / CONFIG}: head_dim: null or missing, with which transformers cannot scale the RoPE of "
            f"{built.model_type}; write {_head_dim(path, built)}"
        )
    _require_whole_model(path, spec)
    tokens = load_tokenizer(path).get_vocab().values()
    return _Found(bool(built.tie_word_embeddings), _head_dim(path, built), max(tokens, default=-1))


def _require_whole_model(path: Path, spec: RopeSpec) -> None:
    from yarn_ops.models.loading import require_loadable
    from yarn_ops.models.patch import prove_directory

    require_loadable(path)
    try:
        prove_directory(path, spec)
    except ProofError as error:
        raise BaseModelError(f"{path}: {error}") from None


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "nothing"
    if not CAUSAL.fullmatch(name):
        raise BaseModelError(
            f"{path / CONFIG}: architectures names {name[:60]}; only …ForCausalLM models with rotary "
            "positions can be extended; choose another base"
        )
    return name


def _original_context(path: Path, config: Mapping[str, Any], given: int | None, only_read: bool) -> int:
    limit = _whole_number(path, config, "max_position_embeddings")
    kind = rope_type(config)
    if given is None and kind != "default" and not only_read:
        raise BaseModelError(
            f"{path / CONFIG}: RoPE is already scaled ({kind}); give base.original_context_tokens, "
            "what the base was trained on before that"
        )
    if given is not None and given > limit:
        raise BaseModelError(
            f"base.original_context_tokens: {given} is above the {limit} of {path / CONFIG}'s "
            "max_position_embeddings; correct it"
        )
    return given or limit


def _head_dim(path: Path, built: Any) -> int:
    try:
        return int(getattr(built, "head_dim", None) or built.hidden_size // built.num_attention_heads)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        raise BaseModelError(
            f"{path / CONFIG}: hidden_size and num_attention_heads give no size of a head; correct them"
        ) from None


def _whole_number(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise BaseModelError(f"{path / CONFIG}: {key} is {value!r} and must be a whole number above 0")
    return value


def _check_embedding(path: Path, shapes: Mapping[str, tuple[int, ...]], vocab_size: int) -> None:
    found = [name for name in shapes if name.endswith(INPUT_EMBEDDINGS)]
    if not found:
        raise BaseModelError(f"{path}: the weights hold no token embedding; download the checkpoint again")
    for name in found:
        if len(shapes[name]) != 2 or shapes[name][0] != vocab_size:
            raise BaseModelError(
                f"{path}: {name} has shape {list(shapes[name])} but config.json says vocab_size "
                f"{vocab_size}; weights and config are not of one model, download both again"
            )


def _check_head(path: Path, shapes: Mapping[str, tuple[int, ...]], *, tied: bool) -> set[str]:
    """Names of output heads that merely repeat the embedding."""
    heads = [name for name in shapes if name in OUTPUT_HEADS]
    if not tied:
        return set()
    embedding = next(name for name in shapes if name.endswith(INPUT_EMBEDDINGS))
    for head in heads:
        if shapes[head] != shapes[embedding] or not _equal(path, head, embedding):
            raise BaseModelError(
                f"{path}: tie_word_embeddings is true but {head} is not {embedding}; "
                "weights and config are not of one model, download both again"
            )
    return set(heads)


def _equal(path: Path, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint are equal, a few rows at a time."""
    import torch
    from safetensors import safe_open

    def rows(tensor: str) -> Any:
        file = path / (WEIGHTS if (path / WEIGHTS).is_file() else weight_map(path)[tensor])
        return safe_open(file, framework="pt").get_slice(tensor)

    first, second = rows(one), rows(other)
    height, width = first.get_shape()
    step = max(1, COMPARED_BYTES // (4 * width))
    return first.get_dtype() == second.get_dtype() and all(
        torch.equal(first[start : start + step], second[start : start + step])
        for start in range(0, height, step)
    )


def _check_tokenizer(path: Path, largest: int, vocab_size: int) -> None:
    if largest < 0:
        raise BaseModelError(f"{path}: the tokenizer is empty; add the base's tokenizer files")
    if largest >= vocab_size:
        raise BaseModelError(
            f"{path}: the tokenizer's largest id is {largest} but the embedding has {vocab_size} rows; "
            "the tokenizer is not this model's"
        )
