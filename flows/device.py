"""The device that a run computes on, shared with other runs, and the warm trainer that uses it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

from flows.liveness import end_trainers_except, queue_priority
from yarn_ops.models.device import energy_joules
from yarn_ops.registry import Held, QueuedStage, Registry, keys_at_work, occupied
from yarn_ops.settings import Settings
from yarn_ops.train.warm_trainer import WarmTrainer, call_by_name


class RunDevice:
    """The GPU of this machine, or its processor where there is none."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry
        self.trainer: WarmTrainer | None = None
        """waits for this run's first leg"""
        self.waited_s = 0.0
        """for other stages on the device, in all"""
        self._used: tuple[float, float | None] = (0.0, None)
        self._began: tuple[float, float | None] | None = None
        """since when it has the device, and what the GPUs had taken by then"""

    @cached_property
    def kind(self) -> Literal["cpu", "cuda"]:
        found: Literal["cpu", "cuda"] = self.call(
            "yarn_ops.models.device:resolve_device", self._settings.device
        )
        return found

    @cached_property
    def name(self) -> str:
        """The name that all processes that share the device use for it."""
        if self.kind == "cpu":
            return f"{platform.node()}/cpu"
        return f"gpu-{self._uuids[0]}"

    @cached_property
    def _uuids(self) -> list[str]:
        found: list[str] = [] if self.kind == "cpu" else self.call("yarn_ops.models.device:gpu_uuids")
        return found

    @cached_property
    def processes(self) -> int:
        """How many train together: one for every GPU, unless the settings say otherwise."""
        return self._settings.processes or max(1, self.gpus)

    @property
    def gpus(self) -> int:
        """Of this machine; 0: its processor is the device."""
        return len(self._uuids)

    @property
    def hour_price(self) -> float:
        """Dollars for an hour of the device, however much of it is used."""
        settings = self._settings
        return settings.gpu_hour * self.gpus if self.gpus else settings.node_hour

    def used(self) -> tuple[float, float | None]:
        """(seconds that this run had the device, joules that its GPUs took meanwhile), up to now."""
        if self._began is None:
            return self._used
        (seconds, joules), (began, at) = self._used, self._began
        now = None if at is None else energy_joules(self._uuids)
        taken = None if at is None or now is None else now - at
        return (
            seconds + time.monotonic() - began,
            joules if taken is None else (joules or 0.0) + taken,
        )

    @cached_property
    def _rank(self) -> int:
        return queue_priority()

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Call what needs torch, by its name: in the warm trainer, which has it imported sooner, or here."""
        call = call_by_name if self.trainer is None else self.trainer.call
        return call(name, *arguments, **named)

    @contextmanager
    def occupied(self, held: Held, on_wait: Callable[[QueuedStage], None]) -> Iterator[None]:
        """Within the block no other stage uses the device. The lowest queue priority is next; then the
        oldest. `on_wait` hears, once, of the stage that has it."""
        asked = time.monotonic()
        with occupied(self._registry, held, self.name, rank=self._rank, on_wait=on_wait):
            self.waited_s += time.monotonic() - asked
            end_trainers_except(keys_at_work(self._registry), self._settings.home / "work")
            self._began = time.monotonic(), energy_joules(self._uuids) if self._uuids else None
            try:
                yield
            finally:
                self._used, self._began = self.used(), None
