"""Our layers against transformers' own, their derivatives, and their policies against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from yarn_ops.train.decoder import Decoder, unsupported
from yarn_ops.train.layer import LayerPolicy
from yarn_ops.train.plan import LADDER

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
LENGTHS = (20, 1, 29)


def small_model(
    config: Any, *, whole: bool = False, dtype: torch.dtype = torch.float64, **values: Any
) -> Any:
    torch.manual_seed(0)
    built = config(**SIZES | values, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(built, dtype=torch.float32).to(dtype)
    if not whole:
        targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=targets), model)
        model.to(dtype)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name)
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: PreTrainedModel, hidden_BTD: Tensor) -> dict[str, Tensor]:
    """Of a fixed random function of the hidden states."""
    random = torch.Generator().manual_seed(1)
    weights = torch.randn(hidden_BTD.shape, dtype=torch.bfloat16, generator=random).to(hidden_BTD.dtype)
    model.zero_grad()
    (hidden_BTD * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def decode(model: PreTrainedModel, ids_BT: Tensor, packed: bool, policy: LayerPolicy) -> Tensor:
    positions_BT = torch.cat([torch.arange(n) for n in LENGTHS]).expand(ids_BT.shape) if packed else None
    dtype = next(model.parameters()).dtype
    return Decoder(model, dtype, [policy] * len(model.model.layers))(ids_BT, positions_BT)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("whole", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("packed", [False, True], ids=["one", "packed"])
def test_hidden_states_and_every_gradient_are_transformers(config: Any, whole: bool, packed: bool) -> None:
    model = small_model(config, whole=whole)
    ids_BT = torch.randint(0, 96, (2, sum(LENGTHS)))
    pieces = ids_BT.split(list(LENGTHS), dim=1) if packed else [ids_BT]
    expected = torch.cat([model.model(input_ids=piece).last_hidden_state for piece in pieces], dim=1)
    expected_gradients = gradients(model, expected)

    hidden = decode(model, ids_BT, packed, LADDER[-1])
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)  # transformers' norms are float32
    found = gradients(model, hidden)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_float32_gradients_are_float64s_to_its_rounding() -> None:
    model = small_model(LlamaConfig, dtype=torch.float32)
    ids_BT = torch.randint(0, 96, (1, sum(LENGTHS)))
    found = gradients(model, decode(model, ids_BT, True, LADDER[-1]))
    exact = model.double()
    for name, gradient in gradients(exact, decode(exact, ids_BT, True, LADDER[-1])).items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tile_rows", [7, 1 << 15])
def test_what_is_kept_changes_no_bit(
    config: Any, dtype: torch.dtype, tile_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yarn_ops.train.decoder.TILE_ROWS", tile_rows)
    model = small_model(config, dtype=dtype)
    ids_BT = torch.randint(0, 96, (1, sum(LENGTHS)))
    found = []
    for policy in LADDER[:-1] if tile_rows == 7 else LADDER:  # kept whole, the MLP has no tiles
        hidden = decode(model, ids_BT, True, policy)
        found.append({"hidden": hidden.detach(), **gradients(model, hidden)})
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


@pytest.mark.parametrize("whole", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("policy", [LADDER[0], LADDER[-1]])
def test_gradcheck_in_float64(whole: bool, policy: LayerPolicy) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 5}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    model = small_model(Qwen3Config, whole=whole, **sizes, **heads)
    learning = [(n, p) for n, p in model.model.named_parameters() if p.requires_grad and "embed" not in n]
    ids_BT = torch.tensor([[3, 1, 4, 1, 2, 0]])

    def hidden(values: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            for (_, parameter), value in zip(learning, values, strict=True):
                parameter.copy_(value)
        return decode(model, ids_BT, False, policy)

    class Anew(torch.autograd.Function):
        """gradcheck runs backward many times over one forward; a layer's graph serves once."""

        @staticmethod
        def forward(ctx: Any, *values: Tensor) -> Tensor:
            ctx.save_for_backward(*values)
            return hidden(values).detach()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                output = hidden(ctx.saved_tensors)
            return torch.autograd.grad(output, [parameter for _, parameter in learning], grads)

    values = [parameter.detach().clone().requires_grad_() for _, parameter in learning]
    assert torch.autograd.gradcheck(Anew.apply, values)


def test_a_second_backward_is_refused() -> None:
    model = small_model(LlamaConfig)
    loss = decode(model, torch.arange(9)[None], False, LADDER[-1]).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="serves one backward"):
        loss.backward()


@pytest.mark.parametrize(
    ("config", "values", "reason"),
    [
        (GemmaConfig, {}, "not of Llama's shape"),
        (LlamaConfig, {"hidden_act": "gelu"}, "activation is gelu"),
        (LlamaConfig, {"attention_dropout": 0.1}, "drops attention out"),
        (MistralConfig, {"sliding_window": 64}, "slides over 64 tokens"),
        (MistralConfig, {"sliding_window": 128}, None),
        (Qwen2Config, {"sliding_window": 64, "use_sliding_window": False}, None),
    ],
)
def test_other_architectures_are_left_to_transformers(config: Any, values: Any, reason: str | None) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(**SIZES | values))
    found = unsupported(model, 100)
    assert (found is None) if reason is None else (found is not None and reason in found)
