"""A cost model of a training step: memory and seconds by the checkpointing policy of each layer, and the
fastest policies that fit.

Products and bytes are counted from the layer's calculations (`layer`). Rates come from a short measurement of
the device (`probe`) or from a table of measured GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

from yarn_ops.errors import TrainError
from yarn_ops.train.model_shape import FLOAT32_BYTES, TRAINED_BYTES, ModelShape

GIB = 1 << 30


class LayerPolicy(NamedTuple):
    """Activation checkpointing of one layer: what it keeps from its forward for its backward."""

    keep: Literal["everything", "attention", "outputs", "input"]
    """everything; attention: all but gate and up; outputs: x and the attention's output; input: x"""
    on_host: bool = False
    """x is offloaded to host memory in between"""

    def describe(self) -> str:
        """Such as `outputs (input on the host)`."""
        if not self.on_host:
            return self.keep
        return "input on the host" if self.keep == "input" else f"{self.keep} (input on the host)"


LADDER = (
    LayerPolicy("input", on_host=True),
    LayerPolicy("input"),
    LayerPolicy("outputs"),
    LayerPolicy("attention"),
    LayerPolicy("everything"),
)
"""policies from least memory to least time; each saves more time for a byte than the next"""
HOST_LADDER = (LADDER[0], LayerPolicy("outputs", on_host=True), *LADDER[2:])
"""the same for long windows: x stays on the host, and the device's memory spares the second attention"""
HOST_GAIN = 0.98
"""of a step's seconds by LADDER that one by HOST_LADDER may take to be chosen: host memory is others' too"""
MARGIN = 0.05
"""of the memory, left for fragmentation"""
HEAD_BYTES = GIB
"""of the logits that are in memory at a time"""
FILE_BYTES_PER_S = 2e9
"""of weights that are read from their files: an assumption, a drive's and not the page cache's"""


class Rates(NamedTuple):
    """What a device does in a second."""

    products: float
    """FLOP of matrix products"""
    attention_forward: float
    attention_backward: float
    bytes: float
    """of its memory, read and written by passes over activations"""
    host_bytes: float
    """between host and device"""


@dataclass(frozen=True)
class StepPlan:
    """The policies of all layers, and what a micro-batch takes with them."""

    policies: tuple[LayerPolicy, ...]
    step_s: float
    peak_bytes: int
    host_bytes: int

    def describe(self) -> str:
        """Such as `everything × 24, attention × 8`."""
        names = [policy.describe() for policy in self.policies]
        return ", ".join(f"{name} × {names.count(name)}" for name in dict.fromkeys(names))


def model_flops(shape: ModelShape, positions: int, window: int) -> float:
    """FLOP of a micro-batch of `positions` tokens in windows of `window`, without recomputation and without
    gradients of frozen weights: the numerator of MFU."""
    products = 2 * shape.layers * shape.layer_parameters * positions
    attention = shape.layers * _attention_flops(shape, positions, window)
    head = 2 * shape.vocabulary * shape.hidden * positions
    weight_gradients = products + head if shape.full else 0
    return 2 * products + 3.5 * attention + 2 * head + weight_gradients


def forward_seconds(shape: ModelShape, positions: float, window: float, rates: Rates) -> float:
    """Of all layers, nothing kept: `positions` tokens that see window / 2 keys each on average."""
    return shape.layers * _layer_seconds(shape, LADDER[-1], round(positions), window, rates)[0]


def step_cost(
    shape: ModelShape, policies: Sequence[LayerPolicy], positions: int, window: int, rates: Rates
) -> StepPlan:
    """Seconds and peak memory of one micro-batch: `positions` tokens in windows of `window`."""
    counts = Counter(policies)
    each = [
        (count, *_layer_seconds(shape, policy, positions, window, rates)) for policy, count in counts.items()
    ]
    host = sum(count * _offloaded_bytes(shape, policy, positions) for policy, count in counts.items())
    # Weights arrive in both passes; on their way back, offloaded tensors share the link with them.
    streamed_bytes = shape.streamed * shape.layer_bytes / shape.layers
    arrive_s = streamed_bytes / (FILE_BYTES_PER_S if shape.mapped else rates.host_bytes)
    seconds = max(sum(count * forward for count, forward, _ in each), arrive_s)
    back_s = arrive_s + host / rates.host_bytes
    seconds += max(sum(count * backward for count, _, backward in each), back_s)
    head = 2 * 2 * shape.vocabulary * shape.hidden * positions
    seconds += head / rates.products + 8 * shape.vocabulary * positions * shape.element_bytes / rates.bytes
    seconds += 2 * shape.trained * TRAINED_BYTES / shape.optimizer_shards / rates.bytes
    if shape.nf4:  # dequantised in both passes
        seconds += 2 * (shape.nf4_bytes + shape.layer_bytes) / rates.bytes
    peak = shape.fixed_bytes + _activation_bytes(shape, policies, positions)
    peak = max(peak, shape.update_bytes)
    return StepPlan(tuple(policies), seconds, peak, host + shape.pinned_bytes)


def plan_step(
    shape: ModelShape, positions: int, window: int, rates: Rates, *, memory_bytes: float, host_bytes: float
) -> StepPlan:
    """The fastest that stays below `memory_bytes`; TrainError, naming what to turn, if none does."""
    usable = memory_bytes * (1 - MARGIN)
    least = step_cost(shape, [LADDER[0]] * shape.layers, positions, window, rates)
    if least.peak_bytes > usable:
        raise TrainError(_too_large(shape, least.peak_bytes, usable, positions))
    plan, by_host = (
        _climb(shape, ladder, positions, window, rates, usable) for ladder in (LADDER, HOST_LADDER)
    )
    if by_host.step_s < HOST_GAIN * plan.step_s and by_host.host_bytes <= host_bytes:
        return by_host
    if plan.host_bytes > host_bytes:
        raise TrainError(_too_large(shape, plan.host_bytes, host_bytes, positions, "of host memory"))
    return plan


def _climb(
    shape: ModelShape,
    ladder: Sequence[LayerPolicy],
    positions: int,
    window: int,
    rates: Rates,
    usable: float,
) -> StepPlan:
    """The last layers as high on the ladder as `usable` bytes of the device allow, then those before."""
    policies = [ladder[0]] * shape.layers
    for rung in ladder[1:]:
        for layer in reversed(range(shape.layers)):
            better = [*policies[:layer], rung, *policies[layer + 1 :]]
            if step_cost(shape, better, positions, window, rates).peak_bytes > usable:
                break
            policies = better
    return step_cost(shape, policies, positions, window, rates)


def step_down(policies: Sequence[LayerPolicy]) -> list[LayerPolicy] | None:
    """Every layer's policy one level lower in its ladder; None where all are at the lowest."""
    if all(policy == LADDER[0] for policy in policies):
        return None
    return [_below(policy) for policy in policies]


def _below(policy: LayerPolicy) -> LayerPolicy:
    ladder = LADDER if policy in LADDER else HOST_LADDER
    return ladder[max(0, ladder.index(policy) - 1)]


def _attention_flops(shape: ModelShape, positions: int, window: float) -> float:
    """Of one layer's forward: two products over the causal half."""
    return 4 * shape.attention_width * positions * window / 2


def _layer_seconds(
    shape: ModelShape, policy: LayerPolicy, positions: int, window: float, rates: Rates
) -> tuple[float, float]:
    """Of forward and backward."""
    d, f = shape.hidden, shape.mlp
    forward_products = shape.layer_parameters
    products = (2 if shape.full else 1) * forward_products
    if policy.keep != "everything":
        products += 2 * d * f  # gate, up
    if policy.keep in ("outputs", "input"):
        products += d * (2 * shape.attention_width + 2 * shape.kv_width)  # q, k, v, o
    attention = _attention_flops(shape, positions, window)
    attention_s = attention / rates.attention_forward
    forward = 2 * forward_products * positions / rates.products + attention_s
    backward = 2 * products * positions / rates.products + 2.5 * attention / rates.attention_backward
    backward += attention_s * (policy.keep == "input")
    again = {"everything": 0, "attention": 4 * f + 2 * d, "outputs": 4 * f + 10 * d, "input": 4 * f + 14 * d}
    pass_s = positions * shape.element_bytes / rates.bytes
    once = PASSES_HIDDEN * d + PASSES_MLP * f
    forward += once / 3 * pass_s
    backward += (once * 2 / 3 + again[policy.keep]) * pass_s
    copied = _offloaded_bytes(shape, policy, positions) / rates.host_bytes
    return max(forward, copied), max(backward, copied)


PASSES_HIDDEN = 60
PASSES_MLP = 28
"""activations of hidden and MLP width that a layer's norms, rotations, activation and adapters read or write
in forward and backward together; fitted to a profile of the step"""


def _offloaded_bytes(shape: ModelShape, policy: LayerPolicy, positions: int) -> int:
    return positions * shape.hidden * shape.element_bytes * policy.on_host


def _kept_bytes(shape: ModelShape, policy: LayerPolicy, positions: int) -> int:
    """On the device."""
    elements = shape.hidden * (not policy.on_host)
    if policy.keep != "input":
        elements += shape.attention_width
    if policy.keep in ("attention", "everything"):
        elements += shape.hidden + shape.attention_width + 2 * shape.kv_width
    if policy.keep == "everything":
        elements += 2 * shape.mlp
    sums = 0 if policy.keep == "input" else 4 * shape.heads
    return positions * (elements * shape.element_bytes + sums)


def _activation_bytes(shape: ModelShape, policies: Sequence[LayerPolicy], positions: int) -> int:
    """The most that is held at a time, in the loss or in a layer's backward, which frees what it kept."""
    kept, peak = 0, 0
    for policy, layers in groupby(policies):
        kept += len(list(layers)) * _kept_bytes(shape, policy, positions)
        fetched = 2 * _offloaded_bytes(shape, policy, positions)  # in use, and on its way
        peak = max(peak, kept + fetched + _working_bytes(shape, policy, positions))
    in_loss = positions * 3 * shape.hidden * shape.element_bytes + HEAD_BYTES + _head_gradient_bytes(shape)
    return max(peak, kept + in_loss)


def _working_bytes(shape: ModelShape, policy: LayerPolicy, positions: int) -> int:
    """The most that a layer's backward holds beside what is kept from the forward."""
    d, f, a, kv = shape.hidden, shape.mlp, shape.attention_width, shape.kv_width
    if policy.keep == "everything":
        tile = positions * (f + 3 * d)
    else:
        tile = min(positions, shape.tile_rows) * (3 * f + 3 * d)
    made_again = {"input": a + d + a + 2 * kv, "outputs": a + d + 2 * kv}.get(policy.keep, 0)
    in_mlp = tile + positions * (2 * d + made_again)
    exchanged = (7 * a + 6 * kv) // max(1, shape.kv_heads // shape.context) * (shape.context > 1)
    summed = a + 4 * kv * (shape.kv_heads < shape.heads)  # gradients are added up in float32
    in_attention = positions * (d + made_again + 3 * a + 2 * kv + summed + exchanged)
    return max(in_mlp, in_attention) * shape.element_bytes


def _head_gradient_bytes(shape: ModelShape) -> int:
    """Of the largest gradient where all parameters learn: made, scaled, turned into float32 and summed."""
    if not shape.full:
        return 0
    float32_bytes = FLOAT32_BYTES * (shape.element_bytes < FLOAT32_BYTES)
    float32_bytes += FLOAT32_BYTES // shape.optimizer_shards * (shape.optimizer_shards > 1)
    return shape.vocabulary * shape.hidden * (2 * shape.element_bytes + float32_bytes)


def _too_large(
    shape: ModelShape, needed: float, there: float, positions: int, what: str = "of the device's memory"
) -> str:
    knob = "a smaller rope.factor or train.batch_windows"
    if what == "of host memory":
        knob += ", train.precision nf4" * bool(shape.streamed) + ", or a host that has as much free"
    elif shape.nf4:
        knob += ", or train.precision auto, with which weights stream from the host"
    elif shape.fixed_bytes > there:
        knob = "a smaller base" if not shape.full else "train.method lora, or more GPUs"
    return (
        f"training: a step of {positions:,} tokens needs {needed / GIB:.1f} GiB {what}, there are "
        f"{there / GIB:.1f}; choose {knob}"
    )
