"""Tiny random models with grouped heads, extended by YaRN; and attention written out token by token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

VOCAB = 128
CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
Sees = Callable[[int, int, int, Tensor, Tensor], list[int]]
"""(layer, key head, place, unturned queries [R, D], unturned keys [n, D]) -> places seen, ascending"""


def tiny(kind: str, **values) -> PreTrainedModel:
    config_class, model_class = CLASSES[kind]
    torch.manual_seed(0)
    asked = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
        },
    }  # fmt: skip
    return model_class(config_class(**asked | values)).eval()


@torch.inference_mode()
def token_by_token(model: PreTrainedModel, ids: Tensor, sees: Sees) -> Tensor:
    """Logits [N, V], every token attending to what `sees` says, laid out from position 0 without gaps."""
    body = model.model
    kept: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    logits = []
    for place, token in enumerate(ids):
        hidden = body.embed_tokens(token[None])
        for number, layer in enumerate(body.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(hidden)[0]
            query = attention.q_proj(normed).view(-1, attention.head_dim)
            key = attention.k_proj(normed).view(-1, attention.head_dim)
            value = attention.v_proj(normed).view(-1, attention.head_dim)
            outputs = []
            for head, queries in enumerate(query.chunk(len(key))):
                held = kept.setdefault((number, head), [])
                held.append((key[head], value[head]))
                keys, values = (torch.stack(column) for column in zip(*held, strict=True))
                seen = sees(number, head, place, queries, keys)
                turned = turn(body, keys[seen], torch.arange(len(seen)))
                asking = turn(body, queries, torch.full((len(queries),), len(seen) - 1))
                weights = (asking @ turned.T * attention.scaling).softmax(-1)
                outputs.append(weights @ values[seen])
            hidden = hidden + attention.o_proj(torch.cat(outputs).view(1, -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits.append(model.lm_head(body.norm(hidden))[0])
    return torch.stack(logits)


def turn(body, x: Tensor, positions: Tensor) -> Tensor:
    cos, sin = (part[0] for part in body.rotary_emb(x, positions[None]))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
