"""What the proxy of our Swift remembers in place of memcached: for how long, and what not."""

from __future__ import annotations

import pytest

from yarn_ops.stack.swift_cache import MOST_ENTRIES, Remembered, filter_factory


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_was_found_is_known_for_its_time() -> None:
    clock = Clock()
    remembered = Remembered(clock)
    remembered.set("container/a/b", {"status": 204, "object_count": 3}, time=60)
    clock.now += 59
    assert remembered.get("container/a/b") == {"status": 204, "object_count": 3}
    clock.now += 1
    assert remembered.get("container/a/b") is None
    assert remembered.get("never set") is None


@pytest.mark.parametrize("status", [404, 410, 0])
def test_what_was_not_found_is_asked_for_again(status: int) -> None:
    remembered = Remembered()
    remembered.set("container/a/b", {"status": status}, time=60)
    assert remembered.get("container/a/b") is None


def test_a_value_changed_by_its_reader_is_not_changed_here() -> None:
    remembered = Remembered()
    remembered.set("account/a", {"status": 200, "meta": {}}, time=60)
    remembered.get("account/a")["meta"]["owner"] = "somebody"
    assert remembered.get("account/a") == {"status": 200, "meta": {}}


def test_what_is_deleted_is_gone() -> None:
    remembered = Remembered()
    remembered.set("account/a", {"status": 200}, time=60)
    remembered.delete("account/a")
    remembered.delete("account/a")
    assert remembered.get("account/a") is None


def test_it_stays_small() -> None:
    remembered = Remembered()
    for number in range(2 * MOST_ENTRIES + 1):
        remembered.set(f"container/a/{number}", {"status": 200}, time=60)
    known = [number for number in range(2 * MOST_ENTRIES + 1) if remembered.get(f"container/a/{number}")]
    assert 1 <= len(known) <= MOST_ENTRIES
    assert known[-1] == 2 * MOST_ENTRIES


def test_every_request_of_a_process_sees_the_same() -> None:
    seen = []

    def app(environ: dict[str, object], _start_response: object) -> list[bytes]:
        seen.append(environ["swift.cache"])
        return [b"answer"]

    call = filter_factory({})(app)
    assert list(call({}, lambda *_: None)) == [b"answer"]
    assert list(call({}, lambda *_: None)) == [b"answer"]
    assert seen[0] is seen[1]
    assert isinstance(seen[0], Remembered)
