"""Parameters that learn, sharded among all processes (ZeRO-2): each keeps and updates a part of every one.

Weights stay whole in every process, in the dtypes that it computes in. As soon as a backward has the gradient
of a parameter, the processes sum it in float32 and each keeps its part of the sum (reduce-scatter). The
float32 weights and the optimizer exist of that part alone; after an update the weights are all-gathered.

A part is one of as many equal pieces of the flattened parameter as there are processes, with zeros behind the
last element.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from yarn_ops.train.parallel.ranks import Ranks

# Torch 2.13 renamed both.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ParameterShards:
    """This process's part of every parameter that learns, and of its gradient."""

    parts: dict[str, nn.Parameter]
    """flat and in float32, by parameter name; `grad` is the part of the gradient, summed over processes and
    micro-batches"""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], dtypes: Mapping[str, torch.dtype], ranks: Ranks
    ) -> None:
        """Takes the parts and turns the parameters themselves into their `dtypes`. From now on a backward
        leaves gradients in `parts`."""
        self._parameters, self._ranks = dict(parameters), ranks
        self._order = list(reversed(self._parameters))
        self._reduced = 0
        """parameters whose gradients of this micro-batch are summed: the first of `_order`"""
        self._arrived: set[str] = set()
        self.parts = {}
        arrive = weakref.WeakMethod(self._arrive)  # a parameter's hooks are hidden from Python's collector
        for name, parameter in self._parameters.items():
            self.parts[name] = nn.Parameter(self.part(parameter.detach()).clone())
            parameter.data = parameter.data.to(dtypes[name])
            parameter.register_post_accumulate_grad_hook(partial(_call, arrive, name))

    def part(self, whole: Tensor) -> Tensor:
        """This process's part of a parameter, or of a tensor of its shape, in float32."""
        return self._padded(whole).chunk(self._ranks.size)[self._ranks.rank].float()

    @torch.no_grad()
    def whole(self, name: str, part: Tensor) -> Tensor:
        """The tensor, in the parameter's shape, of which every process holds a part. All call it."""
        parameter = self._parameters[name]
        gathered = part.new_empty(len(part) * self._ranks.size)
        _all_gather(gathered, part.detach())
        return gathered[: parameter.numel()].view_as(parameter)

    def complete(self) -> None:
        """Sum the gradients that a micro-batch's backward has not come to in this process. All call it after
        every backward."""
        while self._reduced < len(self._order):
            self._reduce()
        self._reduced = 0

    def skip_unused(self) -> None:
        """Drop the gradients of parameters that no process used since the last `clear`: as in one process,
        they are not updated. All call it before an update."""
        unused = self._ranks.minimum([name not in self._arrived for name in self._order])
        for name, nowhere in zip(self._order, unused, strict=True):
            if nowhere:
                self.parts[name].grad = None

    def clear(self) -> None:
        """Forget all gradients."""
        self._arrived.clear()
        for part in self.parts.values():
            part.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Set the parameters to the parts of all processes. All call it, after an update."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.whole(name, self.parts[name].to(parameter.dtype)))

    def _arrive(self, name: str) -> None:
        """Sum gradients in one order, the same in every process, as far as they are there."""
        self._arrived.add(name)
        while self._reduced < len(self._order):
            if self._parameters[self._order[self._reduced]].grad is None:
                break
            self._reduce()

    @torch.no_grad()
    def _reduce(self) -> None:
        name = self._order[self._reduced]
        parameter, part = self._parameters[name], self.parts[name]
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        summed = torch.empty_like(part)
        _reduce_scatter(summed, self._padded(gradient.float()))
        part.grad = summed if part.grad is None else part.grad.add_(summed)
        parameter.grad = None
        self._reduced += 1

    def _padded(self, whole: Tensor) -> Tensor:
        """A tensor flattened, with zeros behind it up to equal parts."""
        lacking = -whole.numel() % self._ranks.size
        return F.pad(whole.reshape(-1), (0, lacking)) if lacking else whole.reshape(-1)


def _call(method: Callable[[], Callable[[str], None] | None], name: str, _: Tensor) -> None:
    """A parameter's hook: the method of shards that are still there, on the parameter's name."""
    if (arrive := method()) is not None:
        arrive(name)
