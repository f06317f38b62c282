"""Frozen weights in NF4 (Dettmers and others 2023, "QLoRA"), 4.5 bits each, quantised by bitsandbytes.

The frozen matrices of every layer are held as codes of 4 bits with a float32 scale for each block of 64.
Before a layer computes, forward or backward, they are dequantised into memory that all layers share: a
layer's parameters are views of it for good, and their values are the layer's within `gathered`. Neither the
layer's calculations nor autograd know of it, so a step is that of a model whose weights are the dequantised
ones, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from yarn_ops.errors import TrainError
from yarn_ops.train.model_shape import NF4_BLOCK
from yarn_ops.train.precision import require_bitsandbytes


def require_nf4(device: str) -> None:
    """TrainError unless bitsandbytes is installed and quantises on the device."""
    require_bitsandbytes()
    block = torch.ones(1, NF4_BLOCK, device=device)
    try:
        _dequantise(*_quantise(block), out=block)
    except (ImportError, OSError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainError(
            f"train.precision: nf4: bitsandbytes does not run on this {device} ({first}); install another "
            "version, or use auto"
        ) from None


class Nf4Layers:
    """The decoder layers of a model, whose frozen matrices are held in NF4 on `device`."""

    def __init__(self, layers: Iterable[nn.Module], device: str) -> None:
        """Quantises the frozen matrices of each layer on the device, one at a time, and frees them. The
        layers have equal shapes and may be on any device. TrainError as `require_nf4`."""
        require_nf4(device)
        self._held: list[list[tuple[Tensor, Any]]] = []
        """of each layer, of each matrix: its codes, and bitsandbytes' state of them"""
        self._dense: list[Tensor] = []
        """the matrices of the layer `_holds`"""
        self._holds: int | None = None
        for place, layer in enumerate(layers):
            self._take(layer, device)
            layer.register_forward_pre_hook(lambda *_, place=place: self._dequantise(place))

    @contextmanager
    def gathered(self, place: int, then: int) -> Iterator[None]:
        """A block in which layer `place` has its weights. `then`, the layer that follows, is not prepared."""
        self._dequantise(place)
        yield

    @torch.no_grad()
    def _take(self, layer: nn.Module, device: str) -> None:
        frozen = [value for value in layer.parameters() if value.ndim == 2 and not value.requires_grad]
        self._held.append([])
        self._dense = self._dense or [torch.empty_like(matrix, device=device) for matrix in frozen]
        for matrix, dense in zip(frozen, self._dense, strict=True):
            self._held[-1].append(_quantise(matrix.to(device)))
            matrix.data = dense

    @torch.no_grad()
    def _dequantise(self, place: int) -> None:
        if self._holds == place:
            return
        self._holds = place
        for (codes, state), dense in zip(self._held[place], self._dense, strict=True):
            _dequantise(codes, state, dense)


def _quantise(matrix: Tensor) -> tuple[Tensor, Any]:
    from bitsandbytes.functional import quantize_4bit  # an extra

    return quantize_4bit(matrix, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=False)


def _dequantise(codes: Tensor, state: Any, out: Tensor) -> None:
    from bitsandbytes.functional import dequantize_4bit

    if out.is_cuda:
        dequantize_4bit(codes, state, out=out)
    else:  # its CPU kernel takes no memory to write to
        out.copy_(dequantize_4bit(codes, state))
