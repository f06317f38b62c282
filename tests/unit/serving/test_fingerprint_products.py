"""On a GPU a fingerprint is of float32 products of ten bits: much nearer to float32 than bfloat16 is."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.serving.reading import TokenisedText, forward

TOKENS = 16_384


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_long_texts_are_read_several_times_as_exactly_as_in_bf16():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=TOKENS,
            initializer_range=0.1,
        )
    ).cuda().eval()  # fmt: skip
    ids = torch.randint(0, 512, (TOKENS,)).tolist()
    text = [TokenisedText(ids, list(range(TOKENS // 2, TOKENS + 1, 512)))]
    quick = torch.from_numpy(forward(model, text))
    assert torch.get_float32_matmul_precision() == "highest"
    assert model.config._attn_implementation == "sdpa"
    rounded = torch.from_numpy(forward(copy.deepcopy(model).bfloat16(), text))
    places = torch.tensor(text[0].places, device="cuda") - 1
    with torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact = model(torch.tensor([ids], device="cuda"), logits_to_keep=places, use_cache=False).logits[0]
    exact = exact.log_softmax(-1).cpu()
    error = (quick - exact).square().mean().sqrt()
    assert 0 < error <= (rounded - exact).square().mean().sqrt() / 3
