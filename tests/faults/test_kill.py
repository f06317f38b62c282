"""Processes killed at work: the next run goes on, nothing finished is repeated, one model comes out."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable

import pytest
from workplace import Workplace

from yarn_ops.train.events import read_events

pytestmark = pytest.mark.timeout(900)  # on a machine that does other work too

MakeWorkplace = Callable[..., Workplace]

STEPS = 24
STOP_S = 30

FLOW = (
    "base", "patch", "rehearse", "documents", "shards", "train",
    "merge", "evaluate", "evaluate", "gate", "report", "publish",
)  # fmt: skip


def one_line(output: str) -> str:
    """What the command says for itself, without the lines of stages."""
    (line,) = [line for line in output.splitlines() if line.startswith("yarn-ops: ")]
    return line


def claims(workplace: Workplace) -> dict[str, int]:
    """{key: how often it was claimed} of every finished stage."""
    return {stage.key: stage.attempts for stage in workplace.stages() if stage.status == "completed"}


def finish(workplace: Workplace, finished: dict[str, int]) -> None:
    """The next run comes to its end and repeats none of `finished`; one run, one MLflow run, one version."""
    extension = workplace.start()
    assert extension.wait() == 0, extension.output
    assert finished.items() <= claims(workplace).items()
    run = workplace.run()
    assert run is not None
    assert (run.status, tuple(stage.stage for stage in run.stages)) == ("completed", FLOW)
    assert [version.version for version in workplace.tracking.models()] == [1]
    assert [(one.data.tags["run"], one.info.status) for one in workplace.mlflow_runs()] == [
        (run.id, "FINISHED")
    ]


Reached = Callable[[Workplace], bool]


def inside(index: int) -> Reached:
    """Stage number `index` is being computed, or is already done."""
    if FLOW[index] == "train":
        later = STEPS * 3 // 4
        return lambda workplace: later in workplace.steps() or len(workplace.stages()) > index + 1
    return lambda workplace: len(workplace.stages()) > index


def after(index: int) -> Reached:
    """Stage number `index` is finished."""
    return lambda workplace: (
        [stage.status for stage in workplace.stages()[index : index + 1]] == ["completed"]
    )


def kill_flow(workplace: Workplace, reached: Reached) -> dict[str, int]:
    """Kill a run there; what was finished then. None of its processes outlives it for long."""
    extension = workplace.start()
    extension.wait_until(lambda: reached(workplace))
    extension.kill()
    finished = claims(workplace)
    assert workplace.nobody_is_left()
    return finished


def kill_trainer(workplace: Workplace, step: int) -> dict[str, int]:
    """Kill a run's trainer in or after that step; what was finished then."""
    extension = workplace.start()
    extension.wait_until(lambda: step in workplace.steps() and workplace.trainer())
    trainer = workplace.trainer()
    assert trainer is not None
    trainer.kill()
    assert extension.wait() == 2
    assert "the trainer ended with status -9" in one_line(extension.output)
    run = workplace.run()
    assert run is not None and run.status == "failed"
    return claims(workplace)


def curve_steps(workplace: Workplace) -> list[int]:
    return [json.loads(line)["step"] for line in workplace.curve().splitlines()]


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with_bit_for_bit(
    undisturbed: Workplace, make_workplace: MakeWorkplace
) -> None:
    workplace = make_workplace()
    finished = kill_trainer(workplace, random.Random(4).randrange(2, STEPS // 2))
    for reached in (inside(FLOW.index("train")), after(FLOW.index("publish"))):
        finished |= kill_flow(workplace, reached)
    finish(workplace, finished)
    assert workplace.curve() == undisturbed.curve()
    assert curve_steps(workplace) == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_flow_killed_in_and_after_every_stage(
    undisturbed: Workplace, make_workplace: MakeWorkplace
) -> None:
    workplace, finished = make_workplace(), {}
    for index in range(len(FLOW)):
        for reached in (inside(index), after(index)):
            finished |= kill_flow(workplace, reached)
    finish(workplace, finished)
    assert workplace.curve() == undisturbed.curve()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_a_trainer_killed_at_random_steps(
    undisturbed: Workplace, make_workplace: MakeWorkplace, seed: int
) -> None:
    workplace, finished = make_workplace(), {}
    for step in sorted(random.Random(seed).sample(range(1, STEPS - 3), 3)):
        finished |= kill_trainer(workplace, step)
    finish(workplace, finished)
    assert workplace.curve() == undisturbed.curve()


@pytest.mark.slow
def test_asked_to_stop_in_training_it_stops_and_goes_on(undisturbed: Workplace) -> None:
    stopped_at = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        extension = undisturbed.start("train.steps=2000")
        extension.wait_until(lambda: stopped_at + 3 in undisturbed.steps())  # noqa: B023
        asked = time.monotonic()
        extension.process.send_signal(number)
        assert extension.wait(STOP_S) == 130
        assert time.monotonic() - asked < STOP_S
        assert one_line(extension.output) == "yarn-ops: stopped; the same command goes on from here"
        assert undisturbed.nobody_is_left()
        run = undisturbed.run()
        assert run is not None and (run.status, run.stages[-1].status) == ("stopped", "stopped")
        start, *_, checkpoint, stopped = events_of(undisturbed)
        assert start["step"] == stopped_at
        stopped_at = stopped["step"]
        assert checkpoint["step"] == stopped_at >= 3


def events_of(workplace: Workplace) -> list[dict[str, object]]:
    """What the trainer of the unfinished training told in its last life."""
    (log,) = (workplace.state / "work").glob("*/events.jsonl")
    events = read_events(log)
    begin = max(index for index, event in enumerate(events) if event["event"] == "start")
    return events[begin:]


@pytest.mark.slow
def test_a_prefect_server_of_our_own_dies_with_us(make_workplace: MakeWorkplace) -> None:
    workplace = make_workplace(prefect_api_url=None)
    extension = workplace.start()
    extension.wait_until(workplace.stages)
    commands = [" ".join(process.cmdline()) for process in workplace.processes()]
    assert any("prefect_server server start" in command for command in commands)
    extension.kill()
    assert workplace.nobody_is_left()


@pytest.mark.slow
def test_a_sleeper_cannot_write_what_another_has_taken_over(undisturbed: Workplace) -> None:
    change, lease = "evaluate.seed=1", {"YARN_OPS_LEASE_S": "30"}  # longer than the other takes to begin
    sleeper = undisturbed.start(change, **lease)
    sleeper.wait_until(lambda: evaluating(undisturbed))
    sleeper.process.suspend()
    other = undisturbed.start(change, **lease)
    assert other.wait() == 0
    assert f"waits for process {sleeper.process.pid}@" in other.output
    sleeper.process.resume()
    assert sleeper.wait() == 2
    assert "another process has taken it over" in one_line(sleeper.output)
    run = undisturbed.run()
    assert run is not None and (run.status, run.attempts) == ("completed", 2)


def evaluating(workplace: Workplace) -> bool:
    return any(stage.stage == "evaluate" and stage.status == "running" for stage in workplace.stages())
