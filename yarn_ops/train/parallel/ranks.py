"""This process among those that train together: collectives, and a common end.

Alone everything here is free. Figures that steer the run (tokens, a wish to stop) travel between the hosts'
processors, gradients between their devices.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yarn_ops.errors import TrainError, YarnOpsError
from yarn_ops.train.parallel.layout import Layout
from yarn_ops.train.parallel.lead import MEETING
from yarn_ops.train.parallel.peers import Peers

PATIENCE = timedelta(minutes=10)
"""the timeout of a collective: it covers the slowest step, its compilation, a snapshot on a slow disk"""
BUCKET_BYTES = 1 << 28


class ContextGroup(NamedTuple):
    """The processes that share a window."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def part(self, tensor: Tensor, dim: int) -> Tensor:
        """This process's part of a tensor that has all tokens of a window along `dim`."""
        return tensor.chunk(self.size, dim)[self.rank]


class Ranks:
    """The ranks of one run, as one of them sees them. The main rank writes files and events."""

    def __init__(self, rank: int = 0, size: int = 1, peers: Peers | None = None, device: str = "cpu") -> None:
        self.rank, self.size, self._peers, self._device = rank, size, peers, device
        self.layout, self.context_group = Layout(), None

    layout: Layout
    context_group: ContextGroup | None
    """the processes that hold the other parts of this one's windows"""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """The number of this process's data group; consecutive ranks share a window."""
        return self.rank // self.layout.context

    def use_layout(self, layout: Layout) -> None:
        """Share steps by this layout from now on. All ranks call it, with the same layout."""
        assert layout.processes == self.size
        self.layout, self.context_group = layout, None
        if self.size == 1:
            return
        if layout.context > 1:
            for first in range(0, self.size, layout.context):
                group = dist.new_group(list(range(first, first + layout.context)), timeout=PATIENCE)
                if first == self.data_rank * layout.context:
                    self.context_group = ContextGroup(group, self.rank % layout.context, layout.context)
        # What talking takes of the memory is taken before the planner looks.
        dist.all_reduce(torch.zeros(1, device=self._device))
        if self.context_group is not None:
            words = torch.zeros(layout.context, device=self._device)
            dist.all_to_all_single(torch.empty_like(words), words, group=self.context_group.group)

    def total(self, value: float) -> float:
        """The sum over all ranks, in float64."""
        return self._reduced([value], dist.ReduceOp.SUM)[0]

    def any(self, wish: bool) -> bool:
        """Whether `wish` is true in any rank."""
        return self._reduced([float(wish)], dist.ReduceOp.MAX)[0] > 0

    def minimum(self, values: Sequence[float]) -> list[float]:
        """The least of each value over all ranks."""
        return self._reduced(values, dist.ReduceOp.MIN)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks (all-reduce)."""
        if self.size == 1:
            return
        for bucket in _buckets(parameter.grad for parameter in parameters):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, how)
        return list(tensor.tolist())

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._peers is None:
            return
        if error is None:
            self._peers.leave()
            dist.destroy_process_group()
            return
        # The others wait in a collective for what will never come, and so might our own threads.
        if isinstance(error, YarnOpsError):
            print(error, file=sys.stderr)
            self._peers.note("error", str(error))
        elif lost := self._peers.lost_in_collective():
            self._peers.note("lost", lost)
        else:
            traceback.print_exception(error)
            self._peers.note("fault", repr(error))
        sys.stderr.flush()
        os._exit(2 if isinstance(error, YarnOpsError) else 1)


def join(device: str, work_dir: Path, rank: int = 0, size: int = 1) -> Ranks:
    """Meet the others: of `size` processes on this machine, or those that torchrun started; or be alone."""
    by_torchrun = dist.is_torchelastic_launched()
    if size == 1 and not by_torchrun:
        return Ranks()
    if device == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank() if by_torchrun else rank)
    where: dict[str, Any] = {"init_method": "env://"}
    if not by_torchrun:
        meeting = dist.FileStore(str(work_dir / MEETING), size)  # type: ignore[attr-defined]
        where = {"store": meeting, "rank": rank, "world_size": size}
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=PATIENCE, **where)
    except (RuntimeError, ValueError) as error:
        raise TrainError(f"training: its processes do not find each other ({error}); run again") from error
    rank, size = dist.get_rank(), dist.get_world_size()
    peers = Peers(work_dir, rank, size)
    if rank == 0:
        peers.clear()
    dist.barrier(group=dist.new_group(backend="gloo"))
    peers.beat()
    peers.watch()
    return Ranks(rank, size, peers, device)


def _buckets(gradients: Iterable[Tensor | None]) -> Iterator[list[Tensor]]:
    """The gradients in order, in lists of one dtype and at most `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        assert gradient is not None
        size = sum(each.nbytes for each in bucket)
        if bucket and (size + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
