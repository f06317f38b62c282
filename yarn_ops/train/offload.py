"""Pinned host memory, and activation offload: tensors that lie there between forward and backward.

Copies run on a CUDA stream of their own: out as soon as a tensor is there, and back one layer before the
backward, which goes through the layers in reverse, needs it.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress

import torch
from torch import Tensor

from yarn_ops.errors import TrainError
from yarn_ops.train.plan import GIB


def pinned_memory(size: int) -> Tensor:
    """So many bytes (uint8) that a GPU copies from and to by itself. TrainError where the host has them not.

    Torch's own allocator rounds to powers of two: a third of a large host would be lost.
    """
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise TrainError(_not_pinned(size, error)) from None
    with suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    tensor.zero_()  # by all threads: the driver would ask for every page with one
    runtime, address = torch.cuda.cudart(), tensor.data_ptr()
    if status := int(runtime.cudaHostRegister(address, size, 0)):
        raise TrainError(_not_pinned(size, f"CUDA error {status}"))
    weakref.finalize(tensor, runtime.cudaHostUnregister, address).atexit = False
    return tensor


def _not_pinned(size: int, reason: object) -> str:
    return (
        f"training: the host does not pin {size / GIB:.1f} GiB of memory ({reason}); raise its limit of "
        "locked memory, or lower rope.factor"
    )


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
            self._buffers.append(pinned_memory(tensor.nbytes))
        host = self._buffers[place][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        offloaded = OffloadedTensor(self, host, tensor.device)
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
