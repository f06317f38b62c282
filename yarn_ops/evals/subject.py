"""The model under test: any causal language model directory with a tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarn_ops.data.haystack import Chat, Encode
from yarn_ops.data.tokenizer import within_texts
from yarn_ops.digests import digest_of, file_digest
from yarn_ops.errors import BaseModelError, DataError, UnprovenRope
from yarn_ops.evals.cells import ModelUnderTest
from yarn_ops.models.checkpoints import checkpoint_files, load_tokenizer, refuse_code, tensor_shapes
from yarn_ops.models.context import context_tokens_of
from yarn_ops.models.device import Dtype, torch_dtype
from yarn_ops.models.files import CONFIG, read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.models.sizes import check_sizes
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.rope.fields import rope_thetas
from yarn_ops.rope.methods import RopeSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model directory as it is measured; `spec` None: its positions are not rotary, or not proven."""

    path: Path
    name: str
    config: Mapping[str, Any]
    spec: RopeSpec | None
    rotary: bool
    """whether its positions are rotary; with no `spec` they are not proven"""
    context_tokens: int
    """what it is made for, as its config says, or its tokenizer where the factor is larger than that needs"""
    original_context_tokens: int
    """what it was trained on before any scaling of its positions"""
    encode: Encode
    """what goes on within a text"""
    tokenizer: Any

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def chat(self) -> Chat | None:
        """How its chat template frames an answer; None without one that can be applied."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None

        def framed(asked: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            before, found, end = text.rpartition(answer)
            if not found or not end.strip():
                raise DataError("skills: the chat template does not say where an answer begins and ends")
            first, said = tuple(self.encode_whole(before)), tuple(self.encode(answer))
            return first, said, tuple(self.encode(end.lstrip()))[:1]

        try:
            framed("What?", "That.")
        except Exception as error:  # a template is a program of the model's, and fails in its own ways
            log.info("%s: chats are not measured: %r", self.name, error)
            return None
        return framed

    def encode_whole(self, text: str) -> Sequence[int]:
        """Token ids of a text from its beginning on, without what the tokenizer puts before it."""
        return self.tokenizer.encode(text, add_special_tokens=False, verbose=False)

    def digest(self) -> str:
        """Of the files that make up the checkpoint, and of the config it is read by."""
        files = {name: file_digest(self.path / name) for name in checkpoint_files(self.path)}
        return digest_of([files, dict(self.config)])

    def under_test(self, device: str, precision: Dtype) -> ModelUnderTest:
        """Nothing is loaded yet."""
        return ModelUnderTest(lambda: self.load(device, precision), self.spec)

    def load(self, device: str, precision: Dtype) -> Any:
        """The model in evaluation mode; its RoPE is proven where it has one."""
        return load_proven(self.path, self.config, self.spec, dtype=torch_dtype(precision), device=device)


def open_subject(path: Path, *, name: str | None = None, config: Mapping[str, Any] | None = None) -> Subject:
    """Read config and tokenizer; nothing is loaded. `config` replaces the directory's (zero-shot patches).

    BaseModelError: no model directory, code, pickled weights, no tokenizer, no context length.
    """
    if not path.is_dir():
        raise BaseModelError(f"{path}: no such directory; name a model directory or shipped:base512")
    refuse_code(path)
    values = read_config(path) if config is None else config
    check_sizes(path / CONFIG, values, tensor_shapes(path))
    name, rotary, spec = name or path.name, bool(rope_thetas(values)), None
    try:
        spec = rope_spec_of(values) if rotary else None
    except UnprovenRope as error:
        log.warning("%s: measured as transformers loads it; its RoPE is not proven: %s", name, error)
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    limit: int | None = next((values[key] for key in keys if isinstance(values.get(key), int)), None)
    if limit is None:
        raise BaseModelError(f"{path / 'config.json'}: says no context length (max_position_embeddings)")
    if not isinstance(values.get("vocab_size"), int):
        raise BaseModelError(f"{path / 'config.json'}: vocab_size is missing; download the checkpoint again")
    tokenizer = load_tokenizer(path)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    within = None if fast is None else within_texts(fast)

    def encode(text: str) -> Sequence[int]:
        if within is None or within is fast:
            return tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return within.encode(text, add_special_tokens=False).ids

    if spec is not None and config is None:
        limit = min(limit, context_tokens_of(path))
    original = spec.original_context_tokens if spec is not None else limit
    return Subject(path, name, values, spec, rotary, limit, original, encode, tokenizer)
