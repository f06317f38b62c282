"""Compare remedies on one model: from its directory and documents to the table of SideBySide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from yarn_ops.data.files import Files
from yarn_ops.data.haystack import STANDARD_LIBRARY, Decode, Encode, read_haystack
from yarn_ops.errors import EvaluationError
from yarn_ops.evals.subject import Subject, open_subject
from yarn_ops.evals.tasks.needles import TEMPLATES
from yarn_ops.models.device import Dtype
from yarn_ops.models.files import read_config
from yarn_ops.progress import OnProgress
from yarn_ops.recipe import Rope
from yarn_ops.remedies.attention_sinks import AttentionSinkMemory, require_pre_rope
from yarn_ops.remedies.blocks import BlockMemory
from yarn_ops.remedies.remedy import ASKED_TOKENS, FullMemory, Reading, Remedy
from yarn_ops.remedies.search import Agent, Search
from yarn_ops.remedies.side_by_side import SideBySide, cases, measure
from yarn_ops.rope.config import patch_config
from yarn_ops.rope.fields import rope_type

LEAST_WINDOW = 4 * ASKED_TOKENS
NOT_SCALED = "default"
PASSAGES = 4
"""that a search reads for a question"""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A comparison to make: model, documents and questions."""

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


def compare(asked: Asked, files: Files, *, device: str, precision: Dtype, progress: OnProgress) -> SideBySide:
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
    questions = cases(texts, subject.encode, asked.templates, length, asked.seed)

    model = subject.load(device, precision)
    base = model
    if asked.base is not None or asked.factor is not None:
        base = open_subject(asked.base or asked.model).load(device, precision)
    remedies, unavailable = remedies_of(
        model, base, window=window, encode=subject.encode, decode=subject.tokenizer.decode,
        prefix=haystack.prefix,
    )  # fmt: skip
    return SideBySide(
        model=asked.name,
        context_tokens=length,
        window_tokens=window,
        device=torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        rows=measure(remedies, questions, model.device, asked.seed, progress),
        unavailable=unavailable,
    )


def remedies_of(
    model: PreTrainedModel,
    base: PreTrainedModel,
    *,
    window: int,
    encode: Encode,
    decode: Decode,
    prefix: Sequence[int] = (),
) -> tuple[list[Remedy], dict[str, str]]:
    """Every remedy on an extended model, and last the `base` that it was, with the text cut to `window`.

    A buffer is as long as the window; blocks and passages fill half of it at most. The second value names the
    remedies that this model cannot have, with the reason. EvaluationError for a window below LEAST_WINDOW.
    """
    if window < LEAST_WINDOW:
        raise EvaluationError(
            f"a window of {window} tokens leaves no room to compare remedies; they need {LEAST_WINDOW}"
        )
    device, block = model.device, min(64, window // 16)
    chosen, near = min(8, window // (4 * block)), min(16, window // (4 * block))

    def blocks() -> BlockMemory:
        return BlockMemory(model, block_tokens=block, chosen=chosen, near=near)

    remedies: list[Remedy] = [Reading("full attention", lambda: FullMemory(model), device)]
    late = [
        Reading("rolling buffer", lambda: AttentionSinkMemory(model, buffer_tokens=window), device),
        Reading("block selection", blocks, device),
    ]
    unavailable: dict[str, str] = {}
    try:
        require_pre_rope(model)
        remedies += late
    except EvaluationError as error:
        unavailable = {remedy.name: str(error) for remedy in late}
    searches = [Search(model, decode, 2 * block, PASSAGES, prefix) for _ in range(2)]
    remedies += [searches[0], Agent(searches[1], encode)]
    remedies.append(Reading("text cut to the window", lambda: FullMemory(base), device, cut=window))
    return remedies, unavailable


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
