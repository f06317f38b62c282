"""Streamed layers: frozen weights that lie in host memory and reach the device a layer ahead.

The device holds two slots. While a layer computes from one, a copy stream fills the other with the next
layer's weights: layer i + 1's in the forward, i − 1's in the backward. A layer's slot never changes, so its
parameters are views of the slot for good, and their values are the layer's within `gathered`. The bytes are
copied, never computed: the step is the resident one's to the last bit.

On the host each layer is one block of pinned memory; `mapped` layers stay in their safetensors, which are
mapped, and a thread reads them into two pinned blocks on their way. On a CPU the same code copies from memory
to memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn

from yarn_ops.train.model_shape import STREAM_SLOTS
from yarn_ops.train.offload import pinned_memory

ALIGNMENT = 256
"""bytes between which tensors of a block begin: what the device's own allocator keeps"""


def streamed_places(layers: int, streamed: int) -> list[int]:
    """The numbers of `streamed` among `layers` layers, evenly spaced: a copy has the time of all between."""
    return [place for place in range(layers) if (place + 1) * streamed // layers > place * streamed // layers]


class StreamedLayers:
    """The decoder layers of a model, of which those at `places` are streamed to `device`."""

    def __init__(
        self, layers: Iterable[nn.Module], places: Sequence[int], device: str, *, mapped: bool = False
    ) -> None:
        """Moves the frozen parameters of these layers off to the host, layer by layer. The layers have equal
        shapes and may be on any device. `mapped`: their parameters lie on the CPU, in mapped files."""
        self._numbers = {place: number for number, place in enumerate(sorted(places))}
        self._on_gpu = device != "cpu"
        self._stream = torch.cuda.Stream() if self._on_gpu else None
        self._slots: list[_Slot] = []
        self._reader = ThreadPoolExecutor(1, "weights") if mapped else None
        self._blocks: list[Tensor] = []
        self._mapped: list[list[Tensor]] = []
        self._count = 0
        for place, layer in enumerate(layers):
            self._count += 1
            if place in self._numbers:
                self._take(layer, self._numbers[place], device)
            layer.register_forward_pre_hook(lambda *_, place=place: self._enter(place, place + 1))
            layer.register_forward_hook(lambda *_, place=place: self._leave(place))

    @contextmanager
    def gathered(self, place: int, then: int) -> Iterator[None]:
        """A block in which layer `place` has its weights. `then`: the layer that follows; the next streamed
        one in its direction is copied meanwhile."""
        self._enter(place, then)
        try:
            yield
        finally:
            self._leave(place)

    @torch.no_grad()
    def _take(self, layer: nn.Module, number: int, device: str) -> None:
        frozen = [parameter for parameter in layer.parameters() if not parameter.requires_grad]
        ends = list(accumulate(-(-p.nbytes // ALIGNMENT) * ALIGNMENT for p in frozen))
        if len(self._slots) < STREAM_SLOTS:
            self._slots.append(_Slot(ends[-1], device, staged=self._reader is not None))
        if self._reader is None:
            self._blocks.append(
                pinned_memory(ends[-1]) if self._on_gpu else torch.empty(ends[-1], dtype=torch.uint8)
            )
        else:
            self._mapped.append([parameter.data for parameter in frozen])
        slot = self._slots[number % STREAM_SLOTS]
        for parameter, start in zip(frozen, [0, *ends], strict=False):
            if self._reader is None:
                _view(self._blocks[-1], start, parameter).copy_(parameter)
            parameter.data = _view(slot.memory, start, parameter)

    def _enter(self, place: int, then: int) -> None:
        number = self._numbers.get(place)
        if number is not None:
            self._fetch(number)
            self._slots[number % STREAM_SLOTS].wait(self._stream)
        onward = range(then, self._count) if then > place else range(then, -1, -1)
        following = next((self._numbers[at] for at in onward if at in self._numbers), None)
        if following is not None:
            self._fetch(following)

    def _leave(self, place: int) -> None:
        number = self._numbers.get(place)
        if number is not None and self._stream is not None:
            self._slots[number % STREAM_SLOTS].free.record()

    def _fetch(self, number: int) -> None:
        """Begin the copy of a streamed layer, once what computed from its slot before has ended."""
        slot = self._slots[number % STREAM_SLOTS]
        if slot.holds == number:
            return
        slot.holds = number
        if self._reader is None:
            slot.fill(self._blocks[number], self._stream)
        else:
            slot.reading = self._reader.submit(slot.read, self._mapped[number], self._stream)


class _Slot:
    """Device memory of one layer's frozen weights."""

    def __init__(self, size: int, device: str, *, staged: bool) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.holds: int | None = None
        self.reading: Future[None] | None = None
        self._staging: Tensor | None = None
        if staged:
            self._staging = self.memory if device == "cpu" else pinned_memory(size)
        if device != "cpu":
            self.free, self.ready = torch.cuda.Event(), torch.cuda.Event()
            self.free.record()  # after what used this memory before it was a slot

    def fill(self, block: Tensor, stream: torch.cuda.Stream | None) -> None:
        """Copy a block of the host, on `stream`."""
        if stream is None:
            self.memory.copy_(block)
            return
        stream.wait_event(self.free)
        with torch.cuda.stream(stream):
            self.memory.copy_(block, non_blocking=True)
        self.ready.record(stream)

    def read(self, parameters: Sequence[Tensor], stream: torch.cuda.Stream | None) -> None:
        """Read mapped parameters and copy them as `fill` does; in the reader's thread."""
        assert self._staging is not None
        if stream is not None:
            self.ready.synchronize()  # the last copy from the staging memory has ended
        start = 0
        for parameter in parameters:
            _view(self._staging, start, parameter).copy_(parameter)
            start += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
        if stream is not None:
            self.fill(self._staging, stream)

    def wait(self, stream: torch.cuda.Stream | None) -> None:
        """Let the current stream wait until the slot is filled."""
        if self.reading is not None:
            self.reading.result()
            self.reading = None
        if stream is not None:
            torch.cuda.current_stream().wait_event(self.ready)


def _view(memory: Tensor, start: int, like: Tensor) -> Tensor:
    """The tensor of `like`'s dtype and shape that begins at a byte of `memory`."""
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)
