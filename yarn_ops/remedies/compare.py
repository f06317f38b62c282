"""From a model directory and documents to the remedies side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from yarn_ops.data.files import Files
from yarn_ops.errors import EvaluationError
from yarn_ops.evals.recall import TEMPLATES
from yarn_ops.evals.suite.haystack import STANDARD_LIBRARY, read_haystack
from yarn_ops.evals.suite.subject import Subject, open_subject
from yarn_ops.models.files import read_config
from yarn_ops.recipe import Rope
from yarn_ops.remedies.side_by_side import Progress, SideBySide, families, measure
from yarn_ops.remedies.usual import usual_remedies
from yarn_ops.rope.config import patch_config
from yarn_ops.rope.fields import rope_type

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
    documents: Sequence[str] = STANDARD_LIBRARY
    context_tokens: int | None = None
    """None: what the config allows"""
    windows: int = 16
    templates: Sequence[str] = ("code",)
    seed: int = 0


def compare(
    asked: Asked, files: Files, *, device: str, dtype: Literal["fp32", "bf16"], report: Progress
) -> SideBySide:
    """Every remedy on the same questions in `asked.windows` documents of `asked.context_tokens`.

    EvaluationError, DataError, RopeError or BaseModelError where the request cannot be met; documents and
    questions are made before a model is loaded.
    """
    if unknown := [name for name in asked.templates if name not in TEMPLATES]:
        raise EvaluationError(f"--templates: {unknown[0]!r} is unknown; there is {', '.join(TEMPLATES)}")
    subject = _open(asked)
    if subject.spec is None:
        raise EvaluationError(f"{asked.name}: its positions are not rotary; it reads no further than trained")
    length, window = asked.context_tokens or subject.context_tokens, subject.original_context_tokens
    if length <= window:
        raise EvaluationError(
            f"{asked.name}: {length} tokens lie within the {window} that it was trained on, where nothing "
            "needs a remedy; give a longer --length, or extend it with --factor"
        )
    haystack = read_haystack(
        asked.documents, files, asked.model, subject.vocab_size, encode=subject.encode,
        tokens=asked.windows * (length + 1), seed=asked.seed,
    )  # fmt: skip
    texts = haystack.windows(asked.windows, length + 1, asked.seed)
    decode = subject.tokenizer.decode
    cases = families(texts, subject.encode, decode, asked.templates, length, asked.seed)

    model = subject.load(device, dtype)
    base = model
    if asked.base is not None or asked.factor is not None:
        base = open_subject(asked.base or asked.model).load(device, dtype)
    remedies, unavailable = usual_remedies(
        model, base, window=window, encode=subject.encode, decode=decode, prefix=haystack.prefix
    )
    return SideBySide(
        model=asked.name,
        context_tokens=length,
        window_tokens=window,
        device=torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        rows=measure(remedies, cases, asked.seed, report),
        unavailable=unavailable,
    )


def _open(asked: Asked) -> Subject:
    """The model as it is to be read: by its own config, or zero-shot by YaRN."""
    if asked.factor is None:
        return open_subject(asked.model, name=asked.name)
    config = read_config(asked.model)
    if rope_type(config) != NOT_SCALED:
        raise EvaluationError(f"--factor: {asked.name} is already extended; leave the factor out")
    if not 1 < asked.factor < math.inf:
        raise EvaluationError(f"--factor: {asked.factor:g} extends nothing; give target / original context")
    rope = Rope(method="yarn", factor=asked.factor)
    patched, _ = patch_config(config, rope, factor=asked.factor, original_context_tokens=None)
    return open_subject(asked.model, name=asked.name, config=patched)
