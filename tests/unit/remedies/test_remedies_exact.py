"""Where its setting makes a remedy full attention, it is; elsewhere it is what a loop over tokens does."""

from __future__ import annotations

import pytest
import torch
from attention_loop import VOCAB, tiny, token_by_token
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from yarn_ops.errors import EvaluationError
from yarn_ops.models import pre_rope
from yarn_ops.remedies import attention_sinks, blocks, remedy
from yarn_ops.remedies.attention_sinks import AttentionSinkMemory
from yarn_ops.remedies.blocks import BlockMemory

DOCUMENT = 93
TOLERANCE = {"atol": 3e-5, "rtol": 1e-4}

EXACT = {
    "full": remedy.FullMemory,
    "rolling, buffer as long as the text": lambda model: AttentionSinkMemory(model, buffer_tokens=110),
    "rolling, a longer buffer": lambda model: AttentionSinkMemory(model, buffer_tokens=500),
    "blocks, all chosen": lambda model: BlockMemory(model, block_tokens=8, chosen=20, near=1),
    "blocks, all near": lambda model: BlockMemory(model, block_tokens=8, chosen=0, near=13),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a document is read in several, none of them of a round length."""
    monkeypatch.setattr(remedy, "CHUNK_TOKENS", 13)
    monkeypatch.setattr(attention_sinks, "CHUNK_TOKENS", 17)
    monkeypatch.setattr(blocks, "CHUNK_TOKENS", 24)


def answer(memory, ids):
    memory.read(ids[:DOCUMENT])
    return memory.ask(ids[DOCUMENT:], len(ids) - DOCUMENT)


@pytest.mark.parametrize("name", EXACT)
def test_it_is_full_attention(model, ids, name) -> None:
    with torch.inference_mode():
        own = model(input_ids=ids[None]).logits[0, DOCUMENT:]
    memory = EXACT[name](model)
    assert_close(answer(memory, ids), own, **TOLERANCE)
    assert memory.seen == len(ids)
    again = memory.ask(ids[DOCUMENT:], 3)
    assert_close(again, own[-3:], **TOLERANCE)  # the first question is forgotten


def test_a_rolling_buffer_sees_the_first_and_the_last(model, ids) -> None:
    """20 tokens: 4 sinks and 16 others, with itself; positions are ranks among them."""

    def sees(layer, head, place, queries, keys):
        return sorted({*range(min(4, place + 1)), *range(max(0, place - 15), place + 1)})

    memory = AttentionSinkMemory(model, buffer_tokens=20)
    assert_close(answer(memory, ids), token_by_token(model, ids, sees)[DOCUMENT:], **TOLERANCE)
    assert memory.seen == 20
    assert memory.held_bytes == 2 * 2 * 2 * 20 * 8 * 4  # K and V, layers, heads, tokens, width, fp32


def test_blocks_are_chosen_as_a_loop_chooses_them(model, ids) -> None:
    """Shortlist by bounds, then the best products; for a document's block by its first query."""
    size, chosen, near = 8, 2, 1
    choices: dict[tuple[int, int, int], list[int]] = {}

    def choose(own, queries, keys):
        first_near = max(0, own - near)
        candidates = list(range(1, first_near))

        def bound(block):
            part = keys[block * size : (block + 1) * size]
            least, most = part.amin(0), part.amax(0)
            return max(float(torch.maximum(query * least, query * most).sum()) for query in queries)

        def best(block):
            return float((queries @ keys[block * size : (block + 1) * size].T).max())

        listed = sorted(candidates, key=bound, reverse=True)[: blocks.SHORTLIST * chosen]
        picked = sorted(listed, key=best, reverse=True)[:chosen]
        return sorted({*([0] if first_near else []), *picked, *range(first_near, own + 1)})

    def sees(layer, head, place, queries, keys):
        own = place // size
        reading = place < DOCUMENT
        name = (layer, head, own if reading else -place)
        if name not in choices:
            choices[name] = choose(own, queries, keys)
        return [
            at for block in choices[name] for at in range(block * size, (block + 1) * size) if at <= place
        ]

    wanted = token_by_token(model, ids, sees)
    memory = BlockMemory(model, block_tokens=size, chosen=chosen, near=near)
    assert_close(answer(memory, ids), wanted[DOCUMENT:], **TOLERANCE)
    assert memory.seen == (1 + chosen + near) * size + (len(ids) - 1) % size + 1
    with torch.inference_mode():
        own = model(input_ids=ids[None]).logits[0, DOCUMENT:]
    assert (wanted[DOCUMENT:] - own).abs().max() > 0.1  # so few blocks are not full attention


@pytest.mark.parametrize("name", ["rolling", "blocks"])
@pytest.mark.parametrize("chunk", [8, 40, 200])
def test_chunks_do_not_matter(model, ids, name, chunk, monkeypatch) -> None:
    make = {
        "rolling": lambda: AttentionSinkMemory(model, buffer_tokens=20),
        "blocks": lambda: BlockMemory(model, block_tokens=8, chosen=2, near=1),
    }[name]
    wanted = answer(make(), ids)
    monkeypatch.setattr(attention_sinks, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(blocks, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(blocks, "GATHERED_ELEMENTS", 1000 * chunk)
    assert_close(answer(make(), ids), wanted, **TOLERANCE)


def test_no_token_is_chosen_for_by_a_later_one(model, ids) -> None:
    memory = BlockMemory(model, block_tokens=8, chosen=2, near=1)
    wanted = answer(memory, ids)
    other = ids.clone()
    other[-5:] = (other[-5:] + 1) % VOCAB
    assert_close(memory.ask(other[DOCUMENT:], len(ids) - DOCUMENT)[:-5], wanted[:-5], **TOLERANCE)


def test_a_model_is_left_as_it_was(model, ids) -> None:
    with torch.inference_mode():
        before = model(input_ids=ids[None]).logits
        attention_sinks.require_pre_rope(model)
        answer(AttentionSinkMemory(model, buffer_tokens=20), ids)
        assert torch.equal(model(input_ids=ids[None]).logits, before)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type dynamic",
        ),
        ({"sliding_window": 16, "use_sliding_window": True}, "sliding window"),
    ],
)
def test_what_cannot_be_laid_out_anew_is_refused(values, reason) -> None:
    with pytest.raises(EvaluationError, match=reason):
        attention_sinks.require_pre_rope(tiny("qwen2", **values))


def test_a_class_of_another_make_is_refused() -> None:
    """GPT-NeoX turns a quarter of each head; GPT-2 turns nothing."""
    torch.manual_seed(0)
    neox = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    gpt2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    for model in (GPTNeoXForCausalLM(neox).eval(), GPT2LMHeadModel(gpt2).eval()):
        with pytest.raises(EvaluationError, match=type(model).__name__):
            attention_sinks.require_pre_rope(model)


def test_attention_that_is_not_the_models_own_is_refused(monkeypatch) -> None:
    """As where a class turns its heads in another way than halves."""
    model = tiny("llama")
    monkeypatch.setattr(pre_rope.Rotation, "turn", lambda self, x, positions: x)
    with pytest.raises(EvaluationError, match="not its own attention"):
        attention_sinks.require_pre_rope(model)
