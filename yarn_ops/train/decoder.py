"""A transformers model run by our own decoder layers: token ids to hidden states.

Weights, adapters and rotary tables stay in the model's modules and are read at every forward. Served are the
architectures that are Llama's up to biases and query-key norms; the others train by transformers' own forward
(`models.device.unsupported` says why).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from yarn_ops.train.attention import Documents, choose_kernel
from yarn_ops.train.elementwise import rms_norm, rms_norm_backward, rms_norm_weight_gradient
from yarn_ops.train.float8 import Float8Weight
from yarn_ops.train.layer import Context, Weights, decoder_layer
from yarn_ops.train.model_shape import TILE_ROWS
from yarn_ops.train.nf4 import Nf4Layers
from yarn_ops.train.offload import HostOffload
from yarn_ops.train.parallel.ranks import ContextGroup
from yarn_ops.train.parallel.sharding import ShardedLayers
from yarn_ops.train.parameter_stacks import ParameterStack, stacked
from yarn_ops.train.plan import LayerPolicy
from yarn_ops.train.projection import Linear
from yarn_ops.train.streaming import StreamedLayers

ADAPTER = "default"
AbsentLayers = ShardedLayers | StreamedLayers | Nf4Layers
"""layers whose frozen weights are not all on this device, or not as they are computed with"""


class Decoder:
    """Token ids to hidden states, through embedding, layers and last norm, differentiable in what learns."""

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        policies: Sequence[LayerPolicy],
        *,
        context_group: ContextGroup | None = None,
        absent: AbsentLayers | None = None,
        tile_rows: int = TILE_ROWS,
    ) -> None:
        """`policies`: of each layer. `context_group`: the processes that share each window; every call then
        gets this process's part of it. `absent`: the layers, where they are sharded, streamed or in 4 bits.
        `tile_rows`: positions of the MLP at a time, where its products are not kept."""
        backbone = model.base_model
        self._embed: nn.Module = model.get_input_embeddings()
        self._layers: list[Any] = list(backbone.layers)
        self._norm, self._rotary = backbone.norm, backbone.rotary_emb
        self._head_width: int = self._layers[0].self_attn.head_dim
        self._eps: float = model.config.rms_norm_eps
        self._dtype, self._offload = dtype, HostOffload()
        self._context_group, self._absent, self._tile_rows = context_group, absent, tile_rows
        self._float8: dict[nn.Module, Float8Weight] = {}
        self._adapters = [stack for layer in self._layers for stack in _adapters(layer)]
        self.policies = list(policies)

    @torch.no_grad()
    def quantise(self) -> None:
        """Multiply by the layers' frozen weights in 8 bits from now on, and free those in 16 or 32: after
        this the model's own forward cannot run. TrainError where a weight's shape does not allow it."""
        for layer in self._layers:
            for module in _linears(layer):
                base = _base(module)
                self._float8[base] = Float8Weight.of(base.weight)
                base.weight.data = base.weight.new_empty(0)

    def __call__(self, inputs_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        """Hidden states (B × T × D, after the last norm, in the decoder's dtype).

        positions: int64, of all tokens of the windows, restarting at 0 with every packed document; attention
        stays within a document. None: each window is one document.
        """
        with torch.autocast(inputs_BT.device.type, enabled=False):
            documents = None
            if positions_BT is not None:
                documents = Documents.of(positions_BT, inputs_BT.device)
            else:
                tokens = inputs_BT.shape[1] * (self._context_group.size if self._context_group else 1)
                positions_BT = torch.arange(tokens, device=inputs_BT.device)[None]
            x = self._embed(inputs_BT).to(self._dtype)
            cos, sin = self._rotary(x, positions_BT.to(x.device))
            if self._context_group is not None:
                cos, sin = self._context_group.part(cos, 1), self._context_group.part(sin, 1)
            context = Context(
                head_width=self._head_width,
                eps=self._eps,
                kernel=choose_kernel(x.device.type, self._dtype, self._head_width, documents is not None),
                cos_BTK=cos,
                sin_BTK=sin,
                documents=documents,
                context_group=self._context_group,
                tile_rows=self._tile_rows,
                offload=self._offload,
                full=any(_base(module).weight.requires_grad for module in _linears(self._layers[0])),
                norms=self._layers[0].input_layernorm.weight.requires_grad,
            )
            adapters = iter(stacked(self._adapters, self._dtype))
            for place, (layer, policy) in enumerate(zip(self._layers, self.policies, strict=True)):
                with self._gathered(place, place + 1):
                    backward = partial(self._gathered, place, place - 1)
                    x = decoder_layer(x, self._weights(layer, adapters), context, policy, backward)
            return _RmsNorm.apply(x, self._norm.weight.to(self._dtype), self._eps)  # type: ignore[no-any-return]

    def _gathered(self, place: int, then: int) -> AbstractContextManager[None]:
        """A block in which layer `place` has its weights; those of `then` are fetched meanwhile."""
        return nullcontext() if self._absent is None else self._absent.gathered(place, then)

    def _weights(self, layer: Any, adapters: Iterator[Tensor]) -> Weights:
        """The layer's parameters; its adapters are taken from `adapters`, in the order of `_adapters`."""
        linears, attention = _linears(layer), layer.self_attn
        norms = (
            layer.input_layernorm,
            getattr(attention, "q_norm", None),
            getattr(attention, "k_norm", None),
        )
        values = [
            *(None if norm is None else self._cast(norm.weight) for norm in norms),
            self._cast(layer.post_attention_layernorm.weight),
            *(next(adapters) if any(map(_adapted, group)) else None for group in _sharing(linears)),
            *(self._linear(module, adapters) for module in linears),
        ]
        return Weights(*values)  # type: ignore[arg-type]

    def _linear(self, module: Any, adapters: Iterator[Tensor]) -> Linear:
        base = _base(module)
        bias = None if base.bias is None else self._cast(base.bias)
        b = next(adapters) if _adapted(module) else None
        return Linear(self._float8.get(base) or self._cast(base.weight), bias, b)

    def _cast(self, parameter: Tensor) -> Tensor:
        return parameter.to(self._dtype)


class _RmsNorm(torch.autograd.Function):
    """The last norm; it saves its input, not the float32 intermediates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        normal: Tensor = rms_norm(x.flatten(0, -2), weight, eps)  # of the layers' shape: compiled once
        return normal.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_weight = rms_norm_weight_gradient(grad, x, ctx.eps) if ctx.needs_input_grad[1] else None
        return rms_norm_backward(grad, x, weight, ctx.eps, None), grad_weight, None


def _linears(layer: Any) -> tuple[Any, ...]:
    """The layer's linear modules, in the order of `Weights`."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )


def _sharing(linears: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    """The groups of them that share an input."""
    return linears[:3], linears[3:4], linears[4:6], linears[6:]


def _adapters(layer: Any) -> Iterator[ParameterStack]:
    """The stacked A of each group that shares an input, then every B, scaled."""
    linears = _linears(layer)
    for group in _sharing(linears):
        if any(map(_adapted, group)):
            yield ParameterStack([module.lora_A[ADAPTER].weight for module in group if _adapted(module)])
    for module in filter(_adapted, linears):
        yield ParameterStack([module.lora_B[ADAPTER].weight], module.scaling[ADAPTER])


def _base(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def _adapted(module: Any) -> bool:
    return isinstance(module, LoraLayer) and ADAPTER in module.lora_A
