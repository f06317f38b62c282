"""What a run costs, stage by stage, kept as it adds up; and the budget that stops it before it is passed."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.device import RunDevice
from flows.services import Services
from yarn_ops.bill import Machines
from yarn_ops.errors import OverBudget, RegistryError
from yarn_ops.planning import RunPlan
from yarn_ops.recipe import RAISE_BUDGET, Budget, Recipe
from yarn_ops.registry import Registry, Run, costs
from yarn_ops.registry.costs import BETWEEN, HOUR_S, PHASE, Spending, total
from yarn_ops.settings import Settings

KEEP_EVERY_S = 20.0
"""how much of a process that is killed may be missing"""
CLOSING_S = 1.0
"""from the last part, or a trainer's last snapshot, until the run has ended"""

log = logging.getLogger(__name__)


class RunCosts:
    """Every second, joule and byte of a process belongs to the stage that it is in, or to none.

    helper: who helps another process's run; its stages are told apart by that. Only the main thread changes
    anything here.
    """

    def __init__(
        self, settings: Settings, registry: Registry, row: Run, device: RunDevice, services: Services,
        budget: Budget, helper: str = "",
    ) -> None:  # fmt: skip
        self._settings, self._registry, self._row = settings, registry, row
        self._device, self._services, self._budget = device, services, budget
        self._helper = helper
        self._spent: defaultdict[str, Spending] = defaultdict(Spending)
        self._open = [BETWEEN]
        self._elsewhere = Spending()
        self._last = self._read()
        self._kept_at = time.monotonic()
        self._part_began: float | None = None
        self._longest_part_s = 0.0
        self._stops_itself = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within the block the run is at work. OverBudget where this budget has stopped it before."""
        asked = self._budget.model_dump(mode="json")
        self._elsewhere = costs.spent_elsewhere(self._registry, self._row.id, self._row.attempts, ())
        if self._budget.asks and costs.spent_budget(self._registry, self._row.id) == asked:
            raise OverBudget(self._told("budget: nothing begins"))
        try:
            self.require()
            yield
        except OverBudget:
            costs.note(self._registry, self._row.id, spent_budget=asked)
            raise
        finally:
            try:
                self.keep()
            except RegistryError as error:  # how the run ended matters more
                log.warning("run %s: its costs were not kept: %s", self._row.id, error)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Within the block everything belongs to this stage."""
        self._add()
        self._open.append(f"{stage} {self._helper}".rstrip())
        self._part_began, self._longest_part_s, self._stops_itself = None, 0.0, False
        try:
            yield
        finally:
            self._add()
            self._open.pop()

    def phase(self, name: str) -> None:
        """From now on everything belongs to this phase of the open stage; "": to the stage itself."""
        self._add()
        stage = self._open[-1].partition(PHASE)[0]
        self._open[-1] = f"{stage}{PHASE}{name}" if name else stage

    def require(self, *, between_parts: bool = False) -> None:
        """OverBudget where the budget is used up; between parts of a stage also where the longest part so far
        would pass it."""
        if threading.current_thread() is not threading.main_thread():
            return
        now, ahead_s = time.monotonic(), 0.0
        if between_parts:
            if self._part_began is not None:
                self._longest_part_s = max(self._longest_part_s, now - self._part_began)
            self._part_began, ahead_s = now, self._longest_part_s
        if now - self._kept_at > KEEP_EVERY_S:
            with suppress(RegistryError):  # it is kept the next time
                self.keep()
        if self._budget.asks and not self._stops_itself:
            self._add()
            if self._left_s() <= ahead_s + CLOSING_S:
                raise OverBudget(self._told("budget: stopped"))

    def deadline(self) -> float | None:
        """By time.monotonic(), by when a run that has the device until then has to end for its budget. Who is
        told stops by itself and says at which step, so `require` lets the rest of this stage be."""
        self._add()
        self._stops_itself = True
        return time.monotonic() + self._left_s() - CLOSING_S if self._budget.asks else None

    def _told(self, what: str) -> str:
        spent = total((self._elsewhere, *self._spent.values()))
        return f"{what}: {spent.seconds / HOUR_S:.4g} h and ${spent.dollars:.4g} are used; {RAISE_BUDGET}"

    def _left_s(self) -> float:
        """Seconds until the budget is used up, at the price of the device."""
        spent = total((self._elsewhere, *self._spent.values()))
        left = []
        if self._budget.hours is not None:
            left.append(self._budget.hours * HOUR_S - spent.seconds)
        if self._budget.dollars is not None:
            price = max(self._device.hour_price, self._settings.node_hour)
            money = self._budget.dollars - spent.dollars
            left.append(money / price * HOUR_S if price else (float("inf") if money > 0 else 0.0))
        return min(left)

    def _read(self) -> tuple[float, float, float, int, int]:
        device_s, joules = self._device.used()
        traffic = self._services.store.traffic if "store" in self._services.__dict__ else None
        sent, received = (traffic.sent_bytes, traffic.received_bytes) if traffic else (0, 0)
        return time.monotonic() - self._device.waited_s, device_s, joules or 0.0, sent, received

    def _add(self) -> None:
        """Whatever has come since the last call belongs to the stage that is open."""
        now = self._read()
        seconds, device_s, joules, sent, received = (a - b for a, b in zip(now, self._last, strict=True))
        self._last, cost = now, self._spent[self._open[-1]]
        cost.seconds += seconds
        cost.device_s += device_s
        if joules:
            cost.joules = (cost.joules or 0.0) + joules
        cost.sent_bytes += int(sent)
        cost.received_bytes += int(received)
        price = self._device.hour_price if device_s else 0.0
        cost.dollars += (device_s * price + (seconds - device_s) * self._settings.node_hour) / HOUR_S

    def keep(self) -> None:
        """Keep all that it has cost so far."""
        self._add()
        costs.keep(self._registry, self._row.id, self._row.attempts, self._spent)
        row = self._row
        self._elsewhere = costs.spent_elsewhere(self._registry, row.id, row.attempts, self._spent)
        self._kept_at = time.monotonic()

    def plan(self, recipe: Recipe, base: Path, document_bytes: int) -> RunPlan | None:
        """Keep what `yarn-ops plan` says of the run, once; None where it is kept, its GPU was never measured,
        or planning fails: nothing of the run depends on it."""
        device, settings = self._device, self._settings
        if device.kind == "cpu" or self._registry.run_view(self._row.id).planned is not None:
            return None
        machines = Machines(1, device.gpus, settings.gpu_hour, settings.node_hour)
        try:
            name = device.call("torch.cuda:get_device_name")
            plan: RunPlan = device.call(
                "yarn_ops.planning:plan_run", recipe, base, name, machines, document_bytes
            )
        except Exception as error:
            log.info("run %s: not planned: %r", self._row.id, error)
            return None
        costs.note(
            self._registry,
            self._row.id,
            planned={part.name: {"seconds": part.seconds, "dollars": part.money} for part in plan.parts},
        )
        return plan
