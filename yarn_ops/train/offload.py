"""Activation offload: tensors that lie in pinned host memory between forward and backward.

Copies run on a CUDA stream of their own: out as soon as a tensor is there, and back one layer before the
backward, which goes through the layers in reverse, needs it.
"""

from __future__ import annotations

import torch
from torch import Tensor


class HostOffload:
    """A stack of offloaded tensors. Its pinned buffers are reused from step to step."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._out: list[OffloadedTensor] = []
        self._stream: torch.cuda.Stream | None = None

    def put(self, tensor: Tensor) -> OffloadedTensor:
        """Begin the copy of a tensor to the host. A tensor on the CPU is kept as it is."""
        if not tensor.is_cuda:
            return OffloadedTensor(self, tensor)
        place = len(self._out)
        if place == len(self._buffers):
            self._buffers.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True))
        offloaded = OffloadedTensor(self, self._buffers[place], tensor.device)
        self._out.append(offloaded)
        stream = self._side()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            offloaded.host.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)
        return offloaded

    def taken(self, offloaded: OffloadedTensor) -> None:
        """The tensor on top of the stack is back on the device: begin the copy of the one below it."""
        if self._out and self._out[-1] is offloaded:
            self._out.pop()
            if self._out:
                self._out[-1].fetch(self._side())

    def _side(self) -> torch.cuda.Stream:
        self._stream = self._stream or torch.cuda.Stream()
        return self._stream


class OffloadedTensor:
    """One tensor of the stack."""

    def __init__(self, offload: HostOffload, host: Tensor, device: torch.device | None = None) -> None:
        self.host = host
        self._offload, self._device = offload, device
        self._back: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None

    def fetch(self, stream: torch.cuda.Stream) -> None:
        """Begin the copy back to the device, on `stream`."""
        if self._back is None:
            stream.wait_stream(torch.cuda.current_stream())  # the allocator hands out memory in stream order
            self._back = torch.empty_like(self.host, device=self._device, pin_memory=False)
            with torch.cuda.stream(stream):
                self._back.copy_(self.host, non_blocking=True)
            self._back.record_stream(stream)
            self._stream = stream

    def get(self) -> Tensor:
        """The tensor on its device. Call it once, in the reverse order of `put`."""
        if self._device is None:
            return self.host
        self.fetch(self._offload._side())
        assert self._back is not None and self._stream is not None
        torch.cuda.current_stream().wait_stream(self._stream)
        back, self._back = self._back, None
        self._offload.taken(self)
        return back
