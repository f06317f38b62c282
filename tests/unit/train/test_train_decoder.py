"""Our layers against transformers' own, their derivatives, and their policies against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import LENGTHS, SIZES, decode, gradients, small_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from yarn_ops.models.device import unsupported
from yarn_ops.train.plan import HOST_LADDER, LADDER, LayerPolicy
from yarn_ops.train.projection import parameter_gradients

CONFIGS = (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)


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


@pytest.mark.parametrize(
    ("config", "values"),
    [
        *((config, {"head_dim": width}) for config in (LlamaConfig, Qwen3Config) for width in (64, 96, 256)),
        (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
        (Qwen3Config, {"attention_bias": True}),
        (Qwen3Config, {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 16}),
    ],
    ids=str,
)
@pytest.mark.parametrize("whole", [False, True], ids=["lora", "full"])
def test_heads_of_any_width_and_biases(config: Any, values: dict[str, Any], whole: bool) -> None:
    model = small_model(config, whole=whole, **values)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    ids_BT = torch.randint(0, 96, (1, sum(LENGTHS)))
    expected = model.model(input_ids=ids_BT).last_hidden_state
    expected_gradients = gradients(model, expected)
    hidden = decode(model, ids_BT, False, LADDER[-1])
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)
    found = gradients(model, hidden)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-12, name


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
def test_norms_learn_beside_adapters_without_gradients_of_frozen_weights(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.requires_grad_(True)
    ids_BT = torch.randint(0, 96, (1, sum(LENGTHS)))
    expected = gradients(model, model.model(input_ids=ids_BT).last_hidden_state)
    full = []

    def watched(*arguments: Any) -> Any:
        full.append(arguments[-1])
        return parameter_gradients(*arguments)

    monkeypatch.setattr("yarn_ops.train.layer.parameter_gradients", watched)
    monkeypatch.setattr("yarn_ops.train.mlp.parameter_gradients", watched)
    found = gradients(model, decode(model, ids_BT, False, LADDER[2]))
    assert full and not any(full)  # a third more products, for nothing
    assert found.keys() == expected.keys() and any("norm" in name for name in found)
    for name, gradient in expected.items():
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
def test_what_is_kept_changes_no_bit(config: Any, dtype: torch.dtype, tile_rows: int) -> None:
    model = small_model(config, dtype=dtype)
    ids_BT = torch.randint(0, 96, (1, sum(LENGTHS)))
    found = []
    for policy in [*LADDER[:-1], HOST_LADDER[1], *LADDER[-1:] * (tile_rows > 7)]:  # kept whole: no tiles
        hidden = decode(model, ids_BT, True, policy, tile_rows)
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
