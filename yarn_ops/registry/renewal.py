"""A lease that a thread renews at a third of its life, until its work ends or it is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from yarn_ops.errors import LeaseLost, RegistryError
from yarn_ops.registry.registry import Lease

log = logging.getLogger(__name__)


@dataclass
class Renewal:
    """Of one lease, from `start` to `end`."""

    lease: Lease
    renew: Callable[[Lease], None]
    on_lost: Callable[[], None] | None = None
    lost: threading.Event = field(default_factory=threading.Event)
    """set when the lease could not be renewed: somebody else may do the work now, so stop"""
    _ended: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def start(self, claimed_at: float) -> None:
        """`claimed_at`: when it was asked for, by `time.monotonic`: a lease lives from before the answer."""
        name = f"lease of {self.lease.stage}"
        self._thread = threading.Thread(target=self._run, args=(claimed_at,), name=name, daemon=True)
        self._thread.start()

    def last(self, write: Callable[[], None]) -> None:
        """Make the write that ends the lease: a renewal after it would take what is done for what is lost."""
        with self._writing:
            write()
            self._ended.set()

    def end(self) -> None:
        """No renewal is under way, nor comes, after this."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, claimed_at: float) -> None:
        """An unreachable database is tried again while the lease lives."""
        every_s, renewed_at = self.lease.life_s / 3, claimed_at
        while not self._ended.wait(every_s):
            asked_at = time.monotonic()
            try:
                with self._writing:
                    if self._ended.is_set():
                        return
                    self.renew(self.lease)
                renewed_at = asked_at
                continue
            except LeaseLost:
                pass
            except RegistryError as error:
                log.warning("%s: its lease was not renewed: %s", self.lease.stage, error)
                if time.monotonic() + every_s < renewed_at + self.lease.life_s:
                    continue
            self.lost.set()
            if self.on_lost is not None:
                self.on_lost()
            return
