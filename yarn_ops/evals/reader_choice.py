"""Which forward and which reader a model gets: the quickest whose answers are the model's own.

Two ways through a model in bf16 differ by rounding, and by how much depends on the model: on random tokens
SmolLM2-135M's log-probabilities are up to .7 nats a token from those of float32, either way. No fixed
tolerance tells a fault from that. So both ways are held against the model computed in float32, and the shared
one may be twice as far from it as the usual one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from yarn_ops.data.haystack import Ids
from yarn_ops.evals.examples import Example, Question, Tokens
from yarn_ops.evals.reader import FILLING_FLOP, Reader, SharedReader, WholeReader
from yarn_ops.models import lean, suffix
from yarn_ops.rope.methods import LENGTH_DEPENDENT, RopeSpec

log = logging.getLogger(__name__)

LEAN_DEVICES = ("cuda",)
PROBE = {"cuda": (2096, 1300, 1024, 1024)}
SMALL_PROBE = (48, 20, 16, 4)
"""tokens of the texts, of what they share, of a chunk and of the grain that the second is cut at; on a GPU so
many that the kernel that plans is asked too"""
FURTHER = 2.0
"""how many times as far from float32 as the usual way the shared way may be"""
EXACT_NATS = 1e-3
"""a distance that is rounding whatever the model"""


def quicken(model: PreTrainedModel, spec: RopeSpec | None) -> None:
    """Run the model by the lean forward from now on, with the quickest kernel by which its answers are as
    near to float32 as its own, read whole or in parts; by its own forward where none is, or on a CPU, where
    the calls cost little."""
    if model.device.type not in LEAN_DEVICES or spec is None or spec.method in LENGTH_DEPENDENT:
        return
    if not (lean.served(model) and suffix.stands_for(model.config._attn_implementation)):
        return
    probe = _Probe(model)
    for kernel in suffix.kernels(model.device.type).values():
        lean.install(model, kernel)
        if probe.reads_alike() and probe.whole_alike():
            return
    lean.remove(model)


def open_reader(model: PreTrainedModel, spec: RopeSpec | None) -> Reader:
    """The quickest reader whose answers, on this model and device, are those of whole forwards.

    Not shared: where the rotation depends on the length (`spec`), where attention has a window, where the
    cache cannot be cut, or where a probe of the model shows a difference.
    """
    if spec is None or spec.method in LENGTH_DEPENDENT or _windowed(model.config):
        return WholeReader(model)
    if lean.installed(model):
        return SharedReader(model, side_by_side=_Probe(model).side_by_side_alike())
    usual = model.config._attn_implementation
    ours = suffix.register_attention(model.device.type) if suffix.stands_for(usual) else ()
    probe = _Probe(model)
    for implementation in (*ours, usual):
        model.set_attn_implementation(implementation)
        if probe.reads_alike():
            return SharedReader(model, side_by_side=probe.side_by_side_alike())
    model.set_attn_implementation(usual)
    return WholeReader(model)


def _windowed(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None) or ()
    if kinds:
        return any(kind != "full_attention" for kind in kinds)
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)


class _Probe:
    """Random texts and questions, and the model's answers to them in float32."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        draw, words = np.random.default_rng(0), model.config.vocab_size
        tokens, common, self._chunk, self._grain = PROBE.get(model.device.type, SMALL_PROBE)
        self._text, self._other = draw.integers(0, words, (2, tokens))
        self._other[:common] = self._text[:common]

        def some(tokens: int) -> Tokens:
            return tuple(draw.integers(0, words, tokens).tolist())

        self._questions = [
            Question(some(2), some(6), (some(4),)),
            Question(some(1), some(8)),
            Question(some(3), some(5), (some(3),)),
        ]
        with lean.own_forward(model):
            with _in_float32(model):
                self._exact = self._answers(WholeReader(model), [self._text])
            whole = self._exact
            if model.dtype != torch.float32:
                whole = self._answers(WholeReader(model), [self._text])
        self._allowed = max(EXACT_NATS, FURTHER * self._distance(whole))

    def reads_alike(self) -> bool:
        """Whether chunks, a cut and packed questions, by the attention that is set, are near enough."""
        reader = SharedReader(self._model, self._chunk, self._grain)
        return self._alike(lambda: self._answers(reader, [self._other, self._text]))

    def side_by_side_alike(self) -> bool:
        """Whether texts in one batch are near enough; False on a device that one text fills."""
        reader = SharedReader(self._model, self._chunk, self._grain)
        return self._model.device.type in FILLING_FLOP and self._alike(lambda: self._side_by_side(reader))

    def whole_alike(self) -> bool:
        """Whether whole forwards are near enough."""
        return self._alike(lambda: self._answers(WholeReader(self._model), [self._text]))

    def _side_by_side(self, reader: SharedReader) -> Tensor:
        """As `_answers`, beside a text that begins alike and is shorter."""
        texts = [(self._other[:-1], self._questions[:1]), (self._text, self._questions)]
        _, logits = reader.logits_side_by_side([Example(ids, tuple(asked)) for ids, asked in texts])
        return logits.log_softmax(-1)

    def _alike(self, answers: Callable[[], Tensor]) -> bool:
        try:
            distance = self._distance(answers())
        except torch.OutOfMemoryError:
            raise
        except (
            Exception
        ) as error:  # a foreign forward refuses in any way it likes; whole ones are always right
            found = repr(error)
        else:
            if distance <= self._allowed:
                return True
            found = f"{distance:.2g} nats from float32, {self._allowed:.2g} allowed"
        way = "the lean forward" if lean.installed(self._model) else self._model.config._attn_implementation
        log.info("%s by %s: %s", type(self._model).__name__, way, found)
        return False

    def _answers(self, reader: SharedReader | WholeReader, texts: Sequence[Ids]) -> Tensor:
        """Log-probabilities, float32 [answer tokens, V], after the last of the texts was read."""
        for text in texts:
            reader.read(text)
        return reader.logits(self._questions).log_softmax(-1)

    def _distance(self, answers: Tensor) -> float:
        """Root mean square over answer tokens and vocabulary; infinite where it is no number."""
        return float((answers - self._exact).square().mean().sqrt().nan_to_num(torch.inf))


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, each module computes with float32 copies of its parameters, made for its forward."""
    kept: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                kept.setdefault(parameter, parameter.data)
                parameter.data = parameter.data.float()

    def narrow(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter in kept:
                parameter.data = kept.pop(parameter)

    hooks = [
        hook
        for module in model.modules()
        for hook in (
            module.register_forward_pre_hook(widen),
            module.register_forward_hook(narrow, always_call=True),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
