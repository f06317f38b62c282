"""What a run cost, by a stopwatch, and the budget that stops it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from small_recipe import asked

from flows.costs import CLOSING_S
from flows.reporting import plan_report
from flows.run import RunContext
from yarn_ops.errors import OverBudget
from yarn_ops.progress import ProgressBars
from yarn_ops.registry import Held, Registry, copies, costs, hold, open_registry, upgrade
from yarn_ops.registry.costs import BETWEEN
from yarn_ops.settings import Settings
from yarn_ops.shipped import MODELS
from yarn_ops.shown import duration
from yarn_ops.train.warm_trainer import call_by_name

A_DOLLAR_A_SECOND = 3600.0

Begin = Callable[..., RunContext]


@contextmanager
def held(registry: Registry, run: str, key: str) -> Iterator[Held]:
    with hold(registry, key * 64, stage="train", run_id=run, holder="here", lease_s=60) as lease:
        yield lease


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """One more attempt at a run with a budget."""
    settings = Settings(state_dir=tmp_path / "state", device="cpu", node_hour=A_DOLLAR_A_SECOND)
    settings.make_home()
    upgrade(settings.database)
    registry = open_registry(settings.database)

    def begun(**budget: float) -> RunContext:
        recipe = asked(rope={"factor": 2}, budget=budget)
        row = registry.begin_run(recipe.model_dump(mode="json"), recipe.digest())
        return RunContext(settings, recipe, registry, row, ProgressBars())

    yield begun
    registry.close()


def test_what_is_kept_is_what_a_stopwatch_says(begin: Begin, tmp_path: Path) -> None:
    asked = time.perf_counter()
    other, run = begin(), begin()  # two attempts, of which the first has the device
    with ExitStack() as first, run.costs.kept():
        began = time.perf_counter()
        lease = first.enter_context(held(run.registry, run.id, "b"))
        first.enter_context(other.device.occupied(lease, print))
        released: list[float] = []

        def release() -> None:
            released.append(time.perf_counter())
            first.close()

        threading.Timer(0.5, release).start()
        with run.costs.of("train"), held(run.registry, run.id, "a") as ours:
            asked_at = time.perf_counter()
            with run.device.occupied(ours, lambda _: None):
                has_it = time.perf_counter()
                waited_s = has_it - asked_at
                time.sleep(0.8)
                least_device_s = time.perf_counter() - has_it
            most_device_s = time.perf_counter() - released[0]
        evaluated = time.perf_counter()
        with run.costs.of("evaluate"):
            evaluates = time.perf_counter()
            run.services.store.write("a", b"x" * 1000)
            assert run.services.store.read("a")
            time.sleep(0.4)
            least_evaluated_s = time.perf_counter() - evaluates
        most_evaluated_s = time.perf_counter() - evaluated
        time.sleep(0.3)
        least_s = time.perf_counter() - began - waited_s
    most_s = time.perf_counter() - asked - waited_s
    view = run.registry.run_view(run.id)
    kept = {cost.stage: cost for cost in view.costs}
    # Two stopwatches each, since a busy machine may pause between our reading and theirs.
    for spent, least, most in (
        (sum(cost.seconds for cost in kept.values()), least_s, most_s),
        (sum(cost.dollars for cost in kept.values()), least_s, most_s),
        (kept["train"].device_s, least_device_s, most_device_s),
        (kept["evaluate"].seconds, least_evaluated_s, most_evaluated_s),
    ):
        assert 0.98 * least <= spent <= 1.02 * most
    assert not kept["evaluate"].device_s
    assert (kept["evaluate"].sent_bytes, kept["evaluate"].received_bytes) == (1000, 1000)
    assert {cost.joules for cost in kept.values()} == {None}, "no GPU tells its energy"
    assert set(kept) == {"train", "evaluate", BETWEEN}

    with other.costs.kept(), other.costs.of("train"):
        time.sleep(0.1)
    copy = copies.copy_run(run.registry, run.id)
    url = f"sqlite:///{tmp_path / 'rebuilt.db'}"
    upgrade(url)
    rebuilt = open_registry(url)
    copies.restore_run(rebuilt, json.loads(json.dumps(copy)))
    view = run.registry.run_view(run.id)
    assert len(view.costs) == 5 and rebuilt.run_view(run.id).costs == view.costs
    rebuilt.close()
    heads, train, *others, total = costs.stage_table(view)
    assert [train[0], *(row[0] for row in others), total[0]] == ["train", BETWEEN, "evaluate", "in all"]
    assert dict(zip(heads, total, strict=True))["sent"] == "1.0 KiB"


def test_phases_of_a_stage_have_rows_of_their_own(begin: Begin) -> None:
    run = begin()
    with run.costs.kept(), run.costs.of("train"):
        for phase, seconds in (("process", 0.05), ("model", 0.1), ("", 0.2)):
            run.costs.phase(phase)
            time.sleep(seconds)
    view = run.registry.run_view(run.id)
    kept = {cost.stage: cost.seconds for cost in view.costs}
    assert kept["train: process"] >= 0.05 and kept["train: model"] >= 0.1 and kept["train"] >= 0.2
    rows = costs.stage_table(view)
    assert [row[0] for row in rows] == ["stage", BETWEEN, "train", "train: process", "train: model", "in all"]
    train_s = sum(seconds for name, seconds in kept.items() if name.startswith("train"))
    assert rows[2][1] == duration(train_s) and rows[3][1] == duration(kept["train: process"])
    planned = view.model_copy(update={"planned": {"training": {"seconds": 36.0, "dollars": 1.0}}})
    assert costs.plan_table(planned)[1][:3] == ("training", "0.010", f"{train_s / 3600:,.3f}")


def on_a_gpu(run: RunContext, name: Callable[[], str]) -> None:
    """As if the machine had one GPU of this name."""

    def call(what: str, *inputs: Any) -> Any:
        return name() if what == "torch.cuda:get_device_name" else call_by_name(what, *inputs)

    vars(run.device).update(kind="cuda", _uuids=["0"], call=call)


def test_a_run_on_a_measured_gpu_keeps_its_plan(begin: Begin) -> None:
    run = begin()
    on_a_gpu(run, lambda: "NVIDIA H200")
    plan = run.costs.plan(run.recipe, MODELS / "base512", 10**7)
    assert run.costs.plan(run.recipe, MODELS / "base512", 10**7) is None  # told once
    assert plan is not None
    told, tables = plan_report(plan)
    assert re.fullmatch(r"[\d.]+ GiB of a GPU, [\d.]+ minutes, \$[\d.]+", told)
    assert f"**1 × H200: {told}**" in tables and "| training |" in tables
    planned = run.registry.run_view(run.id).planned
    assert planned is not None and {"training", "evaluation"} <= {*planned}
    assert all(part["seconds"] > 0 and part["dollars"] > 0 for part in planned.values())


def test_a_run_goes_on_where_it_cannot_be_planned(begin: Begin) -> None:
    def lost() -> str:
        raise RuntimeError("CUDA error: unspecified launch failure")

    run = begin()
    for name in (lost, lambda: "NVIDIA of tomorrow"):
        on_a_gpu(run, name)
        run.costs.plan(run.recipe, MODELS / "base512", 10**7)
        assert run.registry.run_view(run.id).planned is None


def test_planned_stands_beside_what_it_came_to(begin: Begin) -> None:
    run = begin()
    assert costs.plan_table(run.registry.run_view(run.id)) == []
    costs.note(run.registry, run.id, planned={"training": {"seconds": 1800, "dollars": 3.5}})
    costs.keep(
        run.registry,
        run.id,
        1,
        {"train": costs.Spending(seconds=3600, dollars=4), "merge": costs.Spending(9)},
    )
    _, *rows = costs.plan_table(run.registry.run_view(run.id))
    assert rows == [("training", "0.500", "1.000", "3.500", "4.000")]


@pytest.mark.parametrize("budget", [{"dollars": 1.5}, {"hours": 1.5 / 3600}])
def test_parts_stop_before_the_budget_is_passed(begin: Begin, budget: dict[str, float]) -> None:
    part_s, limit_s = 0.06, 1.5
    run = begin(**budget)
    told = pytest.raises(OverBudget, match=r"raise budget\.dollars or budget\.hours")
    with told, run.costs.kept(), run.costs.of("evaluate"):
        for _ in range(100):
            run.costs.require(between_parts=True)
            time.sleep(part_s)
    spent_s = sum(cost.seconds for cost in run.registry.run_view(run.id).costs)
    assert limit_s - CLOSING_S - 3 * part_s < spent_s < limit_s
    with pytest.raises(OverBudget, match="nothing begins"), begin(**budget).costs.kept():
        pytest.fail("the same budget lets nothing begin")
    more = begin(**{name: 2 * value for name, value in budget.items()})
    assert more.id == run.id, "the same run goes on"
    with more.costs.kept():
        assert 0 < (more.costs.deadline() or 0) - time.monotonic() + CLOSING_S < 2 * limit_s - spent_s
    assert begin().costs.deadline() is None


def test_who_was_told_the_deadline_stops_by_itself(begin: Begin) -> None:
    """A trainer says at which step it stopped, however late its events are read."""
    run = begin(hours=(0.2 + CLOSING_S) / 3600)
    with run.costs.kept():
        with run.costs.of("train"):
            run.costs.deadline()
            time.sleep(0.3)
            run.costs.require()
        with pytest.raises(OverBudget, match="stopped"), run.costs.of("merge"):
            run.costs.require()


@pytest.mark.slow
def test_a_run_stops_within_a_step_of_its_budget_and_goes_on(cli: Any, small_recipe: Path) -> None:
    """Its adapter is bit for bit that of a run without a budget; its seconds are the wall clock's."""
    longer, elsewhere = ("--set", "train.steps=150"), str(small_recipe.parent / "other")
    whole = cli("extend", small_recipe, *longer, YARN_OPS_STATE_DIR=elsewhere)
    assert whole.returncode == 0, whole.stderr
    other = json.loads(cli("runs", "show", "--last", "--json", YARN_OPS_STATE_DIR=elsewhere).stdout)
    began, ended = (datetime.fromisoformat(other[name]) for name in ("started_at", "finished_at"))
    spent_s = sum(cost["seconds"] for cost in other["costs"])
    assert spent_s == pytest.approx((ended - began).total_seconds(), rel=0.02)

    took_s = {cost["stage"]: cost["seconds"] for cost in other["costs"]}
    behind = ("train: end", "merge", "evaluate", "gate", "report", "publish")
    until_trained_s = sum(seconds for stage, seconds in took_s.items() if not stage.startswith(behind))
    budget_s = until_trained_s - took_s["train"] / 2  # it ends amid the steps, however fast they are here
    budget = ("--set", f"budget.hours={budget_s / 3600}")
    stopped = cli("extend", small_recipe, *longer, *budget)
    assert stopped.returncode == 2 and "stopped after step" in stopped.stderr, stopped.stderr
    first = json.loads(cli("runs", "show", "--last", "--json").stdout)
    spent_s = sum(cost["seconds"] for cost in first["costs"])
    assert first["status"] == "stopped" and budget_s - 3 < spent_s < budget_s
    again = cli("extend", small_recipe, *longer, *budget)
    assert again.returncode == 2 and "raise budget" in again.stderr
    done = cli("extend", small_recipe, *longer)
    assert done.returncode == 0, done.stderr
    shown = json.loads(cli("runs", "show", "--last", "--json").stdout)
    assert (shown["id"], shown["status"]) == (first["id"], "completed")
    adapters = [
        next(stage["record"]["tree"]["digest"] for stage in view["stages"] if stage["stage"] == "train")
        for view in (shown, other)
    ]
    assert adapters[0] == adapters[1] and max(cost["attempt"] for cost in shown["costs"]) > 1
