"""What a fingerprint is read by: on a GPU float32 products of ten bits, much nearer to float32 than bfloat16
is, and the lean forward where it says what the model's own forward says."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.models.suffix import KERNELS
from yarn_ops.serving.reading import (
    SAME_NATS,
    TokenisedText,
    forward,
    forward_ends,
    in_bfloat16,
    lean_kernel,
)

TOKENS = 16_384


def small(tokens: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=tokens,
            initializer_range=0.1,
        )
    ).eval()  # fmt: skip


def test_the_lean_forward_says_what_the_models_own_says():
    model = small(256)
    texts = [TokenisedText(torch.randint(0, 512, (n,)).tolist(), [9, 40, n]) for n in (150, 97)]
    own, kernel = forward(model, texts), KERNELS["cpu"]["cpu"]
    assert lean_kernel(model, texts[0]) is None  # a processor's figures stay what they are
    assert abs(forward(model, texts, kernel) - own).max() < 1e-4
    ends, own_ends = (forward_ends(model, texts, own, 64, one) for one in (kernel, None))
    assert 0 < abs(ends - own_ends).max() < 1e-4
    assert abs(own_ends - own).max() > 0.1
    assert "forward" not in vars(model.base_model)


def test_in_bfloat16_the_parameters_are_rounded_and_come_back():
    model = small(128)
    text = [TokenisedText(torch.randint(0, 512, (100,)).tolist(), [50, 100])]
    before, frequencies = forward(model, text), model.base_model.rotary_emb.inv_freq.clone()
    with in_bfloat16(model):
        assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
        assert torch.equal(model.base_model.rotary_emb.inv_freq, frequencies)
        rounded = forward(model, text)
    assert (forward(model, text) == before).all()
    assert (rounded == forward(small(128).bfloat16(), text)).mean() < 1  # whose frequencies are rounded, too
    assert 0 < abs(rounded - before).mean() < 0.3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_long_texts_are_read_several_times_as_exactly_as_in_bf16():
    model = small(TOKENS).cuda()
    ids = torch.randint(0, 512, (TOKENS,)).tolist()
    text = [TokenisedText(ids, list(range(TOKENS // 2, TOKENS + 1, 512)))]
    quick = torch.from_numpy(forward(model, text))
    kernel = lean_kernel(model, text[0])
    assert kernel is not None
    lean = torch.from_numpy(forward(model, text, kernel))
    assert torch.get_float32_matmul_precision() == "highest"
    assert model.config._attn_implementation == "sdpa"
    rounded = torch.from_numpy(forward(copy.deepcopy(model).bfloat16(), text))
    places = torch.tensor(text[0].places, device="cuda") - 1
    with torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact = model(torch.tensor([ids], device="cuda"), logits_to_keep=places, use_cache=False).logits[0]
    exact = exact.log_softmax(-1).cpu()
    allowed = (rounded - exact).square().mean().sqrt() / 3
    for way in (quick, lean):
        assert 0 < (way - exact).square().mean().sqrt() <= allowed
    assert (quick - lean).square().mean().sqrt() <= SAME_NATS
