"""The reader that a model gets: by an attention that transformers takes as it is, and as near to float32."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from suite_parts import SIZES, SPEC
from torch import Tensor
from transformers import (
    AttentionInterface,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations.hub_kernels import is_kernel
from transformers.utils.generic import is_flash_attention_requested

import yarn_ops
from yarn_ops.evals import forward, reader_choice
from yarn_ops.evals.forward import correct_predictions, foreign_texts, losses_and_foreign, token_losses
from yarn_ops.evals.reader import SharedReader, WholeReader
from yarn_ops.evals.reader_choice import _Probe, open_reader, quicken
from yarn_ops.models import lean, pre_rope, suffix
from yarn_ops.rope import dynamic
from yarn_ops.serving import reading
from yarn_ops.train import layerwise

SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "tie_word_embeddings": True, "rope_theta": 100_000.0,
}  # fmt: skip
REGISTERS = {
    "models/pre_rope.py", "models/suffix.py", "rope/dynamic.py", "serving/reading.py", "train/layerwise.py",
}  # fmt: skip
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def attention_names() -> set[str]:
    """Every attention that the product makes known to transformers, on any device."""
    return {
        pre_rope.ATTENTION, dynamic.register_attention(), layerwise.WHOLE_HEADS, reading.HALF,
        *(name for device in suffix.KERNELS for name in suffix.register_attention(device)),
    }  # fmt: skip


def test_every_registration_is_known_here():
    root = Path(yarn_ops.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"AttentionInterface\.register\(|ALL_ATTENTION_FUNCTIONS\[", path.read_text("utf-8"))
    }
    assert found == REGISTERS


@pytest.mark.parametrize("name", sorted(attention_names()))
def test_transformers_takes_no_name_for_something_else(name: str):
    """Neither for a package, nor for a kernel on the hub, nor for an attention with a mask of its own."""
    assert not any(is_flash_attention_requested(requested_attention_implementation=name, version=version)
                   for version in (None, 1, 2, 3, 4))  # fmt: skip
    assert not is_kernel(name)
    assert not any(word in name for word in ("flash", "sdpa", "flex", "eager", "paged", "|", "/", ":", "@"))
    AttentionInterface.register(name, AttentionInterface._global_mapping.get(name, lambda *_, **__: None))
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.set_attn_implementation(name)
    assert model.config._attn_implementation == name


def in_bf16(**sizes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "initializer_range": 0.2, **sizes})).bfloat16().eval()


def test_rounding_is_no_difference():
    """Logits so large that answers in bf16 are far from those in float32, by every way alike."""
    model = in_bf16(num_hidden_layers=8)
    model.lm_head.weight.data *= 40
    probe = _Probe(model)
    assert probe._allowed > 2 * 0.15  # nats a token that any model in bf16 was once allowed
    assert isinstance(open_reader(model, SPEC), SharedReader)
    assert model.config._attn_implementation == f"{suffix.NAME}-cpu"


def sharper(kernel: suffix.Kernel, *tensors: Tensor | bool, **_: object) -> tuple[Tensor, Tensor]:
    """A kernel whose scale is a tenth too large."""
    *others, scale = tensors
    return kernel(*others, 1.1 * scale)


def acausal(kernel: suffix.Kernel, *tensors: Tensor | bool) -> tuple[Tensor, Tensor]:
    q, k, v, _, scale = tensors
    return kernel(q, k, v, False, scale)


@pytest.mark.parametrize("fault", [sharper, acausal])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_that_is_wrong_falls_back(monkeypatch, fault: Callable[..., object], dtype: torch.dtype):
    """To the next, and after the last to the usual attention."""
    wrong = partial(fault, suffix.KERNELS["cpu"]["cpu"])
    model = in_bf16().to(dtype)
    monkeypatch.setattr(suffix, "KERNELS", {"cpu": {"wrong": wrong, "right": suffix.KERNELS["cpu"]["cpu"]}})
    assert isinstance(open_reader(model, SPEC), SharedReader)
    assert model.config._attn_implementation == f"{suffix.NAME}-right"
    model.set_attn_implementation("sdpa")
    monkeypatch.setattr(suffix, "KERNELS", {"cpu": {"wrong": wrong}})
    assert isinstance(open_reader(model, SPEC), SharedReader)
    assert model.config._attn_implementation == "sdpa"


def test_the_model_is_what_it_was():
    model = in_bf16()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    open_reader(model, SPEC)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_float32_is_the_float32_model():
    model = in_bf16()
    narrow, wide = _Probe(model), model.float()
    torch.testing.assert_close(narrow._exact, narrow._answers(WholeReader(wide), [narrow._text]))


FAMILIES = [
    (LlamaConfig, LlamaForCausalLM, {}),
    (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    (MistralConfig, MistralForCausalLM, {"sliding_window": None, "head_dim": 16}),
    (Qwen2Config, Qwen2ForCausalLM, {}),
    (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
]


@pytest.fixture
def lean_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_choice, "LEAN_DEVICES", ("cpu",))


@pytest.mark.parametrize(
    ("config", "kind", "sizes"), FAMILIES, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_lean_forward_is_the_model_s(
    lean_on_cpu: None, config: type, kind: type, sizes: dict[str, object]
):
    """Whole, in batches, in chunks behind a cache, of packed questions; attentions are its own forward's."""
    torch.manual_seed(0)
    model = kind(config(**{**SIZES, "num_key_value_heads": 2, "initializer_range": 0.2, **sizes})).eval()
    for parameter in model.parameters():  # biases and norms that matter
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    ids = torch.randint(0, model.config.vocab_size, (2, 50))
    own = model(input_ids=ids).logits
    probe = _Probe(model)
    quicken(model, SPEC)
    assert lean.installed(model) and probe.reads_alike() and probe.whole_alike()
    torch.testing.assert_close(model(input_ids=ids).logits, own, rtol=1e-4, atol=1e-4)
    reader = open_reader(model, SPEC)
    assert isinstance(reader, SharedReader)
    reader.read(ids[0].numpy())
    assert len(reader.attended((1, 2, 3))) == model.config.num_hidden_layers
    lean.remove(model)
    torch.testing.assert_close(model(input_ids=ids).logits, own, rtol=0, atol=0)


def test_a_model_in_bf16_is_read_lean_and_held_to_float32(lean_on_cpu: None):
    """The reader's probe computes in float32 by the model's own forward, also where the lean one stands."""
    model = in_bf16()
    quicken(model, SPEC)
    assert lean.installed(model)
    own = _Probe(in_bf16())
    assert torch.equal(_Probe(model)._exact, own._exact) and _Probe(model)._allowed == own._allowed
    assert isinstance(open_reader(model, SPEC), SharedReader)
    assert lean.installed(model)


@pytest.mark.parametrize("fault", [sharper, acausal])
def test_a_wrong_kernel_is_not_the_lean_forward_s(
    monkeypatch, lean_on_cpu: None, fault: Callable[..., object]
):
    model = in_bf16()
    wrong = partial(fault, suffix.KERNELS["cpu"]["cpu"])
    monkeypatch.setattr(suffix, "KERNELS", {"cpu": {"wrong": wrong}})
    quicken(model, SPEC)
    assert not lean.installed(model)


def test_what_is_not_llama_s_shape_keeps_its_forward(lean_on_cpu: None):
    for model in (
        GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1,
                                         num_attention_heads=2, intermediate_size=64)).eval(),
        LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")).eval(),
        MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)).eval(),
    ):  # fmt: skip
        quicken(model, SPEC)
        assert not lean.installed(model)


@gpu
@needs_cuda
def test_on_a_gpu_a_model_of_this_shape_is_read_lean():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2)).bfloat16().cuda().eval()
    quicken(model, SPEC)
    assert lean.installed(model)
    reader = open_reader(model, SPEC)
    assert isinstance(reader, SharedReader) and reader._side_by_side


def needs(kernel: str) -> None:
    if kernel not in suffix.kernels("cuda"):
        pytest.skip(f"{kernel} is not installed")


@gpu
@needs_cuda
@pytest.mark.parametrize("heads", [(9, 3, 64), (32, 8, 128), (15, 5, 64), (8, 8, 64), (14, 2, 64)], ids=str)
@pytest.mark.parametrize("rows", [16, 1000, 1024, 4096])
@pytest.mark.parametrize("kernel", sorted(suffix.KERNELS["cuda"]))
def test_a_kernel_of_the_gpu_is_as_exact_as_pytorch(kernel: str, rows: int, heads: tuple[int, int, int]):
    """Against float32, over a long text whose keys are a slice of a longer cache."""
    needs(kernel)
    query_heads, key_heads, width = heads
    torch.manual_seed(0)
    keys = 16_384 + rows
    query = torch.randn(1, rows, query_heads, width, device="cuda").bfloat16().transpose(1, 2) * 2
    key, value = torch.randn(2, 1, key_heads, keys + 64, width, device="cuda").bfloat16()[..., :keys, :]
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = query_heads // key_heads, True
    groups = query_heads // key_heads
    seen = torch.ones(rows, keys, dtype=torch.bool, device="cuda").tril(keys - rows)
    packed = seen.clone()
    packed[rows // 2 :, -rows : -rows // 2] = False
    for mask in (None, packed[None, None]):
        wide = [query.float(), *(part.float().repeat_interleave(groups, 1) for part in (key, value))]
        sees = seen if mask is None else packed
        exact = torch.cat([
            torch.nn.functional.scaled_dot_product_attention(
                *(part[:, head : head + 1] for part in wide), attn_mask=sees
            )
            for head in range(query_heads)
        ], 1)  # fmt: skip
        usual = torch.nn.functional.scaled_dot_product_attention(
            query, *(part.repeat_interleave(groups, 1) for part in (key, value)), attn_mask=sees
        )
        ours = suffix.attend(suffix.KERNELS["cuda"][kernel], module, query, key, value, mask)[0].transpose(
            1, 2
        )
        error = (ours.float() - exact).square().mean().sqrt()
        assert error <= 2 * (usual.float() - exact).square().mean().sqrt(), f"mask {mask is not None}"


@gpu
@needs_cuda
@pytest.mark.parametrize("kernel", sorted(suffix.KERNELS["cuda"]))
def test_smollm2_is_read_by_each_kernel_of_the_gpu(kernel: str):
    needs(kernel)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2)).bfloat16().eval().to("cuda")
    suffix.register_attention("cuda")
    probe = _Probe(model)
    model.set_attn_implementation(f"{suffix.NAME}-{kernel}")
    assert probe.reads_alike() and probe.side_by_side_alike()


def test_windows_longer_than_what_a_kernel_plans_for_are_filled_up(lean_on_cpu: None, monkeypatch):
    """For the lean forward; what is beyond a window changes none of its losses and predictions."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    windows = torch.randint(0, model.config.vocab_size, (3, 40)).numpy()
    losses, right = token_losses(model, windows, 20), correct_predictions(model, windows, 20)
    quicken(model, SPEC)
    assert lean.installed(model)
    monkeypatch.setattr(forward, "PLANNED_TOKENS", 16)
    read: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, options: read.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    torch.testing.assert_close(token_losses(model, windows, 20), losses, rtol=1e-5, atol=1e-5)
    assert (correct_predictions(model, windows, 20) == right).all()
    assert read == [48, 48]
    own, foreign = losses_and_foreign(model, windows, 20, 10, 8)  # 30 tokens of 48 are kept
    torch.testing.assert_close(own, losses, rtol=1e-5, atol=1e-5)
    texts = foreign_texts(windows, 10)
    lean.remove(model)
    torch.testing.assert_close(foreign, token_losses(model, texts, 8), rtol=1e-4, atol=1e-5)


def test_a_batch_that_reads_otherwise_is_not_used(monkeypatch):
    """Texts are then read one after the other, by the same forward."""
    model = in_bf16()
    reader = open_reader(model, SPEC)
    assert isinstance(reader, SharedReader) and not reader._side_by_side  # on a CPU one text fills it
    monkeypatch.setattr(reader_choice, "FILLING_FLOP", {"cpu": 1e12})
    for right in (True, False):
        if not right:
            monkeypatch.setattr(SharedReader, "_select", lambda *_: None)  # rows of another text's cache
        reader = open_reader(model, SPEC)
        assert isinstance(reader, SharedReader) and reader._side_by_side == right
