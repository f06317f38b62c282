"""Tensors that wait in host memory while the GPU works on others: copied on a stream of their own, out after
they were made, back one ahead of the need (backward runs through the layers in reverse)."""

from __future__ import annotations

import torch
from torch import Tensor


class HostOffload:
    """A stack of tensors; its pinned buffers are used again from step to step."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._out: list[OffloadedTensor] = []
        self._stream: torch.cuda.Stream | None = None

    def put(self, tensor: Tensor) -> OffloadedTensor:
        """Begin the copy. A CPU's tensor is in host memory already: it is kept."""
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
        """The last one is back in use: bring the one before."""
        if self._out and self._out[-1] is offloaded:
            self._out.pop()
            if self._out:
                self._out[-1].fetch(self._side())

    def _side(self) -> torch.cuda.Stream:
        self._stream = self._stream or torch.cuda.Stream()
        return self._stream


class OffloadedTensor:
    """One tensor of the offload."""

    def __init__(self, offload: HostOffload, host: Tensor, device: torch.device | None = None) -> None:
        self.host = host
        self._offload, self._device = offload, device
        self._back: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None

    def fetch(self, stream: torch.cuda.Stream) -> None:
        """Begin the copy back."""
        if self._back is None:
            stream.wait_stream(torch.cuda.current_stream())  # the allocator hands out memory in stream order
            self._back = torch.empty_like(self.host, device=self._device, pin_memory=False)
            with torch.cuda.stream(stream):
                self._back.copy_(self.host, non_blocking=True)
            self._back.record_stream(stream)
            self._stream = stream

    def get(self) -> Tensor:
        """The tensor on its device; once."""
        if self._device is None:
            return self.host
        self.fetch(self._offload._side())
        assert self._back is not None and self._stream is not None
        torch.cuda.current_stream().wait_stream(self._stream)
        back, self._back = self._back, None
        self._offload.taken(self)
        return back
