"""The event log between a trainer and its launcher."""

from __future__ import annotations

from pathlib import Path

from yarn_ops.train.events import EventLog, EventTail, read_events


def test_a_new_life_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = EventLog(path, steps=9, through_step=0)
    first.emit("start")
    for step in (1, 2, 3):
        first.emit("step", step=step, loss=step / 3)
    first.emit("failed", error="no")
    with path.open("a") as file:
        file.write('{"event": "st')  # cut off by a crash
    EventLog(path, steps=9, through_step=2).emit("start")
    assert [(event["event"], event["step"]) for event in read_events(path)] == [
        ("step", 1),
        ("step", 2),
        ("start", 2),
    ]
    assert read_events(path)[0]["loss"] == 1 / 3


def test_the_tail_waits_for_the_new_log_and_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path, steps=3, through_step=0).emit("step", step=1)
    tail = EventTail(path)
    assert list(tail.read()) == []
    log = EventLog(path, steps=3, through_step=1)
    log.emit("start")
    assert [event["event"] for event in tail.read()] == ["step", "start"]
    with path.open("a") as file:
        file.write('{"event": ')
        file.flush()
        assert list(tail.read()) == []
        file.write('"done"}\n')
    assert list(tail.read()) == [{"event": "done"}]
