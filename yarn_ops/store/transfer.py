"""Many transfers at once, with one count of bytes and one way to stop them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TypeVar

from yarn_ops.errors import StoreError
from yarn_ops.progress import OnProgress

THREADS = 4
Item = TypeVar("Item")
Result = TypeVar("Result")
UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))


class Transfer:
    """Runs transfers in threads; each calls `advance` for its bytes."""

    def __init__(self, total_bytes: int, report: OnProgress | None) -> None:
        self._total_bytes = total_bytes
        self._unit = next((unit for unit in UNITS if total_bytes >= unit[0]), UNITS[-1])
        self._report = report
        self._done_bytes = 0
        self._lock = Lock()
        self._stopped = Event()

    def advance(self, size_bytes: int) -> None:
        """Count bytes; raises in a transfer that is to stop because another failed or the user gave up."""
        if self._stopped.is_set():
            raise StoreError("transfer stopped")
        with self._lock:
            self._done_bytes += size_bytes
            if self._report is not None:
                self._report(self._done_bytes, self._total_bytes, self._in_words())

    def _in_words(self) -> str:
        size, name = self._unit
        digits = 1 if size > 1 else 0
        return f"{self._done_bytes / size:,.{digits}f} of {self._total_bytes / size:,.{digits}f} {name}"

    def run(self, action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Results in the items' order; the first failure stops the others and is raised."""
        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(action, item) for item in items]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                return [future.result() for future in futures]
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
