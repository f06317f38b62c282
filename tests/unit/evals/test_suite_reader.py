"""Reading what is shared once: the same answers as whole forwards, for fewer tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from suite_parts import SIZES, SPEC, documents
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from yarn_ops.evals import reader as reading
from yarn_ops.evals.examples import Example, Question
from yarn_ops.evals.reader import SharedReader, WholeReader
from yarn_ops.evals.reader_choice import open_reader
from yarn_ops.evals.tasks import needles
from yarn_ops.models import suffix

QUESTIONS = [
    Question((5, 7, 9), (3, 4), ((6, 5, 2), (8,))),
    Question((11,), (2,)),
    Question((1, 2), (60, 61, 62), ((63, 64, 65),)),
]


def texts() -> list[np.ndarray]:
    """Three that begin alike for 30, then 10 tokens, and one that has nothing in common."""
    rng = np.random.default_rng(0)
    first, *others = rng.integers(0, 97, (4, 57))
    others[0][:30] = first[:30]
    others[1][:10] = first[:10]
    return [first, *others]


@pytest.mark.parametrize("chunk_tokens", [8, 57, 4096])
def test_shared_reading_equals_whole_forwards(tiny_llama, chunk_tokens):
    shared, whole = SharedReader(tiny_llama, chunk_tokens), WholeReader(tiny_llama)
    for text in texts():
        shared.read(text)
        whole.read(text)
        for ours, theirs in zip(shared.ask(QUESTIONS), whole.ask(QUESTIONS), strict=True):
            assert ours.nll == pytest.approx(theirs.nll, abs=1e-4)
            assert (ours.right, ours.chosen) == (theirs.right, theirs.chosen)
        assert shared.write((3,), 9, lambda ids: False) == whole.write((3,), 9, lambda ids: False)
    assert shared.write((3,), 9, lambda ids: len(ids) == 4) == whole.write((3,), 4, lambda ids: False)


def test_what_was_read_is_not_read_again(tiny_llama):
    reader = SharedReader(tiny_llama)
    for text, tokens in zip(texts(), (57, 57 - 30, 57 - 10, 57), strict=True):
        before = reader.read_tokens
        reader.read(text)
        assert reader.read_tokens - before == tokens
        reader.read(text)
        assert reader.read_tokens - before == tokens


def test_a_grid_is_read_from_its_needles_on(tiny_llama, encode):
    samples = needles.grid(("code",), documents(encode), 1024, 8, 1, 0)
    reader = SharedReader(tiny_llama)
    for sample in samples:
        reader.read(sample.context % 97)
    questions = sum(len(sample.questions) for sample in samples)
    assert questions * 1024 > 5 * reader.read_tokens


def test_a_reader_is_chosen_by_what_the_model_can(tiny_llama):
    assert isinstance(open_reader(tiny_llama, SPEC), SharedReader)
    assert isinstance(open_reader(tiny_llama, None), WholeReader)
    late = SPEC.model_copy(update={"method": "dynamic-ntk", "factor": 4.0})
    assert isinstance(open_reader(tiny_llama, late), WholeReader)
    windowed = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)).eval()
    assert isinstance(open_reader(windowed, SPEC), WholeReader)


def test_a_model_whose_cache_lies_is_read_whole():
    class Forgetful(LlamaForCausalLM):
        """Its keys and values are of another text than it read."""

        @property
        def base_model(self):
            def read(input_ids, **options):
                shifted = input_ids.roll(1, -1) if options.get("use_cache") else input_ids
                return self.model(input_ids=shifted, **options)

            return read

    torch.manual_seed(0)
    assert isinstance(open_reader(Forgetful(LlamaConfig(**SIZES)).eval(), SPEC), WholeReader)


@pytest.mark.parametrize("grain_tokens", [4, 16])
def test_a_grain_changes_where_reading_begins_and_nothing_else(tiny_llama, grain_tokens):
    coarse, fine = SharedReader(tiny_llama, 16, grain_tokens), SharedReader(tiny_llama, 16)
    for text in texts():
        for reader in (coarse, fine):
            reader.read(text)
        for ours, theirs in zip(coarse.ask(QUESTIONS), fine.ask(QUESTIONS), strict=True):
            assert ours.nll == pytest.approx(theirs.nll, abs=1e-4)
    assert coarse.read_tokens - fine.read_tokens == 30 % grain_tokens + 10 % grain_tokens
    assert coarse.write((3,), 9, lambda ids: False) == fine.write((3,), 9, lambda ids: False)
    many = QUESTIONS * 60  # more than one forward's
    coarse.read(texts()[1])
    fine.read(texts()[1])
    for ours, theirs in zip(coarse.ask(many), fine.ask(many), strict=True):
        assert ours.nll == pytest.approx(theirs.nll, abs=1e-4)
    coarse.read(texts()[2])
    fine.read(texts()[2])
    for one, other in zip(coarse.attended((1, 2)), fine.attended((1, 2)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def suffix_attention(query, key, value, mask=None):
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    return suffix.attend(suffix.KERNELS["cpu"]["cpu"], module, query, key, value, mask, scaling=0.3)[0]


def reference(query, key, value, seen):
    scores = 0.3 * query @ key.repeat_interleave(2, 1).transpose(-1, -2)
    wanted = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)
    return wanted.transpose(1, 2)


def test_suffix_attention_is_the_masked_one():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 10, 8), torch.randn(1, 2, 10, 8)
    causal = torch.ones(3, 10, dtype=torch.bool).tril(7)
    ours = suffix_attention(query, key, value)
    torch.testing.assert_close(ours, reference(query, key, value, causal), rtol=1e-5, atol=1e-6)
    packed = causal.clone()
    packed[2, 7:9] = False  # a question that sees the text and itself, not the one before it
    ours = suffix_attention(query, key, value, packed[None, None])
    torch.testing.assert_close(ours, reference(query, key, value, packed), rtol=1e-5, atol=1e-6)


def test_on_a_cpu_the_suffix_kernel_reads(tiny_llama):
    open_reader(tiny_llama, SPEC)
    assert tiny_llama.config._attn_implementation == f"{suffix.NAME}-cpu"


def many_examples(lengths=(61, 57, 57, 57, 57, 57)) -> list[Example]:
    """The texts, one of them twice and one longer, each with questions of its own."""
    rng = np.random.default_rng(1)
    whole = [*texts(), texts()[1], np.concatenate([texts()[0], rng.integers(0, 97, 400)])]
    return [
        Example(text, tuple(QUESTIONS[: 1 + index % 3])) for index, text in enumerate([whole[0][:-4], *whole])
    ]


@pytest.mark.parametrize("grain_tokens", [1, 4, 16])
@pytest.mark.parametrize("attention", ["sdpa", f"{suffix.NAME}-cpu"])
def test_texts_side_by_side_are_answered_as_alone(monkeypatch, tiny_llama, grain_tokens, attention):
    """Beginnings that are shared are read once; lengths and questions differ."""
    suffix.register_attention("cpu")
    tiny_llama.set_attn_implementation(attention)
    examples, alone = many_examples(), SharedReader(tiny_llama, 16, grain_tokens)
    assert alone.ask_side_by_side(examples) is None  # on a CPU one alone fills it
    monkeypatch.setattr(reading, "FILLING_FLOP", {"cpu": 1e12})
    monkeypatch.setattr(reading, "REST_TOKENS", 8)
    beside = SharedReader(tiny_llama, 32, grain_tokens)
    answered = beside.ask_side_by_side(examples)
    for example, ours in zip(examples, answered, strict=True):
        alone.read(example.context)
        theirs = alone.ask(example.questions)
        for one, other in zip(ours, theirs, strict=True):
            assert one.nll == pytest.approx(other.nll, abs=1e-4)
            assert (one.right, one.chosen) == (other.right, other.chosen)
    assert beside.read_tokens < sum(len(example.context) for example in examples)
    assert SharedReader(tiny_llama, 32, side_by_side=False).ask_side_by_side(examples) is None
    many = [*examples, Example(examples[0].context, tuple(QUESTIONS * 60))]  # more than one forward's
    assert beside.ask_side_by_side(many) is None

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(SharedReader, "_select", full)
    assert beside.ask_side_by_side(examples) is None  # then one after the other


def test_as_many_are_side_by_side_as_fill_the_chip_and_fit(monkeypatch, tiny_llama):
    examples, beside = many_examples()[:-1], SharedReader(tiny_llama, 32, 16)

    def batches() -> list[int]:
        return [len(batch) for batch in beside._batches(sorted(examples, key=lambda one: len(one.context)))]

    monkeypatch.setattr(reading, "FILLING_FLOP", {"cpu": 1e12})
    assert batches() == [6]
    monkeypatch.setattr(reading, "FILLING_FLOP", {"cpu": 3 * 2 * tiny_llama.num_parameters() * 57})
    assert batches() == [3, 3]
    monkeypatch.setattr(reading, "FILLING_FLOP", {"cpu": 1e12})
    sizes = tiny_llama.config
    of_token = 2 * 4 * sizes.num_hidden_layers * sizes.num_key_value_heads * sizes.head_dim
    monkeypatch.setattr(SharedReader, "_cache_bytes", lambda _: 2.5 * (57 + 57 + 40) * of_token)
    assert batches() == [2, 2, 2]
    monkeypatch.setattr(SharedReader, "_cache_bytes", lambda _: of_token)
    assert batches() == [1] * 6
    assert beside.ask_side_by_side(examples) is None
