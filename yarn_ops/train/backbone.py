"""The forward that a trainer uses: our layers with a checkpointing policy that fits, or transformers' own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from yarn_ops.models.device import unsupported
from yarn_ops.train.attention import choose_kernel
from yarn_ops.train.decoder import AbsentLayers, Decoder
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.nf4 import Nf4Layers
from yarn_ops.train.parallel.ranks import Ranks
from yarn_ops.train.plan import LayerPolicy, Rates, StepPlan, model_flops, plan_step, step_cost, step_down
from yarn_ops.train.probe import measure_rates

CPU_RATES = Rates(1e11, 1e11, 1e11, 1e10, 1e10)
"""any: on a CPU the plan follows from memory alone"""
CPU_SHARE = 0.5
"""of the free host memory that a step on a CPU may take"""
PINNED_SHARE = 0.8
"""of the free host memory that the steps on its GPUs may take"""

SEES_PAST_DOCUMENTS = (
    "gpt_oss", "lfm2", "lfm2_moe", "minimax", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
)  # fmt: skip
"""model types whose layers let a document see the one that is packed before it: states of linear attention
and convolutions go on, and transformers makes gpt_oss's masks without positions"""


class TransformersBackbone:
    """The model's own forward in autocast, for architectures that our layers do not serve."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self._backbone, self._dtype = model.base_model, dtype

    def __call__(self, inputs_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        """Hidden states (B × T × D, after the last norm, in the trainer's dtype)."""
        # Without a mask, transformers takes restarting positions for packed documents and masks between.
        if positions_BT is not None:
            positions_BT = positions_BT.to(inputs_BT.device)
        with torch.autocast(inputs_BT.device.type, self._dtype, enabled=self._dtype == torch.bfloat16):
            output = self._backbone(input_ids=inputs_BT, position_ids=positions_BT, use_cache=False)
        return output.last_hidden_state.to(self._dtype)  # type: ignore[no-any-return]


class Backbone:
    """A model's hidden states, by a plan whose memory and time are known."""

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        *,
        windows: int,
        window: int,
        policies: Sequence[LayerPolicy] | None = None,
        float8: bool = False,
        ranks: Ranks | None = None,
        absent: AbsentLayers | None = None,
    ) -> None:
        """`windows` × `window` tokens are a micro-batch. `policies`: of each layer; None: the planner
        chooses, and raises TrainError where no policy fits the memory. `float8`: `quantise` will be called.
        `ranks`: the processes that share a step, which all choose alike; `absent`: the layers where they
        are sharded, streamed or in 4 bits."""
        ranks = ranks or Ranks()
        layout = ranks.layout
        self._positions, self._window = windows * window // layout.context, window
        shape = ModelShape.of(
            model, element_bytes=dtype.itemsize, weight_bytes=next(model.parameters()).dtype.itemsize
        )
        self.shape = replace(shape.laid_out(layout), nf4=isinstance(absent, Nf4Layers))
        self.fallback_reason = unsupported(model, window)
        """why transformers' own forward runs; None when ours does"""
        self.flops = model_flops(self.shape, self._positions, window)
        """FLOP of this process's part of a micro-batch, recomputation not counted"""
        memory, host, *rates = ranks.minimum(
            capacity(self.shape, model.device.type, dtype, self._positions, window, float8, ranks.size)
        )
        self._rates = Rates(*rates)
        if policies is None:
            self.plan: StepPlan = plan_step(
                self.shape, self._positions, window, self._rates, memory_bytes=memory, host_bytes=host
            )
        else:
            self.plan = step_cost(self.shape, policies, self._positions, window, self._rates)
        self._forward: Decoder | TransformersBackbone
        if self.fallback_reason is None:
            self._forward = Decoder(
                model,
                dtype,
                self.plan.policies,
                context_group=ranks.context_group,
                absent=absent,
                tile_rows=self.shape.tile_rows,
            )
        else:
            assert absent is None and not float8
            if any(policy.keep != "everything" for policy in self.plan.policies):
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self._forward = TransformersBackbone(model, dtype)

    def __call__(self, inputs_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        """Hidden states (B × T × D, after the last norm); positions restart at 0 with every document."""
        return self._forward(inputs_BT, positions_BT)

    def quantise(self) -> None:
        """As `Decoder.quantise`."""
        assert isinstance(self._forward, Decoder)
        self._forward.quantise()

    def step_down(self) -> bool:
        """After a step that ran out of memory, keep one level less from now on; False at the lowest."""
        policies = step_down(self.plan.policies)
        if policies is None or not isinstance(self._forward, Decoder):
            return False
        self.plan = step_cost(self.shape, policies, self._positions, self._window, self._rates)
        self._forward.policies = policies
        return True


def capacity(
    shape: ModelShape,
    device: str,
    dtype: torch.dtype,
    positions: int,
    window: int,
    float8: bool,
    processes: int = 1,
) -> tuple[float, ...]:
    """Bytes that weights and step may take on the device, bytes on the host, then the fields of `Rates`.

    What torch may take of a GPU (`set_per_process_memory_fraction`) limits it; the GPUs of a host share its
    memory. Host memory that the shape's streamed layers have taken already counts as free.
    """
    available = psutil.virtual_memory().available
    if device == "cpu":
        host = CPU_SHARE * available
        return host + shape.fixed_bytes, host, *CPU_RATES
    kernel = choose_kernel(device, dtype, shape.head_width, documents=False)
    rates = measure_rates(shape, positions, window, kernel, float8=float8)
    free, total = torch.cuda.mem_get_info()
    memory = min(free + torch.cuda.memory_reserved(), total * torch.cuda.get_per_process_memory_fraction())
    here = min(processes, torch.cuda.device_count())
    return memory, PINNED_SHARE * available / here + shape.pinned_bytes, *rates
