"""Sharded layers (FSDP2): each process keeps a part of every frozen layer of a base.

A layer is gathered before it is used, forward and backward, and the one after it while it is. What learns is
small and stays whole in every process, so its gradients are summed as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard


class ShardedLayers:
    """The decoder layers of a model, sharded among all processes."""

    def __init__(self, layers: Sequence[nn.Module], device: str, processes: int) -> None:
        mesh = init_device_mesh(device, (processes,))
        self._layers: list[FSDPModule] = []
        for layer in layers:
            learns = {parameter for parameter in layer.parameters() if parameter.requires_grad}
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=learns)
            assert isinstance(layer, FSDPModule)
            self._layers.append(layer)
        with self.gathered(0, then=-1):
            pass  # what gathering takes of the memory is taken before the planner looks

    @contextmanager
    def gathered(self, place: int, then: int) -> Iterator[None]:
        """A block in which layer `place` is all-gathered; layer `then`, if there is one, is gathered
        meanwhile."""
        layer: Any = self._layers[place]
        layer.unshard()
        if 0 <= then < len(self._layers):
            self._layers[then].unshard(async_op=True)
        try:
            yield
        finally:
            layer.reshard()
