"""`yarn-ops` typed in this process, on a state directory of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from yarn_ops import cli
from yarn_ops.cli import display


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


YarnOps = Callable[..., Answer]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory that the environment names; not made yet."""
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def yarn_ops(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[YarnOps]:
    """yarn_ops("runs", "show", COLUMNS="80")."""

    def run(*arguments: object, **variables: str) -> Answer:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if "COLUMNS" in variables:  # read when the console was made
            monkeypatch.setattr(display.CONSOLE, "width", int(variables["COLUMNS"]))
        monkeypatch.setattr(sys, "argv", ["yarn-ops", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return Answer(int(end.value.code or 0), printed.out, printed.err)

    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)
