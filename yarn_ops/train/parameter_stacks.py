"""All adapters of a model, cast to the dtype that its layers compute in by one call.

A model has hundreds of small adapters: one kernel for each, and one for its gradient, take longer than their
bytes do. The call is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class ParameterStack(NamedTuple):
    """Parameters of equal width that are concatenated along their first axis, and multiplied by `factor`."""

    parameters: Sequence[Tensor]
    factor: float = 1.0


def stacked(stacks: Sequence[ParameterStack], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Each stack in one tensor (the rows of its parameters together × their width), times its factor; the
    gradient reaches the parameters in their own dtype."""
    if not stacks:
        return ()
    parameters = [parameter for stack in stacks for parameter in stack.parameters]
    return _Stacked.apply(stacks, dtype, *parameters)  # type: ignore[no-any-return, no-untyped-call]


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stacks: Sequence[ParameterStack], dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.stacks = stacks
        made = tuple(
            stack.parameters[0].new_empty(
                (sum(map(len, stack.parameters)), *stack.parameters[0].shape[1:]), dtype=dtype
            )
            for stack in stacks
        )
        torch._foreach_copy_(_parts(stacks, made), torch._foreach_mul(parameters, _factors(stacks)))
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        parts = _parts(ctx.stacks, grads)
        found = [torch.empty_like(parameter) for stack in ctx.stacks for parameter in stack.parameters]
        torch._foreach_copy_(found, parts)
        torch._foreach_mul_(found, _factors(ctx.stacks))
        return None, None, *found


def _factors(stacks: Sequence[ParameterStack]) -> list[float]:
    return [stack.factor for stack in stacks for _ in stack.parameters]


def _parts(stacks: Sequence[ParameterStack], made: Sequence[Tensor]) -> list[Tensor]:
    """Every parameter's own rows."""
    return [
        part
        for stack, tensor in zip(stacks, made, strict=True)
        for part in tensor.split([len(parameter) for parameter in stack.parameters])
    ]
